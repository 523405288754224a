"""Numbers from the other files come in, drawings come out: for the page, or alone as SVG and PNG.

    place_figure        loss by place in the row and in the document, on a logarithmic axis
    depth_figure        the loss of a text, had the model ended after each layer
    histogram_figure    a small plot for each kind of matrix or activation, a line for each block
    gradient_figure     norms by block
    map_svg             tokens on a plane, with their names where there is room
    attention_png       a layer's heads side by side

Drawings take the page's colours (study/plots.py); alone they have those of its light mode.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from scratchlm.runtime import replace_atomically
from scratchlm.study import pages
from scratchlm.study.drawing import light_colours
from scratchlm.study.plots import ACCENT, INK, MUTED, SERIES, Shape, new_figure, style, to_svg
from scratchlm.study.visualize.embeddings import Map, Place
from scratchlm.study.visualize.split import ByPlace, Histogram, LayerSizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_WIDTH, MAP_HEIGHT = 760, 520
"""Size of the token map in CSS pixels; the page's column is 772 wide."""
LETTER_WIDTH, LINE_HEIGHT = 6.8, 14
"""Room that a name takes at 12 pixels: the widest common letters of the page's font, measured."""
PANEL_COLUMNS: dict[Shape, int] = {"wide": 4, "narrow": 2}


class Label(NamedTuple):
    """A token on the map: its dot, and its name where it fits."""

    x: float
    y: float
    place: Place
    named: bool


