"""A study comes in, its cells go out: every run of it with complete, checked settings, and its state.

    cell = point x seed                      settings: recipe <- study <- point <- seed, steps of the budget
    folder = cells/LABEL-sSEED-HASH          the hash of all settings but defaults: others, another cell

Every cell is resolved before the first one runs, so a mistake anywhere costs nothing.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scratchlm.config import Config, parse_override
from scratchlm.lab.experiments import EXPERIMENTS, Experiment
from scratchlm.lab.search import Point, overrides_of
from scratchlm.lab.spec import Budget, Study
from scratchlm.lab.start import start_folder
from scratchlm.study.compare import flattened

State = Literal["missing", "interrupted", "finished", "diverged", "failed"]

OF_THE_MACHINE = (
    "name",
    "description",
    "distributed",
    "nproc",
    "restarts",
    "wait_seconds",
    "data.workers",
    "data.queue_size",
)
"""Settings that are no part of what a cell is."""
BEYOND = "beyond.json"
"""In a run's folder: its loss beyond the training context (beyond.py)."""
COORDINATES = "coordinates.json"
"""Likewise: how far it moved its model's activations (coordinates.py)."""
LONG = 1_000_000
"""Steps of a run whose length is not known yet."""
SLUG_LENGTH = 32
HASH_LENGTH = 10
"""40 bits: two of 10,000 cells get one hash with a chance of 5e-5."""


class Cell(NamedTuple):
    """One run of a study."""

    label: str
    seed: int
    overrides: dict[str, Any]
    """The point's settings by dotted key."""
    config: Config
    """Complete settings."""
    key: str
    """Name of its folder."""
    measures: tuple[str, ...] = ()
    """Files that are made from the run when it has ended; without them it has not."""


def experiment_of(study: Study) -> Experiment:
    """What the study's cells do."""
    return EXPERIMENTS.build(study.experiment)


def resolve(study: Study, points: Iterable[Point], steps: Mapping[str, int] | None = None) -> list[Cell]:
    """The cells of these points, complete.

    Args:
        study: In one size.
        points: From search.py.
        steps: Label -> steps, where a budget in minutes was settled before.

    Raises:
        ValueError: A cell's settings are wrong; the message names the cell.
    """
    made: list[Cell] = []
    seen: dict[str, Cell] = {}
    experiment, settled = experiment_of(study), dict(steps or {})
    base = start_folder(study)
    for point in points:
        for seed in study.seeds:
            cell = _cell(study, experiment, point, seed, settled.get(point.label), base)
            if (point.budget or study.budget) is not None and study.experiment == "train":
                settled[point.label] = cell.config.train.steps  # type: ignore[attr-defined]
            if cell.key.rpartition("-")[2] in seen:
                other = seen[cell.key.rpartition("-")[2]]
                raise ValueError(f"{study.name}: cells {other.label!r} and {cell.label!r} are the same run.")
            seen[cell.key.rpartition("-")[2]] = cell
            made.append(cell)
    labels = [cell.label for cell in made]
    if study.base is not None and labels and study.base not in labels and study.optuna is None:
        raise ValueError(
            f"{study.name}: base={study.base!r} is no cell; known: {', '.join(dict.fromkeys(labels))}."
        )
    return made


def _cell(
    study: Study, experiment: Experiment, point: Point, seed: int, steps: int | None, base: Path | None
) -> Cell:
    _check_words(study, point)
    words = [*study.settings, *point.settings, f"seed={seed}"]
    words += [f"base='{base.as_posix()}'"] if base is not None else []
    try:
        if study.experiment != "quadratic":
            steps = _steps(point.budget or study.budget, study.recipe, experiment, words, steps)
            words = [*_often(study, steps), *words, f"train.steps={steps}"]
        config = experiment.resolve(study.recipe, words)
    except ValueError as error:
        raise ValueError(f"{study.name}, cell {point.label!r}: {error}") from None
    key = _key(point.label, seed, config)
    return Cell(point.label, seed, overrides_of(point), config, key, measures_of(study))


def measures_of(study: Study) -> tuple[str, ...]:
    """The files that a study wants of each run besides its own."""
    return (BEYOND,) * study.beyond_context + (COORDINATES,) * study.coordinates


def _check_words(study: Study, point: Point) -> None:
    """Refuse words that contradict each other or the study, and a budget where steps have no known cost."""
    if (point.budget or study.budget) is not None and study.experiment != "train":
        raise ValueError(f"{study.name}: a budget is for experiment='train'; set train.steps instead.")
    for where, words in (
        (study.name, study.settings),
        (f"{study.name}, cell {point.label!r}", point.settings),
    ):
        values: dict[str, str] = {}
        for word in words:
            keys, parsed = parse_override(word)
            inside = flattened({".".join(keys): parsed})
            key, _, value = (part.strip() for part in word.partition("="))
            if values.setdefault(key, value) != value:
                raise ValueError(f"{where}: {key}={values[key]} and {word} contradict each other; keep one.")
            if "seed" in inside:
                raise ValueError(f"{where}: {word}: seeds are given once, by seeds=[...].")
            if "base" in inside and study.start:
                raise ValueError(f"{where}: {word}: cells go on from the study's start; drop one of the two.")
            if "train.steps" in inside and (point.budget or study.budget) is not None:
                raise ValueError(
                    f"{where}: {word} contradicts the budget, which decides the steps; drop one."
                )


