"""What a tuned study says comes in, a section of its report goes out: two figures and a table.

rates    the number over the tuned setting, a line for each size, its best marked
sizes    over the sizes: the best value with the rules beside it, and the number that it gives
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scratchlm.lab import markdown
from scratchlm.lab.batch_sizes import SETTING as BATCH
from scratchlm.lab.figures import look
from scratchlm.lab.tuning import Group, Tuning
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import ACCENT, INK, MUTED, SERIES, VARIABLES, Shape, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES = ((0.5, "root", (0, (4, 3))), (1.0, "linear", (0, (1, 2))))
"""Exponent of a rule, its short name (root: square root), its dashes."""
SHOWN_SHARE = 80
"""Per cent of the points that the first picture shows for certain: rates near divergence would squeeze it."""


def tuning_section(tuning: Tuning | None, unit: str) -> dict[str, Any] | None:
    """What the page's template names; None for a study without a tuned setting."""
    from markupsafe import Markup

    if tuning is None:
        return None
    drawings = [[Markup(rates_figure(tuning, unit, shape).svg) for shape in ("wide", "narrow")]]
    if tuning.along is not None and len(tuning.groups) > 1:
        drawings.append([Markup(sizes_figure(tuning, unit, shape).svg) for shape in ("wide", "narrow")])
    return {
        "key": tuning.key,
        "name": tuning.key.rpartition(".")[2],
        "figures": drawings,
        "legend": [
            (VARIABLES[str(look(index)[0])], index >= len(SERIES), group.label)
            for index, group in enumerate(tuning.groups)
        ],
        "headings": headings(tuning, unit),
        "rows": [table_row(tuning, group) for group in tuning.groups],
    }


def write_tuning(tuning: Tuning | None, unit: str, figures: Path) -> str:
    """Write the drawings as files; return the section in Markdown, empty where nothing is tuned."""
    if tuning is None:
        return ""
    name = tuning.key.rpartition(".")[2]
    rates_figure(tuning, unit, "wide").write(figures, "tuning")
    lines = ", ".join(group.label for group in tuning.groups)
    parts = [f"![{unit} over {name}]({figures.name}/tuning.svg)", f"Lines, from the first colour: {lines}."]
    if tuning.along is not None and len(tuning.groups) > 1:
        sizes_figure(tuning, unit, "wide").write(figures, "sizes")
        parts.append(f"![The best {name} over the sizes]({figures.name}/sizes.svg)")
    rows = [table_row(tuning, group) for group in tuning.groups]
    figures_of_groups = markdown.table(["", *headings(tuning, unit)], rows)
    return "\n\n".join([f"## Each at its best {name}", figures_of_groups, *parts])


def headings(tuning: Tuning, unit: str) -> list[str]:
    """The columns of the table behind the first."""
    name = tuning.key.rpartition(".")[2]
    rules = [f"{words} rule" for _, words, _ in RULES] if tuning.along == BATCH else []
    return [f"best {name}", "tried", *rules, unit, f"against {tuning.lowest.label}", "tokens/s"]


def table_row(tuning: Tuning, group: Group) -> list[str]:
    """A group in words and figures."""
    dash = "\N{EN DASH}"
    rules = [tuning.ruled(group, power) for power, _, _ in RULES] if tuning.along == BATCH else []
    difference, noise = group.difference, ""
    if difference is not None and difference.half_width is not None:
        noise = f" \N{PLUS-MINUS SIGN} {difference.half_width:.3f}"
    return [
        group.label,
        f"{group.best:.2g}" if group.fitted is not None else f"{dash} (edge)",
        f"{group.tried:g}",
        *(dash if value is None else f"{value:.2g}" for value in rules),
        f"{group.metric.mean:.3f}",
        dash if difference is None else f"{difference.mean:+.3f}{noise}".replace("-", "\N{MINUS SIGN}"),
        dash if group.tokens_per_second is None else f"{group.tokens_per_second:,.0f}",
    ]


