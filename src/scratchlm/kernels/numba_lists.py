r"""Lists of float32 tensors on a CPU come in, one compiled loop walks through all of them.

    lists     params [p0, p1, ...], grads [g0, g1, ...], ...      tensor i of every list has one size
    table     p0  g0  ...  size0                                  addresses, as 64-bit integers
              p1  g1  ...  size1

Written with tensor operations an optimizer passes over memory several times and calls several functions for
each tensor. Here the addresses of all tensors go into one table and one compiled loop walks through it: what
is read or written is so once, and the cost of a call is paid once a step. The loop is memory's speed already
on one core, so threads help only parameters that leave the cache; below that they would wait for each other
more than they save. The result does not depend on the number of threads.

Source: Numba, https://numba.readthedocs.io.
"""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

with warnings.catch_warnings():
    # Numba loads this while it compiles, and there NumPy warns that training flushes subnormal numbers to 0
    warnings.simplefilter("ignore", UserWarning)
    import numpy.ma

log = logging.getLogger("scratchlm")

THREADS_FROM = 1024 * 1024
"""Parameters of a call from which on threads share the work: those of AdamW are 28 MB then, about what a
cache holds. Of 4.3 million, of which a table of embeddings is 1.05 million, threads for that table as well
make 0.94 to 0.98 (three runs) of the speed of torch's fused AdamW on two cores where 0.92 was."""

CHUNK = 64 * 1024
"""Coordinates that a thread takes at a time: for AdamW 1.75 MB of memory traffic, some 50 us of work."""


def can_move(*lists: Sequence[Tensor]) -> bool:
    """Whether all tensors lie in this machine's memory, whole, in float32, and nothing traces the call."""
    return not torch.compiler.is_compiling() and all(
        t.dtype is torch.float32 and t.is_cpu and t.is_contiguous() for tensors in lists for t in tensors
    )


def walk(
    lists: Sequence[Sequence[Tensor]],
    numbers: Iterable[float],
    *,
    on_one: Callable[..., None],
    on_threads: Callable[..., None],
) -> None:
    """Call a compiled loop with a table of addresses and sizes, and numbers.

    Args:
        lists: Tensors for which `can_move` holds; tensor i of every list has one size.
        numbers: What the loop computes with, in float32.
        on_one: (table, numbers), one row of the table after another.
        on_threads: The same with `numba.prange`, each row whole on one thread.
    """
    sizes = [t.numel() for t in lists[0]]
    threaded = sum(sizes) >= THREADS_FROM and torch.get_num_threads() > 1
    addresses = [[t.data_ptr() for t in tensors] for tensors in lists]
    table = np.ascontiguousarray(np.array([*addresses, sizes], dtype=np.int64).T)
    numbers = np.array([*numbers], dtype=np.float32)
    if threaded:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        on_threads(_cut(table, CHUNK), numbers)
    else:
        on_one(table, numbers)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at the first call; the machine code is kept on disk where possible.

    Args:
        options: Numba's: `parallel`, `fastmath`.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        plain = inspect.unwrap(function)  # a shape-checking hook may have wrapped it
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **settings)(plain)
        except RuntimeError as error:
            log.warning("compiled code cannot be cached, each process compiles anew (seconds): %s", error)
            return numba.njit(**settings)(plain)

    return compile_


@compiled()
def _cut(table, chunk):  # noqa: ANN001, ANN202
    """Rows of at most `chunk` coordinates each, in the same order."""
    last = table.shape[1] - 1
    num_pieces = 0
    for row in table:
        num_pieces += -(-row[last] // chunk)
    pieces, i = np.empty((num_pieces, last + 1), np.int64), 0
    for row in table:
        for start in range(0, row[last], chunk):
            for k in range(last):
                pieces[i, k] = row[k] + 4 * start  # float32: four bytes to the next coordinate
            pieces[i, last] = min(chunk, row[last] - start)
            i += 1
    return pieces


@intrinsic
def floats_at(typing_context, address):  # noqa: ANN001, ANN201 - Numba's own calling convention
    """Return a pointer to the float32 numbers at an address."""

    def code(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), code


@intrinsic
def fused(typing_context, a, b, c):  # noqa: ANN001, ANN201 - Numba's own calling convention
    """Return a * b + c for float32 numbers, rounded once, in one instruction where the processor has it."""

    def code(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), code