def _steps(
    budget: Budget | None, recipe: str, experiment: Experiment, words: list[str], settled: int | None
) -> int:
    """How many steps a cell makes."""
    if budget is None:
        config: Any = experiment.resolve(recipe, words)
        return config.train.steps
    # what has a length in steps (a warm-up) shall not be refused before the length is known
    config = experiment.resolve(recipe, [*words, f"train.steps={LONG}"])
    return settled or steps_of(experiment, config, budget)


def _often(study: Study, steps: int) -> list[str]:
    """Words under all others: how often a cell of that many steps is measured, saved and told."""
    return [
        f"train.eval_every={max(1, steps // study.validations)}",
        f"train.sample_every={steps}",
        f"train.save_every={max(1, steps // 4)}",
        "train.keep_checkpoints=1",
        f"train.log_every={max(1, min(10, steps // 100))}",
    ]


def steps_of(experiment: Experiment, config: Any, budget: Budget) -> int:
    """How many steps a budget pays for.

    Raises:
        ValueError: Not even one.
    """
    batch = config.train.batch_tokens
    need = experiment.estimate(config, timed=budget.minutes is not None)
    if budget.tokens is not None:
        what, steps = f"{budget.tokens:,} tokens", budget.tokens / batch
    elif budget.flops is not None:
        what, steps = f"{budget.flops:.3g} FLOPs", budget.flops / (need.flops / need.steps)
    else:
        assert budget.minutes is not None, budget
        what, steps = f"{budget.minutes:g} minutes", 60 * budget.minutes / ((need.seconds or 0) / need.steps)
    if steps < 1:
        one = {"tokens": f"{batch:,} tokens", "FLOPs": f"{need.flops / need.steps:.3g} FLOPs"}
        raise ValueError(
            f"budget: {what} are less than one step (train.batch_tokens={batch:,}"
            f"{'' if budget.flops is None else ', ' + one['FLOPs']}); give more, or make steps smaller."
        )
    return math.floor(steps)


def _key(label: str, seed: int, config: Config) -> str:
    # without defaults: a later version has more settings, and what was run with this one shall stay finished
    flat = flattened(config.model_dump(mode="json", exclude_defaults=True))
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in OF_THE_MACHINE)
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]
    slug = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:SLUG_LENGTH]
    return f"{slug or 'cell'}-s{seed}-{digest}"


class StudyFolder(NamedTuple):
    """Where a study's files lie."""

    path: Path

    @property
    def study(self) -> Path:
        """The study as it is run here."""
        return self.path / "study.json"

    @property
    def rows(self) -> Path:
        """One row per run."""
        return self.path / "rows.csv"

    @property
    def steps(self) -> Path:
        """Steps of each label where the budget is a time."""
        return self.path / "steps.json"

    def cell(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.path / "cells" / cell.key

    def note(self, key: str, kind: str) -> Path:
        """What the runner and a cell's process tell each other: request, progress, failure, log."""
        return self.path / "state" / f"{key}.{kind}"

    def shared(self, key: str) -> Path:
        """A tokenizer with its shards that several cells use."""
        return self.path / "shared" / key


def state_of(folder: StudyFolder, cell: Cell) -> State:
    """What became of a cell."""
    failure = read_note(folder.note(cell.key, "failure"))
    if failure:
        return "diverged" if failure.get("kind") == "diverged" else "failed"
    run = folder.cell(cell)
    if not (run / "config.json").is_file():
        return "missing"
    summary = read_note(run / "summary.json")
    if not summary or summary.get("stopped_early"):
        return "interrupted"
    if has_diverged(run, summary):
        return "diverged"
    return "finished" if all((run / name).is_file() for name in cell.measures) else "interrupted"


def read_note(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def guessing_loss(summary: Mapping[str, Any]) -> float | None:
    """The loss of who gives each token the same probability; of the toy, its loss at the start; or None."""
    if summary.get("guessing_loss") is not None:
        return float(summary["guessing_loss"])
    if summary.get("posttrain"):
        return None  # its loss is of answers, pairs or problems
    vocab_size = (summary.get("tokenizer") or {}).get("vocab_size")
    return math.log(vocab_size) if vocab_size else None


def has_diverged(run: Path, summary: Mapping[str, Any]) -> bool:
    """Whether a run ended with a loss that is no number, or worse than guessing and than at its start."""
    loss, guessing = summary.get("valid_loss"), guessing_loss(summary)
    if loss is None:
        return False
    if not math.isfinite(loss):
        return True
    return guessing is not None and loss > guessing and loss > _first_loss(run)


def _first_loss(run: Path) -> float:
    """The loss of the first row of metrics.jsonl: a model may start worse than guessing."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        with (run / "metrics.jsonl").open(encoding="utf-8") as file:
            return float(json.loads(file.readline())["loss"])
    return -math.inf
