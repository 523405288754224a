"""Finished and failed cells come in, rows.csv comes out, and back: one row per run, readable by any table.

A row says what was asked for (label, seed, overrides), what came out (losses, bits per byte, speed), and what
it was made with (hardware, versions, commit, date). Empty fields are unknown; numbers are written in full.
"""

import csv
import io
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.lab.cells import (
    BEYOND,
    COORDINATES,
    Cell,
    StudyFolder,
    experiment_of,
    guessing_loss,
    read_note,
    state_of,
)
from scratchlm.lab.spec import Study
from scratchlm.runtime import write_text_atomically
from scratchlm.study.compare import facts
from scratchlm.study.run_record import number, read_run

MEASURED = ("loss_1x", "loss_2x", "loss_4x", "moved_scores", "moved_stream", "moved_logits")
"""Columns that only studies fill which ask for them."""


class Result(NamedTuple):
    """One row of rows.csv."""

    study: str
    scale: str
    label: str
    seed: int
    state: str
    """finished, diverged or failed."""
    overrides: str
    """The cell's settings over the study's, as JSON."""
    final_loss: float | None
    """On the validation split, nats per token."""
    best_loss: float | None
    bits_per_byte: float | None
    floor_loss: float | None
    floor_bits_per_byte: float | None
    guessing_loss: float | None
    """Of who gives each token the same probability."""
    parameters: int | None
    steps: int | None
    tokens: int | None
    flops: float | None
    tokens_per_second: float | None
    seconds: float | None
    diverged: bool
    error: str
    hardware: str
    versions: str
    commit: str
    date: str
    cell: str
    """Name of the run's folder below cells/."""
    loss_1x: float | None = None
    """Place by place in long rows: within the training context; with `beyond_context` (beyond.py)."""
    loss_2x: float | None = None
    """From one to two training contexts; empty where positions end."""
    loss_4x: float | None = None
    """From two to four."""
    moved_scores: float | None = None
    """How far the run moved its model's activations; with `coordinates` (coordinates.py)."""
    moved_stream: float | None = None
    """Of the residual stream after the last block."""
    moved_logits: float | None = None
    """Of the logits."""

    def metric(self, name: str) -> float | None:
        """The number that a study compares: "loss" or "bits_per_byte"."""
        return self.final_loss if name == "loss" else self.bits_per_byte

    def floor(self, name: str) -> float | None:
        """The least possible value of that number, where the corpus knows it."""
        return self.floor_loss if name == "loss" else self.floor_bits_per_byte


def result_of(study: Study, scale: str, folder: StudyFolder, cell: Cell) -> Result | None:
    """The row of a cell that has ended; None for others."""
    state = state_of(folder, cell)
    if state in ("missing", "interrupted"):
        return None
    run, failure = folder.cell(cell), read_note(folder.note(cell.key, "failure"))
    summary, environment = read_note(run / "summary.json"), read_note(run / "environment.json")
    record = read_run(run) if (run / "config.json").is_file() else None
    known = facts(record) if record is not None else None
    measured = {}
    for name in (BEYOND, COORDINATES) if state == "finished" else ():
        measured |= read_note(run / name)
    need = experiment_of(study).estimate(cell.config)
    steps = number(summary, "steps") or (known.steps if known else None)
    tokens = number(summary, "tokens") or (known.tokens if known else None)
    hardware = environment.get("gpu") or environment.get("processor") or ""
    versions = {key: environment[key] for key in ("scratchlm", "torch", "python") if key in environment}
    done = summary if state != "failed" else {}
    return Result(
        study=study.name,
        scale=scale,
        label=cell.label,
        seed=cell.seed,
        state=state,
        overrides=json.dumps(cell.overrides, ensure_ascii=False),
        final_loss=number(done, "valid_loss") if done else math.nan if state == "diverged" else None,
        best_loss=known.best_loss if known else None,
        bits_per_byte=number(done, "bits_per_byte"),
        floor_loss=number(done, "floor_loss"),
        floor_bits_per_byte=number(done, "floor_bits_per_byte"),
        guessing_loss=guessing_loss(done),
        parameters=_whole(number(done, "parameters")),
        steps=_whole(steps),
        tokens=_whole(tokens),
        flops=need.flops / need.steps * steps if steps else None,
        tokens_per_second=number(done, "tokens_per_second"),
        seconds=number(done, "seconds") or (known.seconds if known else None),
        diverged=state == "diverged",
        error=str(failure.get("error") or ""),
        hardware=f"{hardware}, threads: {environment.get('threads')}" if hardware else "",
        versions=", ".join(f"{key} {value}" for key, value in versions.items()),
        commit=str(environment.get("commit") or ""),
        date=_date(run),
        cell=cell.key,
        **{name: number(measured, name) for name in MEASURED},
    )


def write_rows(path: Path, results: Iterable[Result]) -> None:
    """Write rows.csv, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Result._fields)
    for result in results:
        writer.writerow(["" if value is None else value for value in result])
    write_text_atomically(path, text.getvalue())


def read_rows(path: Path) -> list[Result]:
    """Read rows.csv; columns that this version does not know are left out.

    Raises:
        ValueError: The file is missing or no rows.csv.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a study that has been run.")
    kinds = Result.__annotations__
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            lacking = [name for name in ("label", "seed", "final_loss") if row.get(name) is None]
            if lacking:
                raise ValueError(
                    f"{path}, line {line}: no column {lacking[0]!r}; this is no rows.csv of a study."
                )
            try:
                found.append(
                    Result(**{name: _read(kind, row.get(name) or "") for name, kind in kinds.items()})
                )
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}.") from None
    return found


def _read(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        return text == "True"
    if text == "":
        return 0 if kind is int else None
    return int(text) if kind in (int, int | None) else float(text)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _date(run: Path) -> str:
    summary = run / "summary.json"
    when = summary.stat().st_mtime if summary.is_file() else None
    moment = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    return moment.strftime("%Y-%m-%d %H:%M")