def rates_figure(tuning: Tuning, unit: str, shape: Shape) -> Drawing:
    """Draw the number over the tuned setting, a line for each group; its best cell is the large dot."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.4, "narrow": 3.0}[shape])
    for index, group in enumerate(tuning.groups):
        colour, dashes = look(index)
        axes.plot(group.values, group.means, color=colour, linewidth=1.6, linestyle=dashes, zorder=3)
        axes.plot(group.values, group.means, "o", color=colour, markersize=3, zorder=4)
        axes.plot([group.tried], [group.metric.mean], "o", color=colour, markersize=7, zorder=5)
    style(axes, f"{unit} at the end; large dots are the lowest", num_ticks=6)
    means = np.array([mean for group in tuning.groups for mean in group.means if np.isfinite(mean)])
    low, high = float(means.min()), float(np.percentile(means, SHOWN_SHARE))
    high = max(high, *(group.metric.mean for group in tuning.groups))
    room = max(high - low, 0.02)
    axes.set_ylim(low - 0.06 * room, high + 0.06 * room)
    values = sorted({value for group in tuning.groups for value in group.values})
    _scale(axes, values, shape)
    axes.set_xlabel(tuning.key, color=MUTED)
    return drawn(figure, f"tuning-{shape}", f"{unit} over {tuning.key}, a line for each size")


def sizes_figure(tuning: Tuning, unit: str, shape: Shape) -> Drawing:
    """Draw the best value over the sizes with the rules, and beside it the number at the best value."""
    rows, columns = (1, 2) if shape == "wide" else (2, 1)
    figure, (left, right) = new_figure(
        shape, rows=rows, columns=columns, height={"wide": 3.0, "narrow": 5.2}[shape]
    )
    name, groups = tuning.key.rpartition(".")[2], tuning.groups
    sizes = [group.size or 0.0 for group in groups]
    best = [group.best for group in groups]
    style(left, f"best {name}", num_ticks=5)
    left.plot(sizes, best, "o-", color=ACCENT, linewidth=1.7, markersize=5, zorder=4)
    for power, words, dashes in RULES if tuning.along == BATCH else ():
        ruled = [tuning.ruled(group, power) or np.nan for group in groups]
        left.plot(sizes, ruled, color=MUTED, linewidth=1.1, linestyle=dashes, zorder=2)
        left.annotate(
            words, (sizes[-1], ruled[-1]), xytext=(-4, 4), textcoords="offset points", ha="right",
            va="bottom", color=MUTED, fontsize=9,
        )  # fmt: skip
    left.set_yscale("log")
    _plain_numbers(left)
    style(right, f"{unit} at the best {name}", num_ticks=5)
    means = [group.metric.mean for group in groups]
    right.plot(sizes, means, "o-", color=ACCENT, linewidth=1.7, markersize=5)
    if tuning.enough is not None and tuning.enough is not groups[-1]:
        right.axvline(tuning.enough.size or 0.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        right.annotate(
            "enough", (tuning.enough.size or 0.0, 0.97), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", ha="right", va="top", color=INK, fontsize=9,
        )  # fmt: skip
    labels = [group.label.removesuffix(" rows") for group in groups] if tuning.along == BATCH else None
    for axes in (left, right):
        _scale(axes, sizes, shape, labels)
        axes.set_xlabel("rows in a step" if tuning.along == BATCH else str(tuning.along), color=MUTED)
    return drawn(figure, f"sizes-{shape}", f"The best {name} over the sizes, and the {unit} that it gives")


def _scale(axes: "Axes", values: Sequence[float], shape: Shape, labels: Sequence[str] | None = None) -> None:
    """A logarithmic axis with a tick for each value."""
    axes.set_xscale("log")
    words = labels or [f"{value:g}" for value in values]
    axes.set_xticks(values, words, rotation=40 if shape == "narrow" and len(values) > 5 else 0)
    axes.minorticks_off()
    axes.margins(x=0.05)


def _plain_numbers(axes: "Axes") -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written without powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
