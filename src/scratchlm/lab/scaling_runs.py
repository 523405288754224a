"""A table of runs comes in (our rows.csv, or a course's isoflops_curves.json), runs by compute go out.

    rows.csv              parameters, tokens, flops, final_loss; other columns may be there, `state` and
                          `floor_loss` are heeded
    isoflops_curves.json  [{"parameters": N, "compute_budget": C, "final_loss": L}, ...], tokens = C / (6 N)

Runs of one budget differ a little in what they really cost, because steps are whole; those whose costs lie
close together are one group, and its budget is their geometric mean.

Source: the JSON fields are those of Stanford CS336, assignment 3; C = 6 N D from Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SAME_BUDGET = 1.2
"""Costs that differ by less belong to one budget: six whole steps miss theirs by less than a sixth."""
FLOPS_PER_PARAMETER = 6
"""Of training, per token: where a table says neither tokens nor operations."""
ENDED = ("", "finished")
"""States of a row that has a loss; diverged and failed runs lie on no law."""


class Trained(NamedTuple):
    """One run that came to its end."""

    parameters: float
    tokens: float
    flops: float
    loss: float
    label: str = ""
    floor: float = 0.0
    """Entropy of the text in nats per token, which no loss can beat; 0 where nobody knows it."""


class Group(NamedTuple):
    """The runs of one budget."""

    budget: float
    """Floating-point operations."""
    runs: list[Trained]


class Table(NamedTuple):
    """What a file held."""

    runs: list[Trained]
    num_left_out: int
    """Runs that diverged, failed, or have no loss."""


def read_runs(path: Path) -> Table:
    """Read runs from a folder of a study, a .csv or a .json file.

    Raises:
        ValueError: The file is missing, or a number in it is; the message names the place.
    """
    path = path / "rows.csv" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a study's folder, its rows.csv, or a .json of runs.")
    if path.suffix == ".json":
        return Table(_from_json(path), 0)
    found, num_left_out = [], 0
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for name in ("parameters", "final_loss"):
            if name not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: no column {name!r}; known: {', '.join(reader.fieldnames or ())}.")
        for line, row in enumerate(reader, start=2):
            if (row.get("state") or "") not in ENDED or not row.get("final_loss"):
                num_left_out += 1
            else:
                found.append(_run(row, f"{path}, line {line}"))
    return Table(found, num_left_out)


def groups_of(runs: Sequence[Trained]) -> list[Group]:
    """The runs by budget, the smallest first.

    Example: costs 0.98e12, 1.00e12 and 4.0e12 -> budgets 0.99e12 (two runs) and 4.0e12 (one).
    """
    found: list[list[Trained]] = []
    for run in sorted(runs, key=lambda run: (run.flops, run.parameters)):
        if found and run.flops < SAME_BUDGET * found[-1][-1].flops:
            found[-1].append(run)
        else:
            found.append([run])
    return [Group(_middle([run.flops for run in one]), sorted(one)) for one in found]


def _from_json(path: Path) -> list[Trained]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}).") from None
    if not isinstance(read, list) or not all(isinstance(entry, dict) for entry in read):
        raise ValueError(f'{path}: expected a list of runs: [{{"parameters": ..., "final_loss": ...}}, ...].')
    return [_run(entry, f"{path}, run {number}") for number, entry in enumerate(read, start=1)]


def _run(row: Mapping[str, Any], where: str) -> Trained:
    """One run; tokens and operations follow from each other where one is missing."""
    parameters, loss = _positive(row, "parameters", where), _positive(row, "final_loss", where)
    key = "flops" if row.get("flops") not in (None, "") else "compute_budget"
    has_tokens, has_flops = (row.get(name) not in (None, "") for name in ("tokens", key))
    if not has_tokens and not has_flops:
        raise ValueError(f"{where}: neither flops (or compute_budget) nor tokens; give one of them.")
    each = FLOPS_PER_PARAMETER * parameters
    tokens = _positive(row, "tokens", where) if has_tokens else _positive(row, key, where) / each
    flops = _positive(row, key, where) if has_flops else tokens * each
    floor = _positive(row, "floor_loss", where) if row.get("floor_loss") not in (None, "") else 0.0
    return Trained(parameters, tokens, flops, loss, str(row.get("label") or ""), floor)


def _positive(row: Mapping[str, Any], name: str, where: str) -> float:
    try:
        value = float(row.get(name, ""))
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {name}={row.get(name)!r} is no number.") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{where}: {name}={value:g}; a law of powers needs finite numbers above 0.")
    return value


def _middle(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
