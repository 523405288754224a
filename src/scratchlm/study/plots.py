"""Columns of numbers come in, SVG text for a web page comes out: learning curves, step curves, token lengths.

The page decides the colours: matplotlib draws with stand-in colours that are replaced by CSS variables, so
one drawing serves light and dark. Text stays text (in the page's font), the ground is transparent, and each
plot is drawn in two shapes, because a wide one shrunk to a phone's width cannot be read.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from scratchlm.study import units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shape = Literal["wide", "narrow"]

INK, MUTED, LINE, ACCENT, SOFT, PAPER = (f"#0a0a0{number}" for number in range(1, 7))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ACCENT: "--accent",
    SOFT: "--soft",
    PAPER: "--paper",
}
SERIES = tuple(f"#0a0b0{number}" for number in range(1, 9))
"""Stand-ins for lines that must be told apart; the page names the variables --series-1 to --series-8."""
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)}
"""Stand-in colour -> the CSS variable that takes its place."""

INCHES: dict[Shape, float] = {"wide": 7.6, "narrow": 3.7}
"""Width of a drawing; with 9-point text both come out at about 12 CSS pixels in the page's columns."""

MAX_POINTS = 500
"""Points of a curve; more cannot be told apart at this size and make the page heavy."""


class Curve(NamedTuple):
    """Values over the number of tokens seen."""

    tokens: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]

    def finite(self) -> "Curve":
        """The points where both numbers are finite."""
        keep = np.isfinite(self.tokens) & np.isfinite(self.values)
        return Curve(self.tokens[keep], self.values[keep])

    def thinned(self) -> "Curve":
        """At most MAX_POINTS points: the mean of as many neighbours as needed."""
        group = -(-len(self.tokens) // MAX_POINTS)
        if group <= 1:
            return self
        starts = np.arange(0, len(self.tokens), group)
        sizes = np.diff(np.append(starts, len(self.tokens)))
        return Curve(
            np.add.reduceat(self.tokens, starts) / sizes, np.add.reduceat(self.values, starts) / sizes
        )


class Panel(NamedTuple):
    """One small plot."""

    title: str
    curve: Curve


def smooth(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Average each value with its neighbours on both sides; weights halve in 1 % of the curve.

        s_t = beta * s_(t-1) + (1 - beta) * v_t,   corrected: s_t / (1 - beta^t)     as Adam does

    from the left and from the right, and the mean of both: one direction alone would lag behind the curve.
    """
    return (_average(values) + _average(values[::-1])[::-1]) / 2


def learning_curves(
    train: Curve,
    valid: Curve,
    floor: float | None,
    shape: Shape,
    title: str = "loss, nats per token",
) -> str:
    """Draw what training batches and the validation split have over tokens, and the floor."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 3.5, "narrow": 2.9}[shape])
    train, valid = train.finite(), valid.finite()
    smoothed = Curve(train.tokens, smooth(train.values)).thinned()
    raw = train.thinned()
    axes.plot(raw.tokens, raw.values, color=SOFT, linewidth=0.9, zorder=1)
    axes.plot(smoothed.tokens, smoothed.values, color=MUTED, linewidth=1.4, zorder=2)
    axes.plot(
        valid.tokens,
        valid.values,
        color=ACCENT,
        linewidth=1.8,
        marker="o",
        markersize=3.6,
        zorder=4,
        clip_on=False,
    )
    if floor is not None:
        axes.axhline(floor, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=3)
    bottom, top = _vertical_range(smoothed, valid, floor)
    axes.set_ylim(bottom, top)
    if floor is not None:
        words = f"floor {floor:.3f}: no model can do better" if shape == "wide" else f"floor {floor:.3f}"
        axes.annotate(
            words, (0, floor), xycoords=("axes fraction", "data"), xytext=(5, -5), textcoords="offset points",
            ha="left", va="top", color=INK, fontsize=9, zorder=5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.set_xlabel("tokens seen in training", color=MUTED)
    style(axes, title, num_ticks=6)
    # below 0 there is only room for the floor's name
    axes.yaxis.set_major_formatter(lambda value, _: _short(value) if value >= 0 else "")
    words = f"On training and on validation texts, over the number of tokens seen: {title}"
    return to_svg(figure, f"learning-{shape}", words)


def step_curves(panels: Sequence[Panel], shape: Shape) -> str:
    """Draw small plots, side by side on a wide page and below each other on a narrow one."""
    many = len(panels)
    rows, columns = (1, many) if shape == "wide" else (many, 1)
    figure, all_axes = new_figure(
        shape, rows=rows, columns=columns, height=1.75 if shape == "wide" else 1.55 * many
    )
    for axes, panel in zip(all_axes, panels, strict=True):
        curve = panel.curve.finite().thinned()
        axes.plot(curve.tokens, curve.values, color=ACCENT, linewidth=1.4)
        lowest = float(curve.values.min(initial=0.0))
        axes.set_ylim(bottom=1.08 * lowest, top=_robust_top(curve.values))
        style(axes, panel.title, num_ticks=4)
    return to_svg(
        figure, f"steps-{shape}", ", ".join(panel.title for panel in panels) + " over the tokens seen"
    )


def distance_from_expected(
    tokens: Sequence[float], differences: Sequence[float], tolerances: Sequence[float], shape: Shape
) -> str:
    """Draw how far each validation was from the expected loss, and the band of what is normal."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height={"wide": 2.1, "narrow": 1.9}[shape])
    band = np.asarray(tolerances)
    axes.fill_between(tokens, -band, band, color=SOFT, alpha=0.55, linewidth=0, zorder=1)
    axes.axhline(0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
    axes.plot(
        tokens, differences, color=ACCENT, linewidth=1.8, marker="o", markersize=3.6, zorder=3, clip_on=False
    )
    finite = np.abs(np.asarray(differences)[np.isfinite(differences)])
    reach = 1.15 * max(float(band.max()), float(finite.max(initial=0.0)))
    axes.set_ylim(-reach, reach)
    unit = ", nats per token" if shape == "wide" else ""
    style(axes, f"loss above (+) or below the expected{unit}", num_ticks=4)
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"
    )
    axes.set_xlabel("tokens seen in training", color=MUTED)
    return to_svg(figure, f"expected-{shape}", "How far each validation loss was from the expected one")


def length_bars(lengths: Sequence[int], shape: Shape, *, longest: int = 16) -> str:
    """Draw how many tokens have 1, 2, 3 ... bytes; everything from `longest` on is one bar."""
    figure, (axes,) = new_figure(shape, rows=1, columns=1, height=2.0)
    last = min(longest, max(lengths))
    counts = np.bincount(np.minimum(lengths, last), minlength=last + 1)[1:]
    places = np.arange(1, last + 1)
    axes.bar(places, counts, width=0.72, color=ACCENT, zorder=2)
    step = 1 if shape == "wide" or last <= 10 else 3
    names = [f"{place}+" if place == last < max(lengths) else str(place) for place in places]
    style(axes, "number of tokens", num_ticks=4)
    axes.set_xticks(places[::step], names[::step])
    axes.set_xlim(0.4, last + 0.6)
    axes.set_xlabel("bytes in the token", color=MUTED)
    return to_svg(figure, f"lengths-{shape}", "How many tokens of the vocabulary have which length in bytes")


def _average(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    beta = 0.5 ** (1 / max(1.0, 0.01 * len(values)))
    result, average = np.empty_like(values), 0.0
    for index, value in enumerate(values):
        average = beta * average + (1 - beta) * value
        result[index] = average / (1 - beta ** (index + 1))
    return result


def _vertical_range(train: Curve, valid: Curve, floor: float | None) -> tuple[float, float]:
    """From below the floor to the loss after 3 % of the run: the first steps would squeeze the rest."""
    shown = train.values[train.tokens >= 0.03 * train.tokens[-1]] if len(train.tokens) else train.values
    values = np.concatenate([shown, valid.values, [] if floor is None else [floor]])
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = max(high - low, 0.05)
    return low - 0.16 * room, high + 0.04 * room  # below the floor there is room for its name


def _robust_top(values: Float[np.ndarray, " points"]) -> float:
    """A little above nearly all values: one spike must not flatten the rest."""
    if not len(values):
        return 1.0
    top, usual = float(values.max()), 4 * float(np.quantile(values, 0.9))
    if values.min() < 0:
        return 1.08 * max(0.0, top)
    return 1.08 * (min(top, usual) if usual > 0 else top) if top > 0 else 1.0


def new_figure(shape: Shape, *, rows: int, columns: int, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure as wide as `shape` and `height` inches high, with rows * columns plots."""
    from matplotlib.figure import Figure  # a second to import: only when something is drawn

    figure = Figure(figsize=(INCHES[shape], height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.06, hspace=0.08)  # type: ignore[union-attr]
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def style(axes: "Axes", title: str, *, num_ticks: int) -> None:
    """Give a plot the look of all: a title at the left, few ticks, no frame."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(title, loc="left", fontsize=9, color=MUTED, pad=7)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelsize=9, labelcolor=MUTED, pad=5)
    axes.xaxis.label.set_fontsize(9)
    axes.margins(x=0.015)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: int | float) -> str:
    """What stands at a tick: 2_000_000 -> "2 M", 0.5 -> "0.5"."""
    if abs(value) < 1000:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    number, _, unit = units.count(value).partition(" ")
    return f"{float(number):g} {unit}" if unit else number


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def to_svg(figure: "Figure", name: str, title: str) -> str:
    """The drawing as an <svg> element whose ids start with `name`, for a page that holds several."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows the name spaces of an inline <svg>
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None, text[:200]
    head = f'<svg class="plot {name.rpartition("-")[2]}" viewBox="{view[1]}" role="img" aria-label="{title}">'
    text = head + text[text.index(">") + 1 :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()
