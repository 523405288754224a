"""Gains of changes come in, a section of a study's report goes out: a drawing, a table, both in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchlm.lab import markdown
from scratchlm.lab.gains import Gain
from scratchlm.lab.statistics import Interval
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import INK, LINE, MUTED, SERIES, Shape, new_figure, style

HEADINGS = ("put in alone", "on top of the others")
APART = 0.17
"""Of the distance between two changes: so far above and below its line stand the two gains of a change."""


def gains_section(gains: Sequence[Gain], unit: str) -> dict[str, Any] | None:
    """What the page's template names; None where the study is none of changes."""
    from markupsafe import Markup

    known = _sorted(gains)
    if not known:
        return None
    return {
        "drawings": [Markup(gains_figure(known, unit, shape).svg) for shape in ("wide", "narrow")],
        "headings": HEADINGS,
        "rows": [(gain.change, [_cell(gain.alone), _cell(gain.among)]) for gain in known],
    }


def write_gains(gains: Sequence[Gain], unit: str, figures: Path) -> str:
    """Write the drawing as files; return the section in Markdown, empty where there are no changes."""
    known = _sorted(gains)
    if not known:
        return ""
    gains_figure(known, unit, "wide").write(figures, "gains")
    rows = [[gain.change, _cell(gain.alone), _cell(gain.among)] for gain in known]
    picture = f"![What each change brings]({figures.name}/gains.svg)"
    words = f"Gains in {unit}: how much lower the number is with the change than without it. "
    words += "Where the interval holds 0, the gain is within noise."
    return "\n".join(
        ["## What each change brings", words, "", markdown.table(["change", *HEADINGS], rows), "", picture]
    )


def gains_figure(gains: Sequence[Gain], unit: str, shape: Shape) -> Drawing:
    """Draw both gains of each change with their intervals; right of the line at 0 a change helps."""
    height = max(1.6, 0.5 * len(gains) + 0.7)
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height=height)
    for place, gain in enumerate(reversed(gains)):
        for height, found, colour in ((APART, gain.alone, SERIES[0]), (-APART, gain.among, SERIES[1])):
            if found is None:
                continue
            width = found.half_width or 0.0
            ends = [found.mean - width, found.mean + width]
            axes.plot(ends, [place + height] * 2, color=colour, linewidth=1.6, alpha=0.6, zorder=2)
            axes.plot([found.mean], [place + height], "o", color=colour, markersize=5, zorder=3)
    legend = ": upper dots alone, lower dots on top of the others" if shape == "wide" else ""
    style(axes, f"gain in {unit}{legend}", num_ticks=6)
    axes.axvline(0.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}" if value else "0")
    axes.set_yticks(range(len(gains)), [gain.change for gain in reversed(gains)])
    axes.set_ylim(-0.6, len(gains) - 0.4)
    axes.margins(x=0.06)
    for words, away, side in (("helps", 6, "left"), ("hurts", -6, "right")):
        axes.annotate(
            words, (0, -0.5), xytext=(away, 0), textcoords="offset points", ha=side, va="center", color=MUTED,
            fontsize=9,
        )  # fmt: skip
    return drawn(figure, f"gains-{shape}", f"What each change brings, in {unit}")


def _sorted(gains: Sequence[Gain]) -> list[Gain]:
    """Those of which something is known, what brings most on top of the others first."""

    def most(gain: Gain) -> float:
        found = gain.among or gain.alone
        assert found is not None, gain
        return -found.mean

    return sorted((gain for gain in gains if gain.alone or gain.among), key=most)


def _cell(gain: Interval | None) -> str:
    if gain is None:
        return "\N{EN DASH}"
    noise = "" if gain.half_width is None else f" \N{PLUS-MINUS SIGN} {gain.half_width:.3f}"
    return f"{gain.mean:+.3f}".replace("-", "\N{MINUS SIGN}") + noise
