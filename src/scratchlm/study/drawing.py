"""A matplotlib figure comes in, a drawing goes out: for a page, or alone as SVG and PNG.

    page        inline SVG whose colours are the page's variables: one drawing for light and dark
    alone       the same in the colours of the page's light mode, on its ground: for repositories and slides

Figures are drawn with stand-in colours (study/plots.py). In SVG text each becomes a variable; for a PNG each
artist of the figure gets the colour that the variable has in light mode.
"""

import io
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scratchlm.runtime import replace_atomically, write_text_atomically
from scratchlm.study.plots import PAPER, VARIABLES, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PNG_BYTES = 150_000
"""Of a picture in a repository: its whole history is copied by everybody who clones it."""
RESOLUTIONS = (160, 110, 80)
"""Dots per inch that are tried; 110 are about the CSS pixels of a page, 160 are sharp on finer screens."""
MARGIN = 0.1
"""Inches around a picture that stands alone; on a page the column has its own."""
PARTS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
"""What of an artist has a colour."""


class Drawing(NamedTuple):
    """One figure as the page's SVG, and itself for other formats."""

    svg: str
    figure: "Figure"

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.svg and NAME.png, each standing alone."""
        write_text_atomically(folder / f"{name}.svg", standalone(self.svg))
        with replace_atomically(folder / f"{name}.png") as temporary:
            temporary.write_bytes(to_png(self.figure))


def drawn(figure: "Figure", name: str, title: str) -> Drawing:
    """The drawing of a figure; arguments as for `to_svg`."""
    return Drawing(to_svg(figure, name, title), figure)


def light_colours() -> dict[str, str]:
    """The variables of the page's light mode: the first that its style sheets say of each."""
    folder = files("scratchlm.study") / "templates"
    text = "".join((folder / name).read_text(encoding="utf-8") for name in ("study.css", "report.css"))
    pairs = re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", text)
    return dict(reversed(pairs))


def standalone(svg: str) -> str:
    """A drawing as a file of its own: light colours and ground, and the name space that a file needs."""
    colours = light_colours()
    for variable, colour in colours.items():
        svg = svg.replace(f"var({variable})", colour)
    ground = f'<rect width="100%" height="100%" fill="{colours["--paper"]}"/>'
    end = svg.index(">") + 1
    start = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
    return svg[:end].replace("<svg ", start, 1) + ground + svg[end:] + "\n"


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG of at most MAX_PNG_BYTES; its stand-in colours are replaced for good."""
    from matplotlib.colors import to_rgba

    figure.get_layout_engine().set(w_pad=MARGIN, h_pad=MARGIN)  # type: ignore[union-attr]
    figure.draw_without_rendering()  # ticks come into being when they are drawn
    colours = light_colours()
    light = {to_rgba(stand_in)[:3]: to_rgba(colours[name])[:3] for stand_in, name in VARIABLES.items()}
    for axes in figure.axes:
        axes.patch.set_visible(False)
    for artist in figure.findobj():
        ground = (
            artist.get_bbox_patch() if hasattr(artist, "get_bbox_patch") else None
        )  # no child of its text
        for part in PARTS:
            _recolour(artist, part, light)
            _recolour(ground, part, light)
    data = b""
    for resolution in RESOLUTIONS:
        buffer = io.BytesIO()
        paper = light[to_rgba(PAPER)[:3]]
        options = {"optimize": True}
        figure.savefig(buffer, format="png", dpi=resolution, facecolor=paper, pil_kwargs=options)
        data = buffer.getvalue()
        if len(data) <= MAX_PNG_BYTES:
            break
    return data


def _recolour(artist: Any, part: str, light: dict[tuple[float, ...], tuple[float, ...]]) -> None:
    """Replace one kind of colour of an artist, where it has that kind; transparency stays."""
    from matplotlib.colors import to_rgba_array

    read, write = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
    if read is None or write is None:
        return
    found = to_rgba_array(read())
    if len(found) and any(tuple(colour[:3]) in light for colour in found):
        replaced = [(*light.get(tuple(colour[:3]), colour[:3]), colour[3]) for colour in found]
        write(replaced if len(replaced) > 1 else replaced[0])
