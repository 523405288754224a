r"""Lists of tensors come in, a table of their addresses goes out: one launch of a kernel serves all tensors.

    lists        params [p0, p1, ...], grads [g0, g1, ...], ...       tensor i of every list has one size
    addresses    one line a tensor:     p0  g0  ...  size0            64-bit integers, on the GPU
                                        p1  g1  ...  size1
    pieces       one line a program:    (line, number of the piece)   a piece is PIECE coordinates

             program 0   program 1   program 2   program 3
           |--- PIECE --|--- PIECE --|-- rest |  |--- PIECE --|- ...
            p0 ....................................  p1 ...........

A launch costs the CPU some 10 us and a model has hundreds of tensors: one launch each would take longer than
the work. So a program looks up its tensor instead. The look-up waits twice for memory, which other programs
on the same multiprocessor use: some 70 kB of loads are then in flight where 26 kB suffice (4.3 TB/s for
0.8 us on 132 multiprocessors; computed for an H200). Tensors that lie back to back in every list (views of
flat buffers) become one line, so a model in flat buffers has one piece that is not full.

Source: the idea of torch's multi-tensor apply (NVIDIA Apex), which passes its table as a kernel argument.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Int
from torch import Tensor

PIECE = 2048
"""Coordinates of a program: 8 to a thread of 8 warps, two 16-byte accesses for each float32 list."""

NUM_WARPS = 8

ALIGNMENT = 16
"""Bytes that a thread reads at once at most; tensors that begin elsewhere are read number by number."""

KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What the kernels read and write; they compute in float32, so float64 is left to torch."""

_SHAPE, _DEVICE, _FORMAT = attrgetter("shape"), attrgetter("device"), attrgetter("dtype")

WAYS_TO_REMEMBER = 64
"""Tables that are kept: a model has a few groups, and each backward pass may put its gradients elsewhere."""


class Kind(NamedTuple):
    """What the tensors of one launch have in common, list by list."""

    devices: tuple[torch.device, ...]
    formats: tuple[torch.dtype, ...]
    whole: bool
    """Whether all are contiguous."""


class Table(NamedTuple):
    """Where tensors are, for a kernel."""

    addresses: Int[Tensor, "lines lists_and_size"]
    pieces: Int[Tensor, "programs 2"]
    aligned: bool
    """Whether all tensors begin at a multiple of ALIGNMENT bytes."""


def sort_by_kind(
    operation: str, lists: Sequence[Sequence[Tensor]]
) -> list[tuple[Kind, Sequence[Sequence[Tensor]]]]:
    """Return the lists of tensors that have one kind, for each kind.

    Raises:
        ValueError: Tensors with the same place in their lists have several shapes.
    """
    shapes = [[*map(_SHAPE, tensors)] for tensors in lists]
    if shapes.count(shapes[0]) != len(lists):
        found = next(each for each in zip(*shapes, strict=True) if len(set(each)) > 1)
        names = ", ".join(str(tuple(shape)) for shape in found)
        raise ValueError(f"{operation}: a parameter and what belongs to it have the shapes {names}.")
    if not lists[0]:
        return []
    # nearly always all are of one kind, and then this needs no Python for each tensor
    devices, formats = ([{*map(get, tensors)} for tensors in lists] for get in (_DEVICE, _FORMAT))
    if all(len(each) == 1 for each in (*devices, *formats)):
        whole = all(all(map(Tensor.is_contiguous, tensors)) for tensors in lists)
        return [
            (Kind(*(tuple(next(iter(each)) for each in kind) for kind in (devices, formats)), whole), lists)
        ]
    sorted_: dict[Kind, list[list[Tensor]]] = {}
    for tensors in zip(*lists, strict=True):
        whole = all(map(Tensor.is_contiguous, tensors))
        kind = Kind(tuple(map(_DEVICE, tensors)), tuple(map(_FORMAT, tensors)), whole)
        for tensor, same in zip(tensors, sorted_.setdefault(kind, [[] for _ in lists]), strict=True):
            same.append(tensor)
    return [*sorted_.items()]


def make_table(*lists: Sequence[Tensor]) -> Table:
    """Return the table of tensors that lie on one device, each contiguous.

    Args:
        lists: Tensor i of every list has one size; the tensors of a list have one number format.
    """
    addresses = tuple(t.data_ptr() for tensors in lists for t in tensors)
    sizes = tuple(t.numel() for t in lists[0])
    item_sizes = tuple(tensors[0].element_size() for tensors in lists)
    return _make_table(addresses, sizes, item_sizes, lists[0][0].device)


@lru_cache(WAYS_TO_REMEMBER)
def _make_table(
    addresses: tuple[int, ...], sizes: tuple[int, ...], item_sizes: tuple[int, ...], device: torch.device
) -> Table:
    """A function of the numbers alone: the same addresses and sizes are the same table, whoever asks."""
    by_list = np.array(addresses, dtype=np.int64).reshape(len(item_sizes), len(sizes))
    counts = np.array(sizes, dtype=np.int64)
    ends = by_list + counts * np.array(item_sizes, dtype=np.int64)[:, None]
    follows = (by_list[:, 1:] == ends[:, :-1]).all(axis=0)
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    lines = np.stack([*by_list[:, first], np.add.reduceat(counts, first)], axis=1)
    aligned = not (lines[:, :-1] % ALIGNMENT).any()
    return Table(to_device(lines, device), _make_pieces(tuple(lines[:, -1].tolist()), device), aligned)


@lru_cache(WAYS_TO_REMEMBER)
def _make_pieces(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    counts = -(-np.array(sizes, dtype=np.int64) // PIECE)
    lines = np.repeat(np.arange(len(sizes)), counts)
    numbers = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    return to_device(np.stack([lines, numbers], axis=1).astype(np.int32), device)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@triton.jit
def pointer_at(entry, KIND: tl.constexpr, ALIGNED: tl.constexpr):  # noqa: ANN001, ANN201
    """The address in a table's entry, as a pointer to numbers of a kind."""
    pointer = tl.load(entry).to(tl.pointer_type(KIND))
    if ALIGNED:  # an integer from memory could be any address: without this every number is one access
        pointer = tl.multiple_of(pointer, 16)
    return pointer
