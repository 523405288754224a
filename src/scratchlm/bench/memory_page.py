r"""A recording of memory comes in, a page that needs nothing else goes out: memory over time, and its peak.

    bytes ^         ____
          |     ___/####\__       activations pile up in the forward pass,
          |  __/##########\__     the backward pass gives them back and leaves gradients,
          | |===weights====|=     weights and optimizer state stay
          +-------------------> time

The time axis is cut into columns as wide as a few pixels; each shows the moment of its largest total, so that
no peak is lost however short it was.
"""

import math
import re
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.bench import tables
from scratchlm.bench.memory import KINDS, Block, Kind, Phase, Recording
from scratchlm.runtime import write_text_atomically
from scratchlm.study import pages

COLUMNS = {"wide": 380, "narrow": 170}
"""Moments of a drawing; two units of width each."""
HEIGHT = 300
"""Units of a drawing's height that memory is drawn in."""
LARGEST = 16
"""Blocks in the table of the largest ones."""

MEANINGS: dict[Kind, str] = {
    "weights": "the model's parameters and tables",
    "optimizer": "what the optimizer keeps per parameter",
    "batch": "token ids",
    "gradients": "one number per parameter, from the backward pass to the next step",
    "activations": "made in the forward pass and kept for the backward pass",
    "temporary": "inside one operation or between two",
}
"""Words of the legend's table."""


class Column(NamedTuple):
    """A moment: bytes of each kind, in the order of KINDS."""

    nanoseconds: int
    by_kind: tuple[int, ...]

    @property
    def total(self) -> int:
        """Bytes alive."""
        return sum(self.by_kind)


class Peak(NamedTuple):
    """The moment of the largest total, and what was alive then."""

    column: Column
    phase: str
    blocks: list[Block]


def write_memory_page(
    path: Path, recording: Recording, *, title: str, description: str, machine: str
) -> None:
    """Write the page.

    Args:
        path: HTML file to write, atomically.
        recording: What `memory.record` found.
        title: The model.
        description: How it was run.
        machine: Where.
    """
    from jinja2 import ChoiceLoader, PackageLoader

    environment = pages.environment()
    assert environment.loader is not None
    environment.loader = ChoiceLoader([PackageLoader("scratchlm.bench"), environment.loader])
    environment.filters["bytes"] = tables.size
    values = _values(recording) | {"title": title, "description": description, "machine": machine}
    html = environment.get_template("memory.html.j2").render(values)
    write_text_atomically(path, html)


