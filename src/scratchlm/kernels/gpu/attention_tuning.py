"""Attention's arguments come in, the tiles that were fastest for them on this GPU go out.

The table in attention_tiles.py holds for every GPU of its kind; which tile is fastest also depends on the
lengths, the number of heads and the driver. Here the first call with new arguments tries all candidates, one
kernel after the other, and remembers the best: some two dozen compilations a kernel, and nothing from then
on. The forward kernel is timed by itself. The two of the backward pass need each other's memory, so the whole
pass is timed, while one kernel's tile changes and the other's stays. Choosing attention=triton_tuned asks for
it; nothing else does.

Arguments count as the same when widths, dtype and masks are the same and the lengths are equal rounded up to
a power of two, so that a text that grows does not measure at every step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scratchlm.kernels.gpu.attention_backward import Saved, backward, table_tiles
from scratchlm.kernels.gpu.attention_forward import forward
from scratchlm.kernels.gpu.attention_memory import Masks, can_describe
from scratchlm.kernels.gpu.attention_tiles import Tile, choose_tile, is_crowded

SHAPES = {
    "forward": ((128, 64, 4), (128, 64, 8), (128, 128, 8), (64, 64, 4), (64, 128, 4), (128, 32, 4)),
    "backward_queries": ((128, 64, 4), (128, 64, 8), (64, 64, 4), (64, 128, 4), (128, 128, 8), (64, 32, 4)),
    "backward_keys": ((64, 64, 4), (64, 128, 8), (32, 128, 8), (32, 128, 4), (32, 64, 4), (128, 64, 8)),
}
"""Kernel -> queries, keys and warps that are tried: the table's, and its neighbours in each direction."""

STAGES = (2, 3)

MILLISECONDS = (5, 20)
"""Warming up and measuring each candidate: a hundred runs of a small case, several of a large one."""

_best: dict[tuple[Any, ...], Tile] = {}
"""What was measured, by kernel and arguments."""


def tuned_forward(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tile:
    """Return the fastest tile of the forward kernel; the table's where kernels are interpreted."""
    describable = can_describe(k, v)
    table = choose_tile("forward", q, v.shape[3], describable=describable, crowded=is_crowded(masks))
    return _fastest(
        "forward", table, describable, (q, k, v), masks, lambda tile: forward(q, k, v, masks, tile)
    )


def tuned_backward(saved: Saved, dout: Tensor, masks: Masks) -> tuple[Tile, Tile]:
    """Return the fastest tiles of the backward pass in two passes."""
    queries, keys = table_tiles(saved, dout, masks, "two_pass")
    tensors = saved[:3]

    def run(by_queries: Tile, by_keys: Tile) -> Any:
        return backward(saved, dout, masks, tiles=(by_queries, by_keys))

    best = _fastest(
        "backward_queries", queries, can_describe(saved.k, saved.v), tensors, masks, lambda x: run(x, keys)
    )
    describable = can_describe(saved.q, dout)
    return best, _fastest("backward_keys", keys, describable, tensors, masks, lambda x: run(best, x))


def candidates(kernel: str, table: Tile, describable: bool) -> list[Tile]:
    """Return the tiles that are tried, the table's first."""
    loads = ["pointers", "descriptors"] if describable and table.loads == "descriptors" else ["pointers"]
    tried = [Tile(*shape, stages, load) for shape in SHAPES[kernel] for stages in STAGES for load in loads]
    return [table, *(tile for tile in tried if tile != table)]


def _fastest(
    kernel: str,
    table: Tile,
    describable: bool,
    tensors: tuple[Tensor, ...],
    masks: Masks,
    run: Callable[[Tile], Any],
) -> Tile:
    q, k, v = tensors
    if not q.is_cuda or q.dtype == torch.float32:
        return table
    lengths = tuple(1 << (x.shape[2] - 1).bit_length() for x in (q, k))
    given = tuple(value is not None for value in masks[2:])
    shapes = (q.shape[0] * q.shape[1], k.shape[1], q.shape[3], v.shape[3], *lengths)
    key = (kernel, q.device, q.dtype, describable, *shapes, masks.causal, masks.window, *given)
    if key not in _best:
        tried = candidates(kernel, table, describable)
        _best[key] = min(tried, key=lambda tile: _milliseconds(run, tile))
    return _best[key]


def _milliseconds(run: Callable[[Tile], Any], tile: Tile) -> float:
    """Time one tile; infinite if it does not fit the GPU."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    warm_up, measure = MILLISECONDS
    try:
        return do_bench(lambda: run(tile), warmup=warm_up, rep=measure, return_mode="median")
    except OutOfResources:
        return float("inf")
