"""Nothing comes in; the figures of the course's pages on many processes go out, into docs/images.

    python benchmarks/draw_parallel.py

Bars are not drawn by hand: a few lines compute when each process computes and when the network carries, from
the costs below, which are those of no machine but of a size at which everything can be seen. The figures have
a background of their own, so they look the same on a light and on a dark page.
"""

import itertools
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

from scratchlm.runtime import write_text_atomically

IMAGES = Path(__file__).parents[1] / "docs" / "images"

# a step of the model in the figures, in units of time
FORWARD, BACKWARD, TRAFFIC, CALL, STEP = 3.0, 6.0, 4.8, 0.2, 0.8
PARAMETERS, BUCKETS = 12, 4
LAYERS = 5

WIDTH, LEFT, UNIT, HEIGHT, GAP = 800, 92, 41.0, 20, 6
LETTER = 5.6
"""Average width of a letter at size 12, a little generous: there is no ruler in an SVG file."""
COLOURS = {  # kinds of bars -> fill and text; each kind differs in lightness, too
    "forward": ("#c6dbef", "#222"),
    "backward": ("#6baed6", "#111"),
    "call": ("#333333", "#fff"),
    "reduce": ("#fdae6b", "#222"),
    "gather": ("#c7e9c0", "#222"),
    "step": ("#bdbdbd", "#222"),
    "whole": ("#dadaeb", "#222"),
}


class Bar(NamedTuple):
    """Something that lasts, on one line of a figure."""

    line: int
    start: float
    length: float
    kind: str
    label: str = ""


class Panel(NamedTuple):
    """Several lines under one title, on one axis of time."""

    title: str
    lines: tuple[str, ...]
    bars: list[Bar]
    mark: float | None = None
    note: str = ""


def data_parallel(messages: int, *, overlaps: bool) -> list[Bar]:
    """A step in which the gradients travel in so many messages, during the backward pass or after it."""
    bars, clock, network_is_free = [Bar(0, 0, FORWARD, "forward", "forward")], FORWARD, 0.0

    def send() -> None:
        nonlocal clock, network_is_free
        bars.append(Bar(0, clock, CALL, "call"))
        clock += CALL
        begin = max(clock, network_is_free)
        network_is_free = begin + TRAFFIC / messages
        bars.append(Bar(1, begin, TRAFFIC / messages, "reduce"))

    if not overlaps:
        bars.append(Bar(0, clock, BACKWARD, "backward", "backward"))
        clock += BACKWARD
    for _ in range(messages):
        if overlaps:
            bars.append(Bar(0, clock, BACKWARD / messages, "backward", "backward"))
            clock += BACKWARD / messages
        send()
        if not overlaps:
            clock = network_is_free
    return [*bars, Bar(0, max(clock, network_is_free), STEP, "step", "step")]


def four_ways() -> str:
    """The figure of data parallelism."""
    ways = [
        ("per_parameter: one message each, after backward", PARAMETERS, False),
        ("flat: one message, after backward", 1, False),
        ("overlapped: one message each, during backward", PARAMETERS, True),
        ("bucketed: a message for every three parameters, during backward", BUCKETS, True),
    ]
    panels = []
    for title, messages, overlaps in ways:
        bars = data_parallel(messages, overlaps=overlaps)
        waiting = bars[-1].start - FORWARD - BACKWARD
        panels.append(
            Panel(title, ("process", "network"), bars, FORWARD + BACKWARD, f"{waiting:.1f} longer than alone")
        )
    legend = [("forward", "forward"), ("backward", "backward"), ("call", "a call: copy, start"),
              ("reduce", "all-reduce on its way"), ("step", "optimizer's step")]  # fmt: skip
    return draw(panels, legend, "dashed: where one process alone would be done with backward")