def place_figure(in_row: ByPlace, in_document: ByPlace | None, shape: Shape) -> str:
    """Draw the loss over the number of tokens seen before; bands of two standard errors.

    Args:
        in_row: By place in the row.
        in_document: By place in the document; None where that is the same.
        shape: For a wide page or a narrow one.
    """
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.1, "narrow": 2.7}[shape])
    for found, colour in ((in_document, MUTED), (in_row, ACCENT)):
        if found is None:
            continue
        x = found.places + 1  # on a logarithmic axis there is no 0
        axes.fill_between(
            x,
            found.losses - 2 * found.errors,
            found.losses + 2 * found.errors,
            color=colour,
            alpha=0.15,
            lw=0,
        )
        axes.plot(x, found.losses, color=colour, linewidth=1.7, marker="o", markersize=3)
    style(axes, "loss, nats per token", num_ticks=6)
    # said, not found: the losses of a model that diverged have no limits
    axes.set_xlim(0.95, 1.1 * (in_row.places[-1] + 1))
    axes.set_xscale("log", base=2)
    _plain_powers(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("which token it is, counted from 1", color=MUTED)
    return to_svg(figure, f"place-{shape}", "Loss by place in the row and in the document")


def depth_figure(names: Sequence[str], losses: Sequence[float], shape: Shape) -> str:
    """Draw the loss after each layer."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 2.3, "narrow": 2.1}[shape])
    axes.plot(range(len(losses)), losses, color=ACCENT, linewidth=1.7, marker="o", markersize=4)
    style(axes, "loss of this text, nats per token", num_ticks=5)
    axes.set_xticks(range(len(names)), names if shape == "wide" and len(names) <= 9 else None)
    axes.set_ylim(bottom=0)
    if not (shape == "wide" and len(names) <= 9):
        axes.set_xlabel("blocks behind it", color=MUTED)
    return to_svg(figure, f"depth-{shape}", "Loss of the text had the model ended after each layer")


def histogram_figure(kinds: dict[str, list[Histogram]], name: str, title: str, shape: Shape) -> str:
    """Draw a small plot for each kind, a line for each block.

    Args:
        kinds: Kind -> its histograms, one for each block.
        name: Start of the drawing's ids, once on a page.
        title: What a reader who cannot see it hears.
        shape: For a wide page or a narrow one.
    """
    columns = min(PANEL_COLUMNS[shape], len(kinds))
    rows = -(-len(kinds) // columns)
    figure, all_axes = new_figure(shape, rows=rows, columns=columns, height=1.6 * rows)
    for axes, (kind, histograms) in zip(all_axes, kinds.items(), strict=False):
        for index, found in evenly(histograms, len(SERIES)):
            centres = (found.edges[:-1] + found.edges[1:]) / 2
            colour = SERIES[index % len(SERIES)] if len(histograms) > 1 else MUTED
            axes.plot(centres, found.density, color=colour, linewidth=1.1)
        style(axes, kind, num_ticks=3)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    for axes in all_axes[len(kinds) :]:
        axes.set_axis_off()
    return to_svg(figure, f"{name}-{shape}", title)


def gradient_figure(layers: Sequence[LayerSizes], shape: Shape) -> str:
    """Draw norms of gradients, and sizes of what each block adds, over the blocks."""
    rows, columns = (1, 3) if shape == "wide" else (3, 1)
    figure, (weights, stream, sizes) = new_figure(shape, rows=rows, columns=columns, height=2.1 * rows)
    numbers = [layer.number for layer in layers]
    marks = {"linewidth": 1.5, "marker": "o", "markersize": 3.5}
    weights.plot(numbers, [layer.attention_gradient for layer in layers], color=SERIES[0], **marks)
    weights.plot(numbers, [layer.feedforward_gradient for layer in layers], color=SERIES[1], **marks)
    stream.plot(numbers, [layer.stream_gradient for layer in layers], color=INK, **marks)
    sizes.plot(numbers, [layer.attention for layer in layers], color=SERIES[0], **marks)
    sizes.plot(numbers, [layer.feedforward for layer in layers], color=SERIES[1], **marks)
    sizes.plot(numbers, [layer.stream for layer in layers], color=INK, **marks)
    titles = ("gradient of weights, norm", "gradient of the stream, norm", "size of activations, rms")
    for axes, title in zip((weights, stream, sizes), titles, strict=True):
        style(axes, title, num_ticks=4)
        _from_zero_or_by_orders(axes)
        axes.set_xticks(numbers[:: -(-len(numbers) // 8)])
        axes.margins(x=0.08)
    stream.set_xlabel("block", color=MUTED)
    return to_svg(figure, f"flow-{shape}", "Norms of gradients and sizes of activations in each block")


def evenly(several: Sequence[Histogram], most: int) -> list[tuple[int, Histogram]]:
    """At most `most` of them, evenly spaced, numbered as they will be coloured: 12, 8 -> the 1st ... 12th."""
    if len(several) <= most:
        return list(enumerate(several))
    kept = np.linspace(0, len(several) - 1, most).round().astype(int)
    return [(index, several[place]) for index, place in enumerate(kept)]


def map_labels(found: Map) -> list[Label]:
    """Where dots lie, and which names can stand: the most frequent first, none over another."""
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for place in found.places:
        x, y = 24 + place.x * (MAP_WIDTH - 110), 20 + place.y * (MAP_HEIGHT - 40)
        width = LETTER_WIDTH * len(pages.show_spaces(place.text)) + 8
        box = (x - 3, y - LINE_HEIGHT / 2, x + width, y + LINE_HEIGHT / 2)
        free = not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        )
        if free:
            taken.append(box)
        labels.append(Label(x, y, place, free))
    return labels


def map_svg(found: Map) -> str:
    """The token map as an <svg> element; pointing at a dot tells its token. Tokens are escaped."""
    values = {"labels": map_labels(found), "width": MAP_WIDTH, "height": MAP_HEIGHT}
    return pages.rendered("token_map.svg.j2", values)


def attention_png(path: Path, weights_HTT: Float[Tensor, "heads time time"], labels: Sequence[str]) -> None:
    """Write a layer's attention maps as one picture, heads side by side, queries downwards."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    light = light_colours()
    colours = LinearSegmentedColormap.from_list("attention", [light["--paper"], light["--accent"]])
    columns = min(4, len(weights_HTT))
    rows = -(-len(weights_HTT) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained", facecolor=light["--paper"])
    all_axes = np.atleast_1d(figure.subplots(rows, columns)).flat
    for head, axes in enumerate(all_axes):
        if head >= len(weights_HTT):
            axes.set_axis_off()
            continue
        axes.imshow(weights_HTT[head].numpy() ** 0.5, cmap=colours, vmin=0, vmax=1)
        axes.set_title(f"head {head + 1}", loc="left", fontsize=9, color=light["--muted"])
        few = len(labels) <= 40  # more names than lines of text fit beside the picture
        # a token may hold "$", which would be read as the beginning of a formula
        shown = [plain(label) for label in labels] if few else []
        axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=5, parse_math=False)
        axes.set_yticks(range(len(shown)), shown, fontsize=5, parse_math=False)
        axes.tick_params(length=0, colors=light["--muted"])
        for side in axes.spines.values():
            side.set_color(light["--line"])
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def plain(text: str) -> str:
    """A token that any font of a picture can show: blanks visible, other letters than Latin as escapes."""
    shown = text.replace("\n", "\\n").replace(" ", "_")
    return shown.encode("latin-1", "backslashreplace").decode("latin-1")[:14]


def _from_zero_or_by_orders(axes: "Axes") -> None:
    """Begin at 0, or take a logarithmic axis where the numbers span more than an order."""
    numbers = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) and numbers.min() > 0 and numbers.max() > 10 * numbers.min():
        axes.set_yscale("log")
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)


def _plain_powers(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(2, numticks=10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
