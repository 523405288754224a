"""Rows and learning curves come in, drawings for the report come out, in the page's own colours.

learning     the mean of the seeds over steps, tokens, operations or seconds; a band from lowest to highest
axis         the final numbers along one setting, the parabola's bottom and the edge of stability marked
ends         a line per label: each seed a dot, their mean a bar
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.lab.analysis import Analysis, Axis
from scratchlm.lab.rows import Result
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import INK, MUTED, PAPER, SERIES, Shape, new_figure, style
from scratchlm.study.run_record import column, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Over = Literal["step", "tokens", "flops", "seconds"]
OVER: dict[Over, str] = {
    "step": "steps",
    "tokens": "tokens seen",
    "flops": "floating-point operations",
    "seconds": "seconds of training",
}
"""What a curve is drawn over -> the words below the axis."""
START_SHARE = 0.1
"""First part of each run that may lie above the picture: it would squeeze the rest."""
FAR = 5.0
"""Runs whose ends differ by more than this factor are drawn over a logarithmic axis: the shortest is seen."""
REACH = 1.0
"""The floor is drawn if it lies no farther below the numbers than they span."""
LOG_RATIO = 100.0
"""Losses that span more than this are drawn on a logarithmic scale."""


class Learning(NamedTuple):
    """The curves of one label; NaN where a seed has no number."""

    label: str
    places: dict[Over, Float[np.ndarray, " points"]]
    losses: Float[np.ndarray, "seeds points"]
    diverged: bool


def read_learning(folder: Path, results: Sequence[Result], metric: str = "loss") -> list[Learning]:
    """The learning curves of a study's runs in its metric, label by label.

    Where some seeds of a label came to their end, only those are its curve.
    """
    found = []
    for label in dict.fromkeys(result.label for result in results):
        own = [result for result in results if result.label == label]
        whole = [result for result in own if result.state == "finished"] or own
        runs = [(result, _rows(folder / "cells" / result.cell)) for result in whole]
        runs = [(result, rows) for result, rows in runs if rows]
        if not runs:
            continue
        common = sorted(set.intersection(*({row["step"] for row in rows} for _, rows in runs)))
        kept = [[row for row in rows if row["step"] in set(common)] for _, rows in runs]
        if not common:
            continue
        result = runs[0][0]
        tokens = column(kept[0], "tokens")
        each = result.flops / result.tokens if result.flops and result.tokens else 0.0
        places: dict[Over, Float[np.ndarray, " points"]] = {
            "step": np.array(common, dtype=np.float64),
            "tokens": tokens,
            "flops": tokens * each,
            "seconds": np.mean([column(rows, "seconds") for rows in kept], axis=0),
        }
        losses = np.array([column(rows, metric) for rows in kept])
        found.append(Learning(label, places, losses, any(result.diverged for result in own)))
    return found


def learning_figure(
    curves: Sequence[Learning], over: Over, floor: float | None, unit: str, shape: Shape
) -> Drawing:
    """Draw the validation losses of all labels over `over`."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.7, "narrow": 3.1}[shape])
    for index, curve in enumerate(curves):
        colour, dashes = look(index)
        places = curve.places[over]
        axes.plot(places, curve.losses.mean(axis=0), color=colour, linewidth=1.7, linestyle=dashes, zorder=3)
        if len(curve.losses) > 1:
            low, high = curve.losses.min(axis=0), curve.losses.max(axis=0)
            axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    if floor is not None and floor > 0:
        axes.axhline(floor, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    style(axes, f"loss, {unit}", num_ticks=6)
    _vertical(axes, curves, over, floor)
    ends = [float(curve.places[over][-1]) for curve in curves]
    if min(ends) > 0 and max(ends) > FAR * min(ends):
        written = axes.xaxis.get_major_formatter()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(written)
        axes.minorticks_off()
    axes.set_xlabel(OVER[over], color=MUTED)
    if over == "flops":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("e+", "e") if value else "0")
    return drawn(
        figure, f"learning-{over}-{shape}", f"Validation loss over {OVER[over]}, a line for each cell"
    )