def zero_step(stage: int) -> list[Bar]:
    """A step of two processes: lines are process 0, the network, process 1."""
    bars = [Bar(line, 0, FORWARD, "forward", "forward") for line in (0, 2)]
    clock, network_is_free = FORWARD, 0.0
    for number in range(BUCKETS):
        bars += [Bar(line, clock, BACKWARD / BUCKETS, "backward", "backward") for line in (0, 2)]
        clock += BACKWARD / BUCKETS
        begin = max(clock, network_is_free)
        length = TRAFFIC / BUCKETS / (2 if stage == 2 else 1)
        network_is_free = begin + length
        bars.append(Bar(1, begin, length, "reduce", f"to {number % 2}" if stage == 2 else "to all"))
    clock = max(clock, network_is_free)
    share = STEP / 2 if stage else STEP
    bars += [Bar(line, clock, share, "step", "step" if stage == 0 else "half") for line in (0, 2)]
    clock += share
    for owner in (0, 1) if stage else ():
        bars.append(Bar(1, clock, TRAFFIC / 4, "gather", f"from {owner}"))
        clock += TRAFFIC / 4
    return bars


def zero_stages() -> str:
    """The figure of plain data parallelism beside ZeRO's first two stages."""
    lines = ("process 0", "network", "process 1")
    panels = [
        Panel(
            "data parallel: every process keeps all state and computes the whole step", lines, zero_step(0)
        ),
        Panel("stage 1: each moves the half that it owns, then sends it around", lines, zero_step(1)),
        Panel("stage 2: and a gradient goes to its owner only", lines, zero_step(2)),
    ]
    legend = [("forward", "forward"), ("backward", "backward"), ("reduce", "gradients are added up"),
              ("step", "optimizer's step"), ("gather", "parameters are sent around")]  # fmt: skip
    return draw(panels, legend, "")


class Sharded:
    """One process of many: it fetches a layer's weights, computes with them and frees them."""

    FORWARD, BACKWARD = FORWARD / LAYERS, BACKWARD / LAYERS
    MESSAGE = TRAFFIC / 2 / LAYERS  # gathering, or reducing and scattering: each is half an all-reduce

    def __init__(self, prefetch: int) -> None:
        self.prefetch, self.bars = prefetch, []
        self.clock = self.network_is_free = 0.0
        self.arrives: dict[int, float] = {}  # layer -> when its weights are whole
        self.changes: list[tuple[float, int]] = []  # when memory for a layer is taken, or given back

    def send(self, kind: str, layer: int) -> None:
        begin = max(self.clock, self.network_is_free)
        self.network_is_free = begin + self.MESSAGE
        self.bars.append(Bar(1, begin, self.MESSAGE, kind, str(layer)))

    def fetch(self, layer: int) -> None:
        if 0 <= layer < LAYERS and layer not in self.arrives:
            self.changes.append((self.clock, 1))
            self.send("gather", layer)
            self.arrives[layer] = self.network_is_free

    def compute(self, layer: int, kind: str, length: float, onward: int) -> None:
        for ahead in range(self.prefetch + 1):
            self.fetch(layer + onward * ahead)
        self.clock = max(self.clock, self.arrives.pop(layer))
        self.bars.append(Bar(0, self.clock, length, kind, str(layer)))
        self.clock += length
        self.changes.append((self.clock, -1))

    def step(self) -> list[Bar]:
        for layer in range(LAYERS):
            self.compute(layer, "forward", self.FORWARD, 1)
        for layer in reversed(range(LAYERS)):
            self.compute(layer, "backward", self.BACKWARD, -1)
            self.send("reduce", layer)
        self.clock = max(self.clock, self.network_is_free)
        return [*self.bars, *self.whole(), Bar(0, self.clock, STEP / 4, "step")]

    def whole(self) -> list[Bar]:
        """How many layers have the memory of their whole weights, over time."""
        count, bars = 0, []
        changes = sorted(self.changes)
        for (begin, change), (end, _) in itertools.pairwise([*changes, (self.clock, 0)]):
            count += change
            if count and end > begin:
                bars.append(Bar(2, begin, end - begin, "whole", str(count)))
        return bars


