r"""A study comes in, its points go out: which settings each cell has, and its label for people.

    grid     all combinations of the values; with `rows`, of batch sizes as well (batch_sizes.py)
    cells    as listed
    changes  none of them, each alone, all of them, all but each: n changes make 2 n + 2 cells
    random   draws from ranges
    optuna   rounds of proposals: each round is a function of the seed and of the results of those before it

Nothing is remembered: whoever goes on with a study asks again with the results that are there, and gets the
same points, and the next ones.

Source: Bergstra and Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html (random); Bergstra et al. 2011,
"Algorithms for Hyper-Parameter Optimization" (Parzen estimators), as Optuna has them.
"""

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scratchlm.config import parse_override
from scratchlm.lab.batch_sizes import SETTING, batch_sizes
from scratchlm.lab.spec import MAX_CELLS, Budget, Change, OptunaSearch, RandomSearch, Range, Study, flat_grid

NONE, ALL = "none", "all"
"""Labels of the cells without any change and with all of them."""


class Point(NamedTuple):
    """One cell, whatever its seeds."""

    label: str
    settings: tuple[str, ...]
    """key=value words."""
    budget: Budget | None = None
    """Instead of the study's."""
    against: str | None = None
    """Label of the cell that it is compared to; None: the study's base."""


Results = Mapping[str, float]
"""Label -> mean of the metric over the seeds; infinity where it diverged, NaN where it failed."""


def points(study: Study, results: Results) -> list[Point]:
    """The cells that are known now, given the results so far; more than before where they are proposed.

    Raises:
        ValueError: The cells are too many or not distinct, or a word is no setting.
    """
    if study.grid is not None and study.rows is not None:
        found = _with_rows(study, flat_grid(study.grid))
    elif study.grid is not None:
        found = _grid(flat_grid(study.grid))
    elif study.cells is not None:
        found = [Point(case.label, case.settings, case.budget, case.against) for case in study.cells]
    elif study.changes is not None:
        found = _on_and_off(study.changes)
    elif study.random is not None:
        found = _random(study.random)
    else:
        assert study.optuna is not None, study
        found = _proposed(study.optuna, results)
    labels = [point.label for point in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"{study.name}: two cells are called {twice[0]!r}; give each its own label.")
    for point in found:
        if point.against is not None and (point.against not in labels or point.against == point.label):
            others = ", ".join(label for label in labels if label != point.label)
            raise ValueError(
                f"{study.name}: {point.label!r} is compared to {point.against!r}, which is no other cell; "
                f"known: {others}."
            )
    return found


def rivals(study: Study) -> dict[str, str]:
    """Label -> label of the cell that it is compared to, where that is not the study's base."""
    if study.cells is None and study.changes is None:
        return {}
    return {point.label: point.against for point in points(study, {}) if point.against is not None}


def alone(change: str) -> str:
    """Label of the cell with this change and no other."""
    return f"+ {change}"


def left_out(change: str) -> str:
    """Label of the cell with all changes but this one."""
    return f"all but {change}"


def is_open(study: Study) -> bool:
    """Whether results decide which cells come."""
    return study.optuna is not None


def overrides_of(point: Point) -> dict[str, Any]:
    """A point's settings as {dotted key: value}."""
    parsed = [parse_override(word) for word in point.settings]
    return {".".join(keys): value for keys, value in parsed}


def _grid(grid: dict[str, list[Any]]) -> list[Point]:
    size = math.prod(len(values) for values in grid.values())
    if size > MAX_CELLS:
        raise ValueError(f"grid: {size:,} cells; at most {MAX_CELLS:,} make sense. Take fewer values.")
    return [_point(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def _on_and_off(changes: Sequence[Change]) -> list[Point]:
    """No change, each alone, all together, and all but each, which is compared to all together."""
    every = [(change.label, change.settings) for change in changes]
    together = tuple(word for _, words in every for word in words)
    found = [Point(NONE, ())]
    found += [Point(alone(label), words) for label, words in every]
    found.append(Point(ALL, together))
    for label, _ in every:
        rest = tuple(word for other, words in every if other != label for word in words)
        found.append(Point(left_out(label), rest, against=ALL))
    return found


def _with_rows(study: Study, grid: dict[str, list[Any]]) -> list[Point]:
    """A grid over batch sizes as well, which are named by their rows."""
    sizes = batch_sizes(study)
    found = []
    for rows in sizes.rows:
        for point in _grid({SETTING: [rows * sizes.context_length], **grid}):
            others = point.label.partition(", ")[2]
            found.append(point._replace(label=f"{rows} rows, {others}"))
    return found


def _random(search: RandomSearch) -> list[Point]:
    source, found = random.Random(search.seed), []
    for _ in range(search.trials):
        found.append(_point({key: _draw(where, source) for key, where in search.space.items()}))
    return list(dict.fromkeys(found))  # few choices may be drawn twice


def _draw(where: Range, source: random.Random) -> Any:
    if where.choices:
        return source.choice(where.choices)
    assert where.low is not None, where
    assert where.high is not None, where
    if where.log:
        value = math.exp(source.uniform(math.log(where.low), math.log(where.high)))
    else:
        value = source.uniform(where.low, where.high)
    return (
        round(value) if where.whole else float(f"{value:.4g}")
    )  # a rate is known to four digits by its name


def _proposed(search: OptunaSearch, results: Results) -> list[Point]:
    try:
        import optuna
    except ImportError:
        raise ValueError("optuna search needs the 'search' extra: pip install 'scratchlm[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=search.seed))
    found: list[Point] = []
    while len(found) < search.trials:
        trials = [asked.ask() for _ in range(min(search.at_once, search.trials - len(found)))]
        drawn = [
            _point({key: _suggest(trial, key, where) for key, where in search.space.items()})
            for trial in trials
        ]
        found += drawn
        if any(point.label not in results for point in drawn):
            break  # the next round waits for these
        for trial, point in zip(trials, drawn, strict=True):
            value = results[point.label]
            failed = optuna.trial.TrialState.FAIL
            asked.tell(trial, state=failed) if math.isnan(value) else asked.tell(trial, value)
    return list(dict.fromkeys(found))


def _suggest(trial: Any, key: str, where: Range) -> Any:
    if where.choices:
        return where.choices[trial.suggest_categorical(key, range(len(where.choices)))]
    if where.whole:
        return trial.suggest_int(key, round(where.low or 0), round(where.high or 0), log=where.log)
    return float(f"{trial.suggest_float(key, where.low, where.high, log=where.log):.4g}")


def _point(values: Mapping[str, Any]) -> Point:
    """A point with the label that its values make: one value alone, or short keys with values."""
    words = tuple(f"{key}={toml(value)}" for key, value in values.items())
    if len(values) == 1:
        return Point(shown(next(iter(values.values()))), words)
    last = [key.rpartition(".")[2] for key in values]
    keys = last if len(set(last)) == len(last) else list(values)
    return Point(", ".join(f"{key} {shown(v)}" for key, v in zip(keys, values.values(), strict=True)), words)


def shown(value: Any) -> str:
    """A value for people: 0.001 -> "0.001", {"name": "rope", "theta": 1e4} -> "rope (theta 10000)"."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        rest = [f"{key} {shown(item)}" for key, item in value.items() if key != "name"]
        name = str(value.get("name", ""))
        return f"{name} ({', '.join(rest)})" if name and rest else name or ", ".join(rest)
    return str(value)


def toml(value: Any) -> str:
    """A value as it stands behind the = of a setting."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return "none" if value is None else repr(value) if isinstance(value, float) else json.dumps(value)