def columns(recording: Recording, number: int) -> list[Column]:
    """Return `number` moments, each that of the largest total in its share of the time."""
    width = max(1, -(-recording.nanoseconds // number))
    now, found, waiting = [0] * len(KINDS), [], deque(_changes(recording))
    for begin in range(0, number * width, width):
        best = Column(begin, tuple(now))
        while waiting and waiting[0][0] < begin + width:
            moment, kind, num_bytes = waiting.popleft()
            now[kind] += num_bytes
            if sum(now) > best.total:
                best = Column(moment, tuple(now))
        found.append(best)
    return found


def peak(recording: Recording) -> Peak:
    """Return the moment at which most bytes are alive."""
    now, best = [0] * len(KINDS), Column(0, (0,) * len(KINDS))
    for moment, kind, num_bytes in _changes(recording):
        now[kind] += num_bytes
        if sum(now) > best.total:
            best = Column(moment, tuple(now))
    alive = [block for block in recording.blocks if block.begin <= best.nanoseconds < block.end]
    phase = next((p.name for p in recording.phases if p.begin <= best.nanoseconds <= p.end), "between phases")
    return Peak(best, phase, sorted(alive, key=lambda block: -block.num_bytes))


def _changes(recording: Recording) -> list[tuple[int, int, int]]:
    """Moment, kind and change of bytes; releases first where several things happen at once."""
    found = []
    for block in recording.blocks:
        kind = KINDS.index(block.kind)
        found += [(block.begin, kind, block.num_bytes), (block.end, kind, -block.num_bytes)]
    return sorted(found, key=lambda change: (change[0], change[2]))


def _values(recording: Recording) -> dict[str, Any]:
    found = peak(recording)
    top = _round_up(found.column.total)
    present = [
        number for number, _ in enumerate(KINDS) if any(b.kind == KINDS[number] for b in recording.blocks)
    ]
    return {
        "drawings": [_drawing(recording, shape, present, top) for shape in COLUMNS],
        "kinds": [
            _Kind(KINDS[number], found.column.by_kind[number], found.column.total, MEANINGS[KINDS[number]])
            for number in present
        ],
        "peak": found,
        "kept": max(
            (_kept(recording, phase) for phase in recording.phases if phase.name == "forward"), default=0
        ),
        "largest": [
            _Row(block.num_bytes, block.kind, block.made_by, block.within, (block.end - block.begin) / 1e6)
            for block in found.blocks[:LARGEST]
        ],
        "parts": _parts(found.blocks),
        "milliseconds": recording.nanoseconds / 1e6,
        "num_blocks": len(recording.blocks),
    }


class _Kind(NamedTuple):
    """A row of the legend's table."""

    name: str
    num_bytes: int
    total: int
    meaning: str

    @property
    def share(self) -> float:
        """Of the peak."""
        return self.num_bytes / max(1, self.total)


class _Row(NamedTuple):
    """A row of the table of the largest blocks."""

    num_bytes: int
    kind: str
    made_by: str
    within: str
    milliseconds: float


class _Part(NamedTuple):
    """What one part of the model has made that is alive, all layers together."""

    name: str
    num_blocks: int
    num_bytes: int
    share: float


class _Drawing(NamedTuple):
    """Everything that the template writes into an SVG."""

    shape: str
    width: int
    height: int
    areas: list[tuple[str, str]]
    """Kind and path."""
    ticks: list[tuple[float, str]]
    """Height and text of the lines at the side."""
    phases: list[tuple[float, float, str]]
    """Begin, width and name; no name where there is no room."""
    hints: list[tuple[int, str]]
    """Place of a moment and what a pointer over it shows."""
    times: list[tuple[float, str]]


def _drawing(recording: Recording, shape: str, present: list[int], top: float) -> _Drawing:
    number = COLUMNS[shape]
    found, width = columns(recording, number), 2 * number
    scale, per_ns = HEIGHT / top, width / max(1, recording.nanoseconds)
    lower = [0.0] * number
    areas = []
    for kind in present:
        upper = [low + column.by_kind[kind] * scale for low, column in zip(lower, found, strict=True)]
        areas.append((KINDS[kind], _path(lower, upper)))
        lower = upper
    phases = [
        (phase.begin * per_ns, (phase.end - phase.begin) * per_ns, _fitting(phase, per_ns))
        for phase in recording.phases
    ]
    ticks = [(HEIGHT - top * share * scale, _tick(top * share)) for share in (0.25, 0.5, 0.75, 1.0)]
    return _Drawing(
        shape, width, HEIGHT, areas, ticks, phases,
        hints=[(2 * place, _hint(column, recording, present)) for place, column in enumerate(found)],
        times=[
            (width * share, f"{recording.nanoseconds * share / 1e6:,.0f} ms")
            for share in (0.0, 0.5, 1.0)
        ],
    )  # fmt: skip


def _path(lower: list[float], upper: list[float]) -> str:
    """Steps along the upper edge, and back along the lower one."""
    there = [f"H{2 * place}V{HEIGHT - y:.1f}" for place, y in enumerate(upper)]
    back = [f"H{2 * place + 2}V{HEIGHT - y:.1f}" for place, y in enumerate(lower)][::-1]
    return f"M0 {HEIGHT - lower[0]:.1f}{''.join(there)}{''.join(back)}H0Z"


def _tick(num_bytes: float) -> str:
    """A round size without the zeros behind its point: 8_000_000 -> "8 MB"."""
    return re.sub(r"\.?0+ ", " ", text) if "." in (text := tables.size(num_bytes)) else text


def _hint(column: Column, recording: Recording, present: list[int]) -> str:
    phase = next((p.name for p in recording.phases if p.begin <= column.nanoseconds <= p.end), "between")
    lines = [f"{column.nanoseconds / 1e6:,.1f} ms, {phase}: {tables.size(column.total)}"]
    lines += [f"{KINDS[kind]} {tables.size(column.by_kind[kind])}" for kind in reversed(present)]
    return "\n".join(lines)


def _fitting(phase: Phase, per_ns: float) -> str:
    """The name of a phase where it fits above it; a letter takes about 7 units."""
    return phase.name if 7 * len(phase.name) < (phase.end - phase.begin) * per_ns else ""


def _kept(recording: Recording, phase: Phase) -> int:
    """Bytes of activations at the end of a forward pass."""
    return sum(
        block.num_bytes
        for block in recording.blocks
        if block.kind == "activations" and block.begin <= phase.end < block.end
    )


def _parts(alive: list[Block]) -> list[_Part]:
    """Activations and temporary blocks; layers.0.attn and layers.1.attn together are layers.*.attn."""
    found: dict[str, list[int]] = {}
    for block in alive:
        if block.kind in ("activations", "temporary"):
            name = re.sub(r"\.\d+", ".*", block.within) or block.made_by
            found.setdefault(name, []).append(block.num_bytes)
    total = max(1, sum(map(sum, found.values())))
    parts = [_Part(name, len(sizes), sum(sizes), sum(sizes) / total) for name, sizes in found.items()]
    return sorted(parts, key=lambda part: -part.num_bytes)[:LARGEST]


def _round_up(value: float) -> float:
    """The next 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6 or 8 times a power of ten: quarters of it are round."""
    power = 10.0 ** math.floor(math.log10(max(1.0, value)))
    return next(step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value)