def sharded_parameters() -> str:
    """The figure of FSDP, without and with weights fetched ahead."""
    panels = []
    for title, prefetch in (
        ("prefetch=0: each layer fetches its weights when it needs them", 0),
        ("prefetch=2: and those of the next two layers", 2),
    ):
        bars = Sharded(prefetch).step()
        note = f"{bars[-1].start - FORWARD - BACKWARD:.1f} longer than alone"
        panels.append(Panel(title, ("process", "network", "whole"), bars, FORWARD + BACKWARD, note))
    legend = [("forward", "forward"), ("backward", "backward"), ("gather", "all-gather: shards -> weight"),
              ("reduce", "reduce-scatter: gradient -> shards"), ("step", "step"),
              ("whole", "number of whole layers")]  # fmt: skip
    return draw(panels, legend, "numbers in bars are layers; dashed: where one process alone would be done")


def draw(panels: list[Panel], legend: list[tuple[str, str]], remark: str) -> str:
    """Panels below each other on one axis of time, then what the colours mean."""
    parts, top = [], 14
    for panel in panels:
        parts.append(text(12, top + 12, panel.title, weight="bold"))
        if panel.note:
            parts.append(text(WIDTH - 12, top + 12, panel.note, anchor="end", colour="#555"))
        top += 22
        for number, name in enumerate(panel.lines):
            parts.append(text(LEFT - 8, top + number * (HEIGHT + GAP) + 14, name, anchor="end"))
        for bar in panel.bars:
            parts.append(bar_of(bar, top))
        bottom = top + len(panel.lines) * (HEIGHT + GAP)
        if panel.mark is not None:
            x = LEFT + panel.mark * UNIT
            parts.append(
                f'<line x1="{x:g}" y1="{top - 4}" x2="{x:g}" y2="{bottom - 2}" stroke="#a50f15" '
                'stroke-dasharray="4 3"/>'
            )
        top = bottom + 12
    parts += meanings(legend, top)
    top += 24
    if remark:
        parts.append(text(12, top + 6, remark, size=12, colour="#555"))
        top += 18
    return page(parts, top)


def bar_of(bar: Bar, top: float) -> str:
    """A bar, with its label where there is room."""
    fill, colour = COLOURS[bar.kind]
    x, y, width = LEFT + bar.start * UNIT, top + bar.line * (HEIGHT + GAP), bar.length * UNIT
    parts = [rectangle(x, y, width, HEIGHT, fill)]
    if bar.label and LETTER * len(bar.label) + 2 < width:
        parts.append(text(x + width / 2, y + 14, bar.label, size=12, anchor="middle", colour=colour))
    return "".join(parts)


def ring_all_reduce() -> str:
    """Four processes, four pieces each: how many processes' numbers every piece holds before each step."""
    processes, cell, left, top = 4, 20, 92, 56
    column = 4 * cell + 19
    steps = 2 * (processes - 1)
    holds = [[1] * processes for _ in range(processes)]
    rows = [top + rank * 36 for rank in range(processes)]
    parts = [text(left - 8, y + 14, f"process {rank}", anchor="end") for rank, y in enumerate(rows)]
    for place, title in (
        (0, "reduce-scatter: add the piece that comes"),
        (processes - 1, "all-gather: take the piece that comes"),
    ):
        parts.append(text(left + place * column, 22, title, weight="bold"))
    for step in range(steps + 1):
        x = left + step * column
        name = f"step {step + 1}" if step < steps else "the end"
        parts.append(text(x + 2 * cell, top - 12, name, size=12, anchor="middle", colour="#555"))
        leaving = [(rank - step) % processes if step < steps else None for rank in range(processes)]
        for rank, y in enumerate(rows):
            parts += row_of_pieces(x, y, cell, holds[rank], leaving[rank])
        if step < steps:
            sent = [holds[rank][piece] for rank, piece in enumerate(leaving)]
            for rank, piece in enumerate(leaving):
                receiver = holds[(rank + 1) % processes]
                receiver[piece] = sent[rank] + (receiver[piece] if step < processes - 1 else 0)
    assert holds == [[processes] * processes] * processes, holds
    remark = "numbers: how many gradients a piece is the sum of; framed: sent to the process below"
    parts.append(text(12, rows[-1] + 48, f"{remark}, by the last to the first", size=12, colour="#555"))
    return page(parts, rows[-1] + 60)


