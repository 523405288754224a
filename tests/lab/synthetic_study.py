"""A study's folder without any training: rows and learning curves by formula."""

import json
import math
from pathlib import Path

from scratchlm.lab.rows import Result, write_rows
from scratchlm.lab.spec import Study
from scratchlm.runtime import write_text_atomically

STEPS = (100, 200, 300, 400)


def row(label: str, seed: int, loss: float | None, *, overrides: dict | None = None, **changes) -> Result:
    """A finished run; of a loss that is None, one that failed, and of NaN, one that diverged."""
    state = "failed" if loss is None else "diverged" if math.isnan(loss) else "finished"
    known = {
        "study": "made-up", "scale": "cpu", "label": label, "seed": seed, "state": state,
        "overrides": json.dumps(overrides or {}), "final_loss": loss, "best_loss": loss,
        "bits_per_byte": None if loss is None else loss / 2, "floor_loss": 0.4, "floor_bits_per_byte": 0.2,
        "guessing_loss": 6.0, "parameters": 1000, "steps": STEPS[-1], "tokens": STEPS[-1] * 256, "flops": 1e9,
        "tokens_per_second": 100.0, "seconds": 12.0, "diverged": state == "diverged",
        "error": "" if state == "finished" else "it broke <here>", "hardware": "a computer",
        "versions": "scratchlm 0", "commit": "abc", "date": "2026-01-02 03:04", "cell": f"{label}-s{seed}",
    }  # fmt: skip
    return Result(**{**known, **changes})


def write_study(folder: Path, study: Study, rows: list[Result]) -> None:
    """The files that a finished study has."""
    text = json.dumps({"scale": "cpu", "study": study.model_dump(mode="json")})
    write_text_atomically(folder / "study.json", text)
    write_rows(folder / "rows.csv", rows)
    for result in rows:
        run = folder / "cells" / result.cell
        end = result.final_loss if result.state == "finished" else 7.0
        lines = [
            {
                "kind": "valid", "step": step, "tokens": step * 256, "seconds": step / 33,
                "loss": end + 3 * math.exp(-step / 100), "bits_per_byte": 1.0,
            }
            for step in STEPS
        ]  # fmt: skip
        write_text_atomically(run / "config.json", json.dumps({"name": "x", "train": {"batch_tokens": 256}}))
        write_text_atomically(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
