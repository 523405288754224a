"""Runs come in, one picture of their learning curves comes out: a PNG that can go into a talk as it is.

    line with dots   validation loss; of runs that differ by their seed alone, the mean
    band             lowest to highest of those seeds
    thin line        training loss, smoothed
    grey band        what a reference expects (reference_curve.py), where one is given

Each line carries its name and its last value at its right end, so nobody has to look up a legend.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.runtime import replace_atomically
from scratchlm.study import units
from scratchlm.study.compare import same_settings, short_names
from scratchlm.study.plots import smooth
from scratchlm.study.reference_curve import ReferenceCurve
from scratchlm.study.run_record import Row, RunRecord, column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]
Over = Literal["tokens", "step", "seconds"]
AXES: dict[Over, str] = {"tokens": "tokens seen", "step": "steps", "seconds": "training time"}
"""What a curve is drawn over -> the words below the axis."""

PAPER, INK, MUTED, LINE, GREY = "#fcfcfa", "#1d2023", "#666b72", "#e2e2dc", "#b9bfc4"
COLOURS = ("#0f6f78", "#c2571a", "#5b4a9c", "#b03a6b", "#2f6db5", "#5f7f1f", "#8a5a00", "#444b54")
"""Told apart on paper and by colour-blind readers; from the ninth group on they come again, dashed."""
INCHES = (9.6, 5.4)
DOTS_PER_INCH = 200
FEWEST_DOTS = 40
"""A curve with more validations than this is drawn without dots."""
START_SHARE = 0.1
"""First part of the longest run that may lie above the picture: it would squeeze the rest."""
MAX_TICKS = 6
MAX_NAME = 26
"""Characters that fit right of the picture."""
LABEL_GAP = 0.042
"""Least distance between two names, as a share of the height (10-point text)."""


class Group(NamedTuple):
    """Runs that differ by their seed alone."""

    name: str
    records: list[RunRecord]


class End(NamedTuple):
    """The right end of a line."""

    place: float
    loss: float | None
    """None where there never was a finite one."""
    words: str
    colour: str


def plot_runs(
    path: Path,
    records: Sequence[RunRecord],
    *,
    over: Over = "tokens",
    reference: ReferenceCurve | None = None,
) -> None:
    """Draw the losses of several runs into one PNG.

    Args:
        path: File to write, atomically.
        records: The runs, in the order of the colours.
        over: What they are drawn over.
        reference: What is expected, drawn behind them; not over seconds, which it does not know.

    Raises:
        ValueError: No run has a validation yet.
    """
    from matplotlib.figure import Figure

    groups = [group for group in grouped(records) if any(record.valid for record in group.records)]
    if not groups:
        raise ValueError("none of these runs has been validated yet; nothing can be drawn.")
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, facecolor=PAPER)
    axes = figure.add_axes((0.062, 0.115, 0.72, 0.745), facecolor=PAPER)
    if reference is not None and over != "seconds":
        _draw_reference(axes, reference, over)
    ends = [_draw_group(axes, group, index, over) for index, group in enumerate(groups)]
    _frame(axes, groups, over)
    _name_lines(axes, ends)
    figure.text(0.018, 0.945, "Validation loss", fontsize=15, fontweight="bold", color=INK)
    figure.text(0.018, 0.898, _subtitle(groups, reference, over), fontsize=9.5, color=MUTED)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=PAPER)


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Put runs that differ by their seed alone together, and give each group a name that tells it apart."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(json.dumps(same_settings(record.config), sort_keys=True), []).append(record)
    if all(len(own) == 1 for own in found.values()):
        return [
            Group(name, [record])
            for name, record in zip(short_names([record.folder for record in records]), records, strict=True)
        ]
    return [Group(_group_name(own), own) for own in found.values()]


def _group_name(records: Sequence[RunRecord]) -> str:
    """What the folders' names have in common: [adamw-seed0, adamw-seed1] -> "adamw, 2 seeds"."""
    names = [record.folder.resolve().name for record in records]
    if len(names) == 1:
        return names[0]
    parts = [re.split(r"[-_. ]+", name) for name in names]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    shared = "-".join(column[0] for column in same if column[0] != "seed") or records[0].name
    return f"{shared}, {len(names)} seeds"


def _draw_group(axes: "Axes", group: Group, index: int, over: Over) -> End:
    """Draw one group; return where its line ends, and what shall stand there."""
    colour = COLOURS[index % len(COLOURS)]
    style = "-" if index < len(COLOURS) else (0, (4, 2))
    for record in group.records:
        places, values = _smoothed(_points(record.train, over))
        if len(places) > 1:
            axes.plot(places, values, color=colour, linewidth=0.8, alpha=0.4, zorder=2)
    places, losses = _shared(group, over)
    if len(group.records) > 1:
        low, high = losses.min(axis=0), losses.max(axis=0)
        axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0, zorder=3)
    mean = losses.mean(axis=0)
    marker = {"marker": "o", "markersize": 3.8} if len(places) <= FEWEST_DOTS else {}
    axes.plot(places, mean, color=colour, linewidth=1.9, linestyle=style, zorder=4, clip_on=True, **marker)
    name = (
        group.name if len(group.name) <= MAX_NAME else f"{group.name[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    )
    finite = np.flatnonzero(np.isfinite(mean))
    if not len(finite):
        return End(0.0, None, f"diverged  {name}", colour)
    words = f"{mean[-1]:.3f}" if np.isfinite(mean[-1]) else "diverged"
    return End(float(places[finite[-1]]), float(mean[finite[-1]]), f"{words}  {name}", colour)


def _shared(
    group: Group, over: Over
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "runs points"]]:
    """The losses of all runs of a group at the steps that they have in common, and where these lie."""
    steps = [{row["step"]: row for row in record.valid} for record in group.records if record.valid]
    common = [step for step in steps[0] if all(step in own for own in steps)] or list(steps[0])
    rows = [[own.get(step, {}) for step in common] for own in steps]
    places = np.nanmean(np.array([column(own, over) for own in rows]), axis=0)
    return places, np.array([column(own, "loss") for own in rows])


