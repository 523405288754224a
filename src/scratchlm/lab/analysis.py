"""Rows come in, what they say comes out: mean and spread per label, difference to the base, a plain verdict.

    better by 0.013 +- 0.004 nats per token       the interval of the paired differences leaves 0 out
    within noise (-0.002 +- 0.010)                it does not
    lower by 0.013 nats per token (one seed)      nobody can tell

Runs that diverged are counted apart and in no mean. With k labels there are k - 1 comparisons; at 95 % one in
twenty comes out "clear" by chance, so a narrow one deserves more seeds.
"""

import json
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scratchlm.lab.beyond import beyond_words
from scratchlm.lab.coordinates import coordinate_words
from scratchlm.lab.gains import Gain, gain_words, gains_of
from scratchlm.lab.parabola import MIN_FIT, parabola_bottom
from scratchlm.lab.rows import Result
from scratchlm.lab.search import rivals
from scratchlm.lab.spec import Study
from scratchlm.lab.statistics import Interval, Spread, paired_interval, spread
from scratchlm.lab.tuning import Tuning, tuning_of, tuning_words

Verdict = Literal["base", "better", "worse", "within noise", "one seed", "diverged", "failed"]


class Line(NamedTuple):
    """What is known of one label."""

    label: str
    metric: Spread | None
    """None where no run came to an end."""
    num_diverged: int
    num_failed: int
    difference: Interval | None
    """To what it is compared to, over the seeds that both have."""
    verdict: Verdict
    words: str
    """The verdict in words."""
    rival: str
    """Label of what it is compared to: the study's base, unless the study says otherwise."""


class Axis(NamedTuple):
    """A study along one number: where it is best, and where training breaks."""

    key: str
    values: list[float]
    labels: list[str]
    log: bool
    best: float | None
    """Bottom of the parabola; None where the points have none inside."""
    stable: float | None
    """Largest value above the best at which no seed diverged."""
    unstable: float | None
    """Smallest value above the best at which one did."""


class Analysis(NamedTuple):
    """Everything that report and tables say."""

    lines: list[Line]
    base: str
    unit: str
    floor: float | None
    axis: Axis | None
    conclusion: str
    gains: list[Gain]
    """Of a study of changes: what each brings."""
    tuning: Tuning | None
    """Of a study with a tuned setting: the best values, and what is compared at its best."""

    @property
    def against(self) -> str:
        """What the cells are compared to, in a word or two."""
        return self.base if all(line.rival == self.base for line in self.lines) else "the cell named"


def analyse(study: Study, results: Sequence[Result], unit: str) -> Analysis:
    """Weigh the results of a study.

    Args:
        study: Which metric, which base.
        results: Rows of rows.csv, in the order of the cells.
        unit: Of the metric.

    Raises:
        ValueError: There are no rows.
    """
    if not results:
        raise ValueError(f"{study.name}: no run has ended yet; there is nothing to weigh.")
    labels = list(dict.fromkeys(result.label for result in results))
    tuning = tuning_of(study, results, {label: _by_seed(study, results, label) for label in labels})
    base = study.base if study.base in labels else tuning.lowest.winner if tuning else labels[0]
    others = {label: rival for label, rival in rivals(study).items() if rival in labels}
    lines = [_line(study, label, others.get(label, base), results, unit) for label in labels]
    if others:
        lines = [_with_rival(line) if line.label != base else line for line in lines]
    floors = {result.floor(study.metric) for result in results if result.floor(study.metric) is not None}
    axis = axis_of(study, lines, results)
    floor = floors.pop() if len(floors) == 1 else None
    gains = gains_of(study, {line.label: line.difference for line in lines})
    tuned = tuning_words(tuning, unit) if tuning else []
    measured = [words for words in (beyond_words(results), coordinate_words(results)) if words]
    conclusion = " ".join([_conclusion(lines, base, axis, gains, tuned), *measured])
    return Analysis(lines, base, unit, floor, axis, conclusion, gains, tuning)


def _with_rival(line: Line) -> Line:
    """Name what a line is compared to, in a study where that differs."""
    return line if line.difference is None else line._replace(words=f"against {line.rival}, {line.words}")


def _line(study: Study, label: str, base: str, results: Sequence[Result], unit: str) -> Line:
    own, other = (_by_seed(study, results, name) for name in (label, base))
    ours = [result for result in results if result.label == label]
    num_diverged = sum(result.diverged for result in ours)
    num_failed = sum(result.state == "failed" for result in ours)
    known = spread(list(own.values())) if own else None
    common = [seed for seed in own if seed in other]
    difference = None
    if label != base and common:
        difference = paired_interval([own[seed] - other[seed] for seed in common])
    verdict, words = _judge(label == base, known, difference, num_diverged, num_failed, unit)
    return Line(label, known, num_diverged, num_failed, difference, verdict, words, base)


def _by_seed(study: Study, results: Sequence[Result], label: str) -> dict[int, float]:
    found = {}
    for result in results:
        value = result.metric(study.metric)
        if result.label == label and result.state == "finished" and value is not None:
            found[result.seed] = value
    return found


