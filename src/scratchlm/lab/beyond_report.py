"""Losses beyond the training context come in, a section of a study's report goes out: curve and table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchlm.lab import markdown
from scratchlm.lab.beyond import Reach, read_beyond
from scratchlm.lab.figures import look
from scratchlm.lab.rows import Result
from scratchlm.study.drawing import Drawing, drawn
from scratchlm.study.plots import INK, MUTED, VARIABLES, Shape, new_figure, style

COLUMNS = ("loss_1x", "loss_2x", "loss_4x")
HEADINGS = ("within the training context", "up to twice", "up to four times")
TOP = 3.0
"""Losses above so many times the median within the context are cut off: one would squeeze all others."""


def beyond_section(folder: Path, results: Sequence[Result]) -> dict[str, Any] | None:
    """What the page's template names; None where nothing was measured beyond the context."""
    from markupsafe import Markup

    curves = read_beyond(folder, results)
    if not curves:
        return None
    return {
        "drawings": [Markup(beyond_figure(curves, shape).svg) for shape in ("wide", "narrow")],
        "legend": [(VARIABLES[str(look(c.number)[0])], c.number >= 8, c.label) for c in curves],
        "headings": HEADINGS,
        "rows": table_of(results),
    }


def write_beyond(folder: Path, figures: Path, results: Sequence[Result]) -> str:
    """Write the drawing as files; return the section in Markdown, empty where nothing was measured."""
    curves = read_beyond(folder, results)
    if not curves:
        return ""
    beyond_figure(curves, "wide").write(figures, "beyond")
    bands = markdown.table(["cell", *HEADINGS], [[label, *numbers] for label, numbers in table_of(results)])
    picture = f"![Loss over the place in a row]({figures.name}/beyond.svg)"
    return "\n".join(["## Beyond the training context", bands, "", picture])


def table_of(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """Label and mean losses of the three bands, as text; a dash where positions end."""
    found = []
    for label in dict.fromkeys(result.label for result in results):
        own = [result for result in results if result.label == label and result.loss_1x is not None]
        numbers = []
        for name in COLUMNS:
            known = [value for result in own if (value := getattr(result, name)) is not None]
            numbers.append(f"{np.mean(known):.3f}" if known else "\N{EN DASH}")
        if own:
            found.append((label, numbers))
    return found


def beyond_figure(curves: Sequence[Reach], shape: Shape) -> Drawing:
    """Draw the loss over the place in a row, far beyond the training context, which is marked."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.5, "narrow": 3.0}[shape])
    for curve in curves:
        colour, dashes = look(curve.number)
        middle = curve.losses.mean(axis=0)
        axes.plot(curve.places, middle, color=colour, linewidth=1.7, linestyle=dashes, zorder=3)
        if len(curve.losses) > 1:
            low, high = curve.losses.min(axis=0), curve.losses.max(axis=0)
            axes.fill_between(curve.places, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    trained = max(curve.context_length for curve in curves)
    style(axes, "loss, nats per token", num_ticks=6)
    bottom, top = axes.get_ylim()
    inside = np.concatenate([curve.losses[:, curve.places < trained].ravel() for curve in curves])
    inside = inside[np.isfinite(inside)]
    if len(inside):
        top = min(top, float(TOP * np.median(inside) + inside.max() - inside.min()))
        axes.set_ylim(bottom, max(top, bottom + 0.1))
    axes.axvline(trained, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "training context ends" if shape == "wide" else "context", (trained, 0.97),
        xycoords=("data", "axes fraction"), xytext=(5, 0), textcoords="offset points", ha="left", va="top",
        color=INK, fontsize=9, zorder=5,
    )  # fmt: skip
    farthest = max(round(2 * float(curve.places[-1] - curve.places[-2]) / 2) for curve in curves)
    ticks = [0, trained, 2 * trained, 3 * trained, 4 * trained]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlim(0, max(float(curve.places[-1]) for curve in curves) + farthest)
    axes.set_xlabel("tokens before, in the row", color=MUTED)
    return drawn(figure, f"beyond-{shape}", "Loss over the place in a row, within and beyond the context")
