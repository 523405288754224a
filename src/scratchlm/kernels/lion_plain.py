r"""Lion's arithmetic without Triton: lists of tensors come in and are moved by the best plain way for them.

    u = sign(m + (1 - beta1) * (g - m))            direction
    p = p - decay * p                              where u * p >= 0, if decay is cautious; else everywhere
    p = p - step_size * u
    m = m + (1 - beta2) * (g - m)                  memory

    float32 on a CPU           one compiled pass over memory (lion_numba.py)
    everything else            one call per operation for all tensors together (torch._foreach_*)

Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scratchlm.kernels.decay import decay_


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
        params: What moves; at least one.
        grads: Gradients; of the same shapes, and so are the memories.
        memories: Means of the gradients.
        betas: How much of the memory goes into the direction, and how much of it is kept; each in [0, 1).
        decay: The part of a parameter that goes: lr * weight_decay.
        cautious: Decay only where the update goes towards 0, too.
        step_size: How far every coordinate moves.
    """
    if params[0].device.type == "cpu":
        from scratchlm.kernels import lion_numba, numba_lists  # not at the top: half a second for a GPU

        if numba_lists.can_move(params, grads, memories):
            numbers = {"betas": betas, "decay": decay, "cautious": cautious, "step_size": step_size}
            lion_numba.move(params, grads, memories, **numbers)
            return
    directions = torch._foreach_lerp(memories, grads, 1 - betas[0])
    torch._foreach_sign_(directions)
    decay_(params, directions, decay, cautious=cautious)
    torch._foreach_add_(params, directions, alpha=-step_size)
    torch._foreach_lerp_(memories, grads, 1 - betas[1])


def move_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    memories: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    decay: float,
    cautious: bool,
    step_size: float,
) -> None:
    """As `move`, one tensor at a time: the formula.

    Args:
        params: As `move`.
        grads: As `move`.
        memories: As `move`.
        betas: As `move`.
        decay: As `move`.
        cautious: As `move`.
        step_size: As `move`.
    """
    for p, g, m in zip(params, grads, memories, strict=True):
        u = (m + (1 - betas[0]) * (g - m)).sign()
        lost = decay * (u * p >= 0).to(p.dtype) if cautious else decay
        p.copy_(p - lost * p - step_size * u)
        m.copy_(m + (1 - betas[1]) * (g - m))
