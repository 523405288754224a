"""Which tiles are fastest? Each candidate in the place of the table's entry, checked and timed.

The static table (kernels/gpu/attention_tiles.py) was made without a GPU. Here each kernel's entry is replaced
by one candidate after the other, short and long texts are timed with it, and its results are compared with
those of the table: a tile that is fast and wrong is no candidate. `sweep_warm` compiles the candidates
beforehand, beside other parts. The best of each kernel and width stand at the end of the report and in
DIR/tiles.json.

In the whole proof the sweep has about half a minute for some ninety candidates: kernels take turns, and the
last candidates of each are cut. A call of its own, to a folder of its own, measures all:

    python -m benchmarks.gpu --out SWEEP --parts sweep-warm,sweep,sweep-constants --seconds 600

What is swept is a causal mask and 16-bit numbers; tiles for other masks (CROWDED) and float32 are not.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, Case, MissedError, MissingError, Row
from benchmarks.gpu.measure import kernel, milliseconds
from benchmarks.gpu.speed_attention import LONG_64, LONG_128, SHORT_64, SHORT_128, TINY, Shape
from benchmarks.gpu.tiles import CANDIDATES, Candidate, in_turn
from torch import Tensor

SHAPES = {64: (SHORT_64, LONG_64), 128: (SHORT_128, LONG_128)}
MOST_APART = 1e-2
"""How far results may be from the table's tile, as a whole: rounding in bfloat16 gives 2e-3 to 5e-3."""


def sweep(bench: Bench) -> list[Case]:
    """The table's tile of each kernel first, then the candidates, kernels in turn (tiles.py)."""
    return list(_cases(bench, warm=False))


def sweep_warm(bench: Bench) -> list[Case]:
    """Compile what `sweep` measures."""
    return list(_cases(bench, warm=True))


def _cases(bench: Bench, *, warm: bool) -> Iterator[Case]:
    for name, width, candidate in in_turn(bench.pick(CANDIDATES, {("forward", 64): ((16, 16, 4, 1),)})):
        words = "the table's" if candidate is None else " x ".join(map(str, candidate))
        run = partial(_measure, bench, name, width, candidate, warm=warm)
        yield Case(f"{name}, d {width}, {words}", run)


@contextmanager
def replaced(name: str, width: int, candidate: Candidate | None, device: torch.device) -> Iterator[Candidate]:
    """Put a tile into the table for a while; yield the tile that is used."""
    from scratchlm.kernels.gpu import attention_tiles

    if name not in attention_tiles.TILES:
        raise MissingError(f"the table has no kernel {name}")
    capability = 90
    if device.type == "cuda":
        capability = (
            10 * torch.cuda.get_device_capability(device)[0] + torch.cuda.get_device_capability(device)[1]
        )
    table: Any = attention_tiles.TILES[name][attention_tiles.table_of(capability)]
    widest = min(entry for entry in table if entry >= width)
    before = table[widest]
    if candidate is not None:
        table[widest] = attention_tiles.Tile(*candidate, *before[len(candidate) :])
    try:
        yield tuple(table[widest])
    finally:
        table[widest] = before


@cache
def _inputs(bench: Bench, shape: Shape) -> tuple[Tensor, ...]:
    size = (shape.batch, shape.heads, shape.tokens, shape.width)
    q, k, v = (bench.randn(*size, seed=seed).requires_grad_() for seed in range(3))
    return q, k, v, bench.randn(*size, seed=3)


@cache
def _results(bench: Bench, name: str, shape: Shape) -> list[Tensor]:
    """What the table's tiles give, computed once."""
    return _call(bench, name, shape)


def _call(bench: Bench, name: str, shape: Shape) -> list[Tensor]:
    function = kernel("attention", "triton_one_pass" if "one_pass" in name else "triton", bench)
    q, k, v, upstream = _inputs(bench, shape)
    out = function(q, k, v)
    return [out.detach()] if name == "forward" else list(torch.autograd.grad(out, (q, k, v), upstream))


def _measure(bench: Bench, name: str, width: int, candidate: Candidate | None, *, warm: bool) -> Row:
    shapes = SHAPES[width] if not bench.tiny else (TINY, TINY)
    if candidate is not None and not warm:
        _results(bench, name, shapes[0])  # before the table changes
    with replaced(name, width, candidate, bench.device) as tile:
        if warm:
            _call(bench, name, shapes[0])
            return {}
        times = [_time(bench, name, shape) for shape in shapes]
        found = _call(bench, name, shapes[0])
    for ours, table in zip(found, _results(bench, name, shapes[0]), strict=True):
        apart = float((ours.double() - table.double()).norm() / table.double().norm())
        if not apart <= MOST_APART:
            raise MissedError(f"gives results {apart:.1e} away from the table's tile", {})
    milliseconds_each = dict(zip(("short_ms", "long_ms"), times, strict=True))
    mean = math.sqrt(times[0] * times[1])
    return {
        "kernel": name,
        "width": width,
        "tile": tile,
        "table": candidate is None,
        "ms": mean,
    } | milliseconds_each


def _time(bench: Bench, name: str, shape: Shape) -> float:
    function = kernel("attention", "triton_one_pass" if "one_pass" in name else "triton", bench)
    q, k, v, upstream = _inputs(bench, shape)
    if name == "forward":
        return milliseconds(bench, lambda: function(q, k, v), seconds=0.1)["ms"]
    out = function(q, k, v)
    backward = partial(torch.autograd.grad, out, (q, k, v), upstream, retain_graph=True)
    return milliseconds(bench, backward, seconds=0.1)["ms"]