def _points(rows: list[Row], over: Over) -> Points:
    places, values = column(rows, over), column(rows, "loss")
    keep = np.isfinite(places) & np.isfinite(values)
    return places[keep], values[keep]


def _smoothed(points: Points) -> Points:
    return points[0], smooth(points[1])


def _draw_reference(axes: "Axes", reference: ReferenceCurve, over: Over) -> None:
    expected = reference.expected
    places = [at.tokens if over == "tokens" else at.step for at in expected]
    low, high = ([at.mean + sign * at.tolerance for at in expected] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=GREY, alpha=0.45, linewidth=0, zorder=1)
    axes.plot(places, [at.mean for at in expected], color=GREY, linewidth=1.2, zorder=1)


def _frame(axes: "Axes", groups: Sequence[Group], over: Over) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    axes.set_ylim(*_vertical_range(groups, over))
    axes.set_xlim(left=0)
    axes.margins(x=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=MUTED, pad=6)
    if over == "seconds":
        axes.xaxis.set_major_locator(MultipleLocator(_time_step(axes.get_xlim()[1])))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(MAX_TICKS, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    shown = units.duration if over == "seconds" else _count
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value) if value else "0"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(AXES[over], fontsize=9.5, color=MUTED, labelpad=6)


def _time_step(span: float) -> float:
    """Seconds between ticks, such as people count time: 160 s -> 30 s, two hours -> 20 min."""
    steps = [
        1,
        2,
        5,
        10,
        15,
        30,
        *(60 * n for n in (1, 2, 5, 10, 20, 30)),
        *(3600 * n for n in (1, 2, 6, 12)),
    ]
    return next((float(step) for step in steps if span / step <= MAX_TICKS), 86_400.0 * math.ceil(span / 6e5))


def _count(value: float) -> str:
    number, _, unit = units.count(value).partition(" ")
    return f"{float(number.replace(',', '')):g} {unit}".rstrip()


def _vertical_range(groups: Sequence[Group], over: Over) -> tuple[float, float]:
    """From a little below the lowest loss to the highest behind the first part of the run."""
    curves = [
        curve
        for group in groups
        for record in group.records
        for curve in (_points(record.valid, over), _smoothed(_points(record.train, over)))
        if len(curve[0])
    ]
    start = START_SHARE * max(float(places[-1]) for places, _ in curves)
    # a run that ended before that is shown from its middle on
    joined = np.concatenate([values[places >= min(start, places[-1] / 2)] for places, values in curves])
    joined = joined[np.isfinite(joined)]
    low, high = (float(joined.min()), float(joined.max())) if len(joined) else (0.0, 1.0)
    room = max(high - low, 0.05)
    return max(0.0, low - 0.06 * room), high + 0.04 * room


def _name_lines(axes: "Axes", ends: Sequence[End]) -> None:
    """Write each line's name and last value right of the picture, moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    losses = [top if end.loss is None else min(max(end.loss, bottom), top) for end in ends]
    heights = [(loss - bottom) / (top - bottom) for loss in losses]
    order = sorted(range(len(ends)), key=lambda index: heights[index])
    spread = _apart([heights[index] for index in order], LABEL_GAP)
    for index, height in zip(order, spread, strict=True):
        end = ends[index]
        arrow = {"arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "alpha": 0.55, "shrinkB": 3}
        axes.annotate(
            end.words, (end.place, losses[index]), xytext=(1.022, height), textcoords="axes fraction",
            fontsize=10, color=end.colour, va="center", annotation_clip=False,
            arrowprops=None if end.loss is None else arrow,
        )  # fmt: skip


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted heights apart until neighbours are `gap` away, by as little as two passes can."""
    moved = list(heights)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    middle = (sum(moved) - sum(heights)) / max(1, len(moved))
    moved = [height - middle for height in moved]
    for index in range(len(moved) - 2, -1, -1):
        moved[index] = min(moved[index], moved[index + 1] - gap)
    return moved


def _subtitle(groups: Sequence[Group], reference: ReferenceCurve | None, over: Over) -> str:
    parts = ["nats per token", "thin: training, smoothed"]
    if any(len(group.records) > 1 for group in groups):
        parts.append("band: lowest to highest of the seeds")
    if reference is not None and over != "seconds":
        parts.append(f"grey: expected for {reference.name}")
    return " \N{MIDDLE DOT} ".join(parts)