def axis_figure(
    analysis: Analysis, axis: Axis, results: Sequence[Result], metric: str, shape: Shape
) -> Drawing:
    """Draw the final numbers along the study's setting; what diverged stands at the upper edge."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.4, "narrow": 2.9}[shape])
    value_of = dict(zip(axis.labels, axis.values, strict=True))
    ended = [
        (value_of[r.label], r.metric(metric))
        for r in results
        if r.state == "finished" and r.label in value_of
    ]
    known = [(value, number) for value, number in ended if number is not None]
    means = [(value_of[line.label], line.metric.mean) for line in analysis.lines if line.metric is not None]
    means.sort()
    axes.plot(*zip(*means, strict=True), color=SERIES[0], linewidth=1.6, zorder=3)
    axes.plot(*zip(*known, strict=True), "o", color=SERIES[0], markersize=4.2, zorder=4, clip_on=False)
    numbers = np.array([number for _, number in known])
    log = numbers.min() > 0 and numbers.max() / numbers.min() > LOG_RATIO
    style(axes, f"{analysis.unit} at the end", num_ticks=6)
    if log:
        axes.set_yscale("log")
    if axis.log:
        axes.set_xscale("log")
    axes.set_xticks(
        axis.values, [f"{value:g}" for value in axis.values], rotation=0 if shape == "wide" else 40
    )
    axes.minorticks_off()
    axes.margins(x=0.05)
    if analysis.floor and in_reach(analysis.floor, numbers.min(), numbers.max()):
        axes.axhline(analysis.floor, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    bottom, top = axes.get_ylim()
    lost = [value_of[line.label] for line in analysis.lines if line.num_diverged]
    axes.plot(
        lost,
        [top] * len(lost),
        "x",
        color=SERIES[1],
        markersize=8,
        markeredgewidth=2,
        zorder=5,
        clip_on=False,
    )
    axes.set_ylim(bottom, top)
    _mark(axes, axis.best, "best by fit", SERIES[2], height=0.98)
    if axis.unstable is not None:
        last = axis.unstable if axis.stable is None else (axis.stable * axis.unstable) ** 0.5
        _mark(axes, last if axis.log else axis.unstable, "edge of stability", SERIES[1], height=0.88)
    axes.set_xlabel(axis.key, color=MUTED)
    return drawn(figure, f"axis-{shape}", f"Final {analysis.unit} over {axis.key}")


def ends_figure(analysis: Analysis, results: Sequence[Result], metric: str, shape: Shape) -> Drawing:
    """Draw each label's final numbers: a dot for each seed, a bar at their mean, a line at the base."""
    lines = analysis.lines
    height = max(1.4, 0.34 * len(lines) + 0.7)
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height=height)
    for place, line in enumerate(reversed(lines)):
        own = [r.metric(metric) for r in results if r.label == line.label and r.state == "finished"]
        numbers = [number for number in own if number is not None]
        axes.plot(numbers, [place] * len(numbers), "o", color=SERIES[0], alpha=0.55, markersize=5, zorder=3)
        if line.metric is not None:
            axes.plot([line.metric.mean], [place], "|", color=INK, markersize=15, markeredgewidth=2, zorder=4)
        if line.label == analysis.base and line.metric is not None:
            axes.axvline(line.metric.mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    legend = ": a dot for each seed, a bar at the mean" if shape == "wide" else ""
    style(axes, f"{analysis.unit} at the end{legend}", num_ticks=6)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(lines)), [line.label for line in reversed(lines)])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.margins(x=0.06)
    return drawn(figure, f"ends-{shape}", f"Final {analysis.unit} of each cell")


def in_reach(floor: float, low: float, high: float) -> bool:
    """Whether a floor lies near enough below the numbers to be drawn; far below it would squeeze them."""
    return low - floor <= REACH * max(high - low, 0.05)


def look(index: int) -> tuple[str, object]:
    """Colour and dashes of the line number `index`: from the ninth on colours come again, dashed."""
    return SERIES[index % len(SERIES)], "-" if index < len(SERIES) else (0, (4, 2))


def _rows(run: Path) -> list[dict]:
    return read_run(run).valid if (run / "metrics.jsonl").is_file() else []


def _mark(axes: "Axes", value: float | None, words: str, colour: str, *, height: float) -> None:
    """Draw a line at a value; its name stands at `height`, a share of the picture's."""
    if value is None:
        return
    axes.axvline(value, color=colour, linewidth=1.2, linestyle=(0, (2, 2)), zorder=2)
    axes.annotate(
        words, (value, height), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
        ha="left", va="top", color=colour, fontsize=9, zorder=6,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _vertical(axes: "Axes", curves: Sequence[Learning], over: Over, floor: float | None) -> None:
    """From a little below the lowest to the highest behind the first parts; logarithmic if they span much.

    Labels of which a run diverged do not count: they leave the picture, and the others can be told apart.
    """
    curves = [curve for curve in curves if not curve.diverged] or curves
    values = np.concatenate([curve.losses.ravel() for curve in curves])
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if not len(positive):
        return
    if positive.max() / positive.min() > LOG_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(max(positive.min() / 3, 1e-12), min(positive.max() * 3, 1e6))
        axes.minorticks_off()
        return
    places = [curve.places[over] for curve in curves]
    late = np.concatenate(
        [c.losses[:, x >= START_SHARE * x[-1]].ravel() for c, x in zip(curves, places, strict=True)]
    )
    late = late[np.isfinite(late)]
    shown = late if len(late) else values
    low, high = float(shown.min()), float(shown.max())
    low = floor if floor and in_reach(floor, low, high) else low
    room = max(high - low, 0.05)
    axes.set_ylim(low - 0.06 * room, high + 0.04 * room)
