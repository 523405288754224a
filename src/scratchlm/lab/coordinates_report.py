"""How far runs of several widths moved comes in, a section of a study's report goes out: picture, table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchlm.lab import markdown
from scratchlm.lab.coordinates import PARTS, Series, series_of
from scratchlm.lab.figures import look
from scratchlm.lab.rows import Result
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import MUTED, VARIABLES, Shape, new_figure, style

TITLES = {"scores": "attention scores", "stream": "residual stream", "logits": "logits"}
LEAST_SPAN = 4.0
"""Of a vertical axis, highest over lowest: numbers that hardly differ shall look so."""


def coordinates_section(results: Sequence[Result]) -> dict[str, Any] | None:
    """What the page's template names; None where nothing was measured."""
    from markupsafe import Markup

    known = series_of(results)
    if not known:
        return None
    return {
        "drawings": [Markup(coordinates_figure(known, shape).svg) for shape in ("wide", "narrow")],
        "legend": [(VARIABLES[str(look(number)[0])], one.name) for number, one in enumerate(known)],
        "headings": [TITLES[part] for part in PARTS],
        "rows": table_of_moves(known),
    }


def write_coordinates(figures: Path, results: Sequence[Result]) -> str:
    """Write the drawing as files; return the section in Markdown, empty where nothing was measured."""
    known = series_of(results)
    if not known:
        return ""
    coordinates_figure(known, "wide").write(figures, "coordinates")
    rows = [[name, *numbers] for name, numbers in table_of_moves(known)]
    moves = markdown.table(["", *(TITLES[part] for part in PARTS)], rows)
    picture = f"![Root mean square of the change over the width]({figures.name}/coordinates.svg)"
    return "\n".join(["## How far the same steps move a model", moves, "", picture])


def table_of_moves(known: Sequence[Series]) -> list[tuple[str, list[str]]]:
    """Name and width, then how far each part moved, as text."""
    return [
        (f"{one.name}, width {width}", [f"{one.moved[part][place]:.3g}" for part in PARTS])
        for one in known
        for place, width in enumerate(one.widths)
    ]


def coordinates_figure(known: Sequence[Series], shape: Shape) -> Drawing:
    """Draw how far each part moved over the width: level lines are what is wanted."""
    across = shape == "wide"
    size = {"rows": 1, "columns": 3, "height": 2.7} if across else {"rows": 3, "columns": 1, "height": 6.6}
    figure, panels = new_figure(shape, **size)
    widths = sorted({width for one in known for width in one.widths})
    for axes, part in zip(panels, PARTS, strict=True):
        for number, one in enumerate(known):
            colour, dashes = look(number)
            axes.plot(one.widths, one.moved[part], "o", color=colour, markersize=4.2, zorder=4)
            axes.plot(one.widths, one.moved[part], color=colour, linestyle=dashes, linewidth=1.6, zorder=3)
        style(axes, f"change of the {TITLES[part]}", num_ticks=4)
        _logarithmic(axes, [value for one in known for value in one.moved[part]])
        axes.set_xscale("log")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.margins(x=0.08)
        axes.set_xlabel("d_model", color=MUTED)
    return drawn(figure, f"coordinates-{shape}", "Change of scores, stream and logits over the model's width")


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with a few plain numbers on it."""
    finite = [value for value in values if np.isfinite(value) and value > 0]
    if not finite:
        return
    low, high = min(finite), max(finite)
    room = max(1.25, (LEAST_SPAN / (high / low)) ** 0.5)
    low, high = low / room, high * room
    axes.set_yscale("log")
    digits = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 6)
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in digits]
    ticks = [step for step in steps if low <= step <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
