r"""Lion on a CPU: lists of float32 tensors come in and are moved in one pass over memory.

    for every coordinate:    u = sign(m + (1 - beta1) * (g - m))
                             p = p - decay * p - lr * u
                             m = m + (1 - beta2) * (g - m)

20 bytes per parameter are read or written, once; tensor operations pass over memory four times
(numba_lists.py says how one loop serves all tensors).

    1,525,376 / 4,262,144 / 22,696,448 parameters, steps a second, torch's fused AdamW = 1, the fastest of
    24 steps on two busy cores of an EPYC: 1.40 / 1.48 / 1.17 on one thread, 1.12 / 1.09 / 1.39 on two

Products and sums are rounded where torch's tensor
operations round them, so both ways give the same bits for betas above one half: `fused` is a product and a
sum rounded once, all else is rounded one by one.

Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from scratchlm.kernels.numba_lists import compiled, floats_at, fused, walk


def move(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    memories: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    decay: float,
    cautious: bool,
    step_size: float,
) -> None:
    """Update parameters and memories in place.

    Args:
        params: Tensors for which `numba_lists.can_move` holds; so for the other two lists.
        grads: As `lion_plain.move`.
        memories: As `lion_plain.move`.
        betas: As `lion_plain.move`.
        decay: As `lion_plain.move`.
        cautious: As `lion_plain.move`.
        step_size: As `lion_plain.move`.
    """
    numbers = (1 - betas[0], 1 - betas[1], 1 - decay, -decay, float(cautious), step_size)
    walk((params, grads, memories), numbers, on_one=_move_on_one, on_threads=_move_on_threads)
    # the loop works behind torch's back: say so, or a backward pass through the old values would not notice
    torch.autograd.graph.increment_version([*params, *memories])


@compiled()
def _move_row(row, numbers):  # noqa: ANN001, ANN202
    size = row[3]
    p = numba.carray(floats_at(row[0]), size)
    g = numba.carray(floats_at(row[1]), size)
    m = numba.carray(floats_at(row[2]), size)
    new1, new2, kept, lost, cautious, step_size = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5],
    )  # fmt: skip
    zero = np.float32(0)
    if cautious > 0:
        for i in range(size):
            difference = g[i] - m[i]
            direction = fused(new1, difference, m[i])
            step = step_size if direction > zero else (-step_size if direction < zero else zero)
            decaying = p[i] if step * p[i] >= zero else zero
            p[i] = fused(lost, decaying, p[i]) - step
            m[i] = fused(new2, difference, m[i])
    else:
        for i in range(size):
            difference = g[i] - m[i]
            direction = fused(new1, difference, m[i])
            step = step_size if direction > zero else (-step_size if direction < zero else zero)
            p[i] = kept * p[i] - step
            m[i] = fused(new2, difference, m[i])


@compiled()
def _move_on_one(table, numbers):  # noqa: ANN001, ANN202
    for i in range(len(table)):
        _move_row(table[i], numbers)


@compiled(parallel=True)
def _move_on_threads(table, numbers):  # noqa: ANN001, ANN202
    for i in numba.prange(len(table)):
        _move_row(table[i], numbers)
