"""A run folder comes in, what it says about itself comes out: settings, metrics, samples, summary.

A run that was stopped, or is still going, has some of its files only. What is missing or unreadable is an
empty value here and a sentence in `problems`, so that everything else can still be shown.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Row = dict[str, Any]

FILES = ("config.json", "environment.json", "metrics.jsonl", "samples.jsonl", "summary.json")
"""The files of a run folder that are read here."""


class RunRecord(NamedTuple):
    """What a run folder holds, checkpoints and shards apart."""

    folder: Path
    config: Row
    environment: Row
    train: list[Row]
    """Training rows of metrics.jsonl by step; of a step that was run twice, the last row."""
    valid: list[Row]
    """Validation rows, likewise."""
    events: list[Row]
    """All other rows of metrics.jsonl, in order: steps left out, spikes, rollbacks, sizes of weights."""
    samples: list[Row]
    """Rows of samples.jsonl by step."""
    summary: Row
    problems: dict[str, str]
    """File name -> what is wrong with it, as a sentence for the reader."""

    @property
    def name(self) -> str:
        """The run's name; the folder's where no file tells it."""
        name = self.summary.get("name") or self.config.get("name")
        return str(name) if name else self.folder.name


def read_run(folder: Path) -> RunRecord:
    """Read the run in `folder`.

    Raises:
        ValueError: `folder` is no run folder: it does not exist, or holds none of a run's files.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such run folder; give the folder of a run, the one that holds config.json."
        )
    if not any((folder / name).is_file() for name in FILES):
        raise ValueError(
            f"{folder}: no run folder, it holds none of {', '.join(FILES)}; "
            "give the folder that scratchlm train wrote."
        )
    problems: dict[str, str] = {}
    metrics = _read_lines(folder / "metrics.jsonl", problems)
    return RunRecord(
        folder=folder,
        config=_read_object(folder / "config.json", problems),
        environment=_read_object(folder / "environment.json", problems),
        train=_by_step(row for row in metrics if row.get("kind") == "train"),
        valid=_by_step(row for row in metrics if row.get("kind") == "valid"),
        events=[row for row in metrics if row.get("kind") not in ("train", "valid")],
        samples=_samples(_read_lines(folder / "samples.jsonl", problems)),
        summary=_read_object(folder / "summary.json", problems),
        problems=problems,
    )


def column(rows: list[Row], key: str) -> Float[np.ndarray, " rows"]:
    """One key of all rows as numbers; NaN where a row has none."""
    return np.array([_number(row.get(key)) for row in rows], dtype=np.float64)


def number(row: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`, or None where there is none; NaN and infinity are numbers here."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def section(row: Mapping[str, Any], key: str) -> Row:
    """The object under `key`, or an empty one."""
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _by_step(rows: Iterable[Row]) -> list[Row]:
    last = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    return [last[step] for step in sorted(last)]


def _samples(rows: list[Row]) -> list[Row]:
    last = {
        (row["step"], str(row.get("prompt", ""))): row for row in rows if isinstance(row.get("step"), int)
    }
    return sorted(last.values(), key=lambda row: row["step"])


def _read_text(path: Path, problems: dict[str, str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems[path.name] = f"{path.name} is missing in this run folder."
    except OSError as error:
        problems[path.name] = f"{path.name} cannot be read ({error.strerror})."
    return None


def _read_object(path: Path, problems: dict[str, str]) -> Row:
    text = _read_text(path, problems)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        problems[path.name] = f"{path.name} is no JSON ({error})."
        return {}
    if not isinstance(value, dict):
        problems[path.name] = f"{path.name} holds no JSON object."
        return {}
    return value


def _read_lines(path: Path, problems: dict[str, str]) -> list[Row]:
    text = _read_text(path, problems)
    if text is None:
        return []
    rows, num_broken = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None  # usually the last line of a run that was killed while it wrote
        if isinstance(value, dict):
            rows.append(value)
        else:
            num_broken += 1
    if num_broken:
        many = "1 line" if num_broken == 1 else f"{num_broken} lines"
        problems[path.name] = f"{many} of {path.name} could not be read, left out here."
    elif not rows:
        problems[path.name] = f"{path.name} is empty: nothing was recorded."
    return rows