def _judge(
    is_base: bool, known: Spread | None, difference: Interval | None, diverged: int, failed: int, unit: str
) -> tuple[Verdict, str]:
    if known is None:
        many = f"{diverged} of {diverged + failed}" if diverged else ""
        return ("diverged", f"diverged ({many} runs)") if diverged else ("failed", "failed")
    also = f"; {diverged} of {diverged + failed + known.count} runs diverged" if diverged else ""
    if is_base:
        return "base", f"what the others are compared to{also}"
    if difference is None:
        return "one seed", f"has no seed in common with the base{also}"
    size = figure(abs(difference.mean))
    if difference.half_width is None:
        side = "lower" if difference.mean < 0 else "higher"
        return "one seed", f"{side} by {size} {unit} (one seed){also}"
    if not difference.is_clear:
        return (
            "within noise",
            f"within noise ({difference.mean:+.3f} +- {difference.half_width:.3f} {unit}){also}",
        )
    side: Verdict = "better" if difference.mean < 0 else "worse"
    return side, f"{side} by {size} +- {difference.half_width:.3f} {unit}{also}"


def axis_of(study: Study, lines: Sequence[Line], results: Sequence[Result]) -> Axis | None:
    """The number along which the study goes; None where its cells differ otherwise."""
    overrides = {result.label: json.loads(result.overrides) for result in results}
    keys = {key for settings in overrides.values() for key in settings}
    if len(keys) != 1 or len(lines) < MIN_FIT:
        return None
    key = keys.pop()
    values = [overrides[line.label].get(key) for line in lines]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    if len(set(values)) < len(values):  # cells that differ in their budgets
        return None
    points = sorted(zip(values, lines, strict=True), key=lambda point: point[0])
    log = points[0][0] > 0 and points[-1][0] / points[0][0] >= 10
    known = [(value, line.metric.mean) for value, line in points if line.metric is not None]
    best = parabola_bottom(known, log=log) if known else None
    lowest = min(known, key=lambda point: point[1])[0] if known else -math.inf
    above = [(value, line) for value, line in points if value > lowest]
    unstable = next((value for value, line in above if line.num_diverged), None)
    stable = [
        value for value, line in points if not line.num_diverged and (unstable is None or value < unstable)
    ]
    labels = [line.label for _, line in points]
    return Axis(key, [value for value, _ in points], labels, log, best, max(stable, default=None), unstable)


def _conclusion(
    lines: Sequence[Line], base: str, axis: Axis | None, gains: Sequence[Gain], tuned: Sequence[str]
) -> str:
    """A few sentences for people who read nothing else; of a tuned study `tuned` says what is compared."""
    known = [line for line in lines if line.metric is not None]
    if not known:
        return "No run came to an end, so nothing can be said."
    said = [*tuned] if tuned else _compared(known, base, gains)
    for title, kind in (("Diverged", "diverged"), ("Failed", "failed")):
        names = [line.label for line in lines if getattr(line, f"num_{kind}")]
        said += [f"{title}: {', '.join(names)}."] if names else []
    if axis is not None:
        said.append(_axis_words(axis))
    return " ".join(said)


def _compared(known: Sequence[Line], base: str, gains: Sequence[Gain]) -> list[str]:
    """The lowest cell, then the others."""
    best = min(known, key=lambda line: line.metric.mean)  # type: ignore[union-attr] - the caller asked
    assert best.metric is not None, best
    seeds = "1 seed" if best.metric.count == 1 else f"mean of {best.metric.count} seeds"
    said = [f"{best.label} is lowest with {figure(best.metric.mean)} ({seeds})"]
    named = "" if best.words.startswith("against ") else f"against {best.rival}, "
    said[0] += "." if best.label == base else f": {named}{best.words}."
    if gains:
        return said + gain_words(gains)
    return said + (
        _rungs(known, base) if any(line.rival != base for line in known) else _groups(known, best, base)
    )


def _groups(known: Sequence[Line], best: Line, base: str) -> list[str]:
    """The cells by verdict, all compared to one."""
    said = []
    groups = (("within noise", f"Within noise of {base}"), ("worse", "Worse"), ("one seed", "One seed alone"))
    for verdict, title in groups:
        others = [line for line in known if line.verdict == verdict and line is not best]
        shown = [f"{line.label} ({_signed(line)})" for line in others]
        said += [f"{title}: {', '.join(shown)}."] if shown else []
    return said


def _rungs(known: Sequence[Line], base: str) -> list[str]:
    """The cells in their order, each compared to its own rival."""
    steps = [
        f"{line.label} against {line.rival} {_signed(line)}"
        + (" (within noise)" if line.verdict == "within noise" else "")
        for line in known
        if line.label != base and line.difference is not None
    ]
    return [f"Rung by rung: {'; '.join(steps)}."] if steps else []


def _signed(line: Line) -> str:
    if line.difference is None:
        return "no seed in common"
    noise = "" if line.difference.half_width is None else f" +- {line.difference.half_width:.3f}"
    return f"{line.difference.mean:+.3f}{noise}"


def figure(value: float) -> str:
    """A number with three places; very small and very large ones with their power of ten."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _axis_words(axis: Axis) -> str:
    name = axis.key.rpartition(".")[2]
    fit = (
        f"A parabola through the points around the lowest puts the best {name} at {axis.best:.3g}."
        if axis.best is not None
        else f"The points around the lowest have no bottom between them, so no best {name} is fitted."
    )
    if axis.unstable is None:
        return f"{fit} No {name} up to {max(axis.values):g} diverged."
    where = "" if axis.stable is None else f" between {axis.stable:g} and {axis.unstable:g}"
    return f"{fit} The edge of stability lies{where or f' below {axis.unstable:g}'}."
