r"""Results over sizes and rates come in; the best rate of each size, its law, and what size is enough go out.

    best      the bottom of a parabola, in the rate's logarithm, through the lowest point and its neighbours
    law       best = k * size ^ exponent, by least squares in logarithms
    rules     best(s) = best(s0) * (s / s0) ^ 0.5      and      ... ^ 1          from the smallest size s0
    enough    the largest size whose best cells are not clearly worse than the lowest ones

"Size" and "rate" stand for any setting of the cells and the one that is tuned (`tuned` of a study); the rules
are those for batch sizes. The best cell is chosen by the same numbers that are then compared, so all sizes
look a little better than they are, and all alike, for each has as many rates to choose from.

Source: square root, where the optimizer divides by the gradient's size: Malladi et al. 2022,
https://arxiv.org/abs/2205.10287; linear, for SGD: Goyal et al. 2017, https://arxiv.org/abs/1706.02677; a size
beyond which the same tokens teach less: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scratchlm.lab.batch_sizes import SETTING as BATCH
from scratchlm.lab.parabola import MIN_FIT, parabola_bottom
from scratchlm.lab.rows import Result
from scratchlm.lab.spec import Study
from scratchlm.lab.statistics import Interval, Spread, paired_interval, spread

NEARLY = 0.95
"""Share of the highest speed that counts as having reached it: single runs differ by a few per cent."""

Numbers = Mapping[str, Mapping[int, float]]
"""Label of a cell -> seed -> its number; without those that diverged or failed."""


class Group(NamedTuple):
    """The cells that differ in the tuned setting alone."""

    label: str
    """What they share, "8 rows"."""
    size: float | None
    """The number that tells groups apart; None where that is no single number."""
    values: list[float]
    """Of the tuned setting, rising; those whose runs came to an end."""
    means: list[float]
    """Over the seeds, of each value."""
    winner: str
    """Label of the lowest cell."""
    tried: float
    """Its value."""
    fitted: float | None
    """The parabola's bottom; None where the lowest value is the smallest or the largest of all."""
    metric: Spread
    """Of the lowest cell."""
    difference: Interval | None
    """To the lowest group, each at its best; None for that group itself, or without a common seed."""
    tokens_per_second: float | None

    @property
    def best(self) -> float:
        """The best value that is known."""
        return self.tried if self.fitted is None else self.fitted


class Tuning(NamedTuple):
    """What a tuned study says."""

    key: str
    """The tuned setting."""
    along: str | None
    """The setting whose numbers tell the groups apart; None where they differ otherwise."""
    groups: list[Group]
    """By size, or in the order of the cells."""
    lowest: Group
    exponent: float | None
    """Of the law; None where there are no sizes, or one only."""
    enough: Group | None
    """None where there are no sizes, or nothing is known of the noise."""

    @property
    def winners(self) -> list[str]:
        """The lowest cell of each group."""
        return [group.winner for group in self.groups]

    def ruled(self, group: Group, power: float) -> float | None:
        """What a rule says of a group, from the best value of the smallest."""
        first = self.groups[0]
        if first.size is None or group.size is None:
            return None
        return first.best * (group.size / first.size) ** power


def tuning_of(study: Study, results: Sequence[Result], numbers: Numbers) -> Tuning | None:
    """Weigh a study with a tuned setting; None for others, or before any run has come to an end.

    Args:
        study: In one size.
        results: Rows of rows.csv, in the order of the cells.
        numbers: Of its metric.

    Raises:
        ValueError: The tuned setting is no number somewhere.
    """
    if study.tuned is None:
        return None
    overrides: dict[str, dict[str, Any]] = {r.label: json.loads(r.overrides) for r in results}
    labels: dict[str, list[str]] = {}
    for label, settings in overrides.items():
        others = {key: value for key, value in settings.items() if key != study.tuned}
        value = settings.get(study.tuned)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{study.name}, {label!r}: {study.tuned}={value!r} is tuned; give numbers.")
        labels.setdefault(json.dumps(others, sort_keys=True), []).append(label)
    found = [
        _group(json.loads(others), own, study.tuned, overrides, results, numbers)
        for others, own in labels.items()
        if any(numbers[label] for label in own)
    ]
    if not found:
        return None
    keys = {tuple(json.loads(others)) for others in labels}
    along = keys.pop()[0] if len(keys) == 1 and all(group.size is not None for group in found) else None
    if along is not None:
        found.sort(key=lambda group: group.size or 0.0)
    lowest = min(found, key=lambda group: group.metric.mean)
    found = [_compared(group, lowest, numbers) for group in found]
    lowest = next(group for group in found if group.winner == lowest.winner)
    exponent = _exponent(found) if along is not None else None
    return Tuning(
        study.tuned, along, found, lowest, exponent, _enough(found, lowest) if along is not None else None
    )