def row_of_pieces(x: float, y: float, cell: float, holds: list[int], leaves: int | None) -> list[str]:
    """One process's pieces; the one that leaves is framed, above its neighbours' edges."""
    shades = ("", "#fee6ce", "#fdc28c", "#f5883c", "#a63603")
    parts = []
    for piece in sorted(range(len(holds)), key=lambda piece: piece == leaves):
        count = holds[piece]
        edge = "#000" if piece == leaves else "#fff"
        parts.append(rectangle(x + piece * cell, y, cell, cell, shades[count], edge))
        colour, weight = "#fff" if count == len(holds) else "#222", "bold" if piece == leaves else "normal"
        middle = x + (piece + 0.5) * cell
        parts.append(text(middle, y + 14, str(count), size=12, anchor="middle", colour=colour, weight=weight))
    return parts


def memory() -> str:
    """Bytes a parameter under AdamW in float32, for each stage, with 8 processes."""
    processes, left, scale, top = 8, 150, 38.0, 40
    parts = []
    stages = (("data parallel", 0), ("ZeRO 1", 1), ("ZeRO 2", 2), ("FSDP (ZeRO 3)", 3))
    kinds = (("forward", "parameters"), ("backward", "gradients"), ("step", "optimizer's state"))
    parts.append(text(12, 24, f"bytes a parameter on each of {processes} processes", weight="bold"))
    for name, stage in stages:
        x = float(left)
        parts.append(text(left - 8, top + 16, name, anchor="end"))
        # stage 1 cuts the state, stage 2 the gradients as well, stage 3 everything
        sizes = [size / (processes if stage >= cut else 1) for size, cut in ((4, 3), (4, 2), (8, 1))]
        for (kind, _), size in zip(kinds, sizes, strict=True):
            parts.append(rectangle(x, top, size * scale, 24, COLOURS[kind][0]))
            label = f"{size:g}"
            if LETTER * len(label) + 2 < size * scale:
                parts.append(text(x + size * scale / 2, top + 16, label, size=12, anchor="middle"))
            x += size * scale
        parts.append(text(x + 6, top + 16, f"= {sum(sizes):g}", weight="bold"))
        top += 34
    return page([*parts, *meanings(kinds, top + 4)], top + 28)


def meanings(legend: Iterable[tuple[str, str]], top: float) -> list[str]:
    """What the colours mean, in one line."""
    parts, x = [], 12.0
    for kind, meaning in legend:
        parts.append(rectangle(x, top, 12, 12, COLOURS[kind][0]))
        parts.append(text(x + 17, top + 10, meaning, size=12))
        x += 17 + LETTER * len(meaning) + 14
    return parts


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str = "#fff") -> str:
    """A box."""
    place = f'x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"/>'


def text(x: float, y: float, words: str, *, size: int = 13, anchor: str = "start", colour: str = "#222",
         weight: str = "normal") -> str:  # fmt: skip
    """A line of text."""
    return (
        f'<text x="{x:.1f}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def page(parts: Iterable[str], height: float) -> str:
    """A whole SVG file."""
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" font-family="Helvetica, Arial, sans-serif">\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="6" fill="#fff" '
        f'stroke="#ccc"/>\n{lines}\n</svg>\n'
    )


FIGURES = {
    "data-parallel.svg": four_ways,
    "ring-all-reduce.svg": ring_all_reduce,
    "zero.svg": zero_stages,
    "fsdp.svg": sharded_parameters,
    "sharding-memory.svg": memory,
}
"""File in docs/images -> what draws it."""

if __name__ == "__main__":
    for name, figure in FIGURES.items():
        write_text_atomically(IMAGES / name, figure())