def _group(
    others: Mapping[str, Any],
    labels: Sequence[str],
    tuned: str,
    overrides: Mapping[str, Mapping[str, Any]],
    results: Sequence[Result],
    numbers: Numbers,
) -> Group:
    spreads = {label: spread(list(numbers[label].values())) for label in labels if numbers[label]}
    known = sorted((float(overrides[label][tuned]), label) for label in spreads)
    points = [(value, spreads[label].mean) for value, label in known]
    tried, winner = min(known, key=lambda one: spreads[one[1]].mean)
    inside = points[0][0] < tried < points[-1][0] and points[0][0] > 0
    fitted = parabola_bottom(points, log=True, span=MIN_FIT) if inside else None
    speeds = [r.tokens_per_second for r in results if r.label == winner and r.tokens_per_second]
    sizes = [v for v in others.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    return Group(
        label=shared_label(labels) or winner,
        size=float(sizes[0]) if len(others) == 1 and sizes and sizes[0] > 0 else None,
        values=[value for value, _ in points],
        means=[mean for _, mean in points],
        winner=winner,
        tried=tried,
        fitted=fitted,
        metric=spreads[winner],
        difference=None,
        tokens_per_second=sum(speeds) / len(speeds) if speeds else None,
    )


def shared_label(labels: Sequence[str]) -> str:
    """What labels have in common: "8 rows, lr 0.1" and "8 rows, lr 0.2" -> "8 rows"."""
    parts = [label.split(", ") for label in labels]
    return ", ".join(part for part in parts[0] if all(part in other for other in parts))


def _compared(group: Group, lowest: Group, numbers: Numbers) -> Group:
    """The group with its paired difference to the lowest one."""
    if group.winner == lowest.winner:
        return group
    own, other = numbers[group.winner], numbers[lowest.winner]
    pairs = [own[seed] - other[seed] for seed in own if seed in other]
    return group._replace(difference=paired_interval(pairs)) if pairs else group


def _exponent(groups: Sequence[Group]) -> float | None:
    """The slope of log(best) over log(size)."""
    import numpy as np

    if len(groups) < 2 or any(group.best <= 0 for group in groups):
        return None
    x = np.array([math.log(group.size or 1.0) for group in groups])
    return float(np.polyfit(x, [math.log(group.best) for group in groups], 1)[0])


def _enough(groups: Sequence[Group], lowest: Group) -> Group | None:
    """Go up from the lowest size while the next one is not clearly worse."""
    found = lowest
    for group in groups[groups.index(lowest) + 1 :]:
        if group.difference is None or group.difference.half_width is None:
            return None
        if group.difference.is_clear:
            break
        found = group
    return found


def tuning_words(tuning: Tuning, unit: str) -> list[str]:
    """What a tuned study says, in sentences."""
    lowest, name = tuning.lowest, tuning.key.rpartition(".")[2]
    seeds = "1 seed" if lowest.metric.count == 1 else f"mean of {lowest.metric.count} seeds"
    found = f"{lowest.metric.mean:.3f} {unit} at {name} {lowest.tried:g} ({seeds})"
    said = [f"{lowest.label} is lowest with {found}."]
    each = [f"{g.best:.2g} for {g.label}{'' if g.fitted else ' (at the edge)'}" for g in tuning.groups]
    said.append(f"Best {name}: {', '.join(each)}.")
    if any(group.fitted is None for group in tuning.groups):
        said.append("At the edge: the lowest is the smallest or largest tried, so the best may lie beyond.")
    if tuning.exponent is not None:
        rules = "; the square-root rule says 0.5, the linear rule 1" if tuning.along == BATCH else ""
        said.append(f"Over the sizes the best {name} goes as size^{tuning.exponent:.2f}{rules}.")
    worse = [_signed(group) for group in tuning.groups if group.difference is not None]
    if tuning.along != BATCH:
        return said + ([f"Each at its best, against {lowest.label}: {', '.join(worse)}."] if worse else [])
    return said + _batch_words(tuning, worse)


def _batch_words(tuning: Tuning, worse: Sequence[str]) -> list[str]:
    """How many rows are enough, and what more of them bring in speed."""
    said, enough, same = [], tuning.enough, "the same tokens teach as much, within noise"
    against = f"against {tuning.lowest.label}, each at its best: {', '.join(worse)}" if worse else ""
    if enough is None:
        said += [f"Nobody can tell from one seed where more rows stop helping; {against}."] if worse else []
    elif enough is tuning.groups[-1]:
        said.append(f"Up to {enough.label}, the most, {same}; {against}.")
    else:
        said.append(f"Up to {enough.label} {same}, then less; {against}.")
    speeds = [(group, group.tokens_per_second) for group in tuning.groups if group.tokens_per_second]
    if len(speeds) > 1:
        highest = max(speed for _, speed in speeds)
        full, speed = next(pair for pair in speeds if pair[1] >= NEARLY * highest)
        first, slowest = speeds[0]
        both = [f"{slowest:,.0f} with {first.label}", f"{speed:,.0f} with {full.label}"]
        shown = ", ".join(dict.fromkeys(both))
        more = "" if full is tuning.groups[-1] else "; more rows are not faster"
        said.append(f"Tokens per second: {shown}{more}.")
    return said


def _signed(group: Group) -> str:
    difference = group.difference
    assert difference is not None, group
    noise = "" if difference.half_width is None else f" +- {difference.half_width:.3f}"
    return f"{group.label} {difference.mean:+.3f}{noise}"
