r"""AdamW without Triton: lists of tensors come in and are moved by the best plain way for them.

    float32 on a CPU           one compiled pass over memory (adamw_numba.py)
    everything else            one call per operation for all tensors together (torch._foreach_*)

The second way passes over memory seven times, but its calls number seven however many tensors there are.
The formula stands in adamw_reference.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scratchlm.kernels.decay import decay_


def move(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    decay: float,
    cautious: bool,
    step_size: float,
    eps: float,
) -> None:
    """Update parameters, means and means of squares in place.

    Args:
        params: As `adamw_reference.move`; at least one.
        grads: As `adamw_reference.move`.
        means: As `adamw_reference.move`.
        squares: As `adamw_reference.move`.
        betas: As `adamw_reference.move`.
        decay: As `adamw_reference.move`.
        cautious: As `adamw_reference.move`.
        step_size: As `adamw_reference.move`.
        eps: As `adamw_reference.move`.
    """
    if params[0].device.type == "cpu":
        from scratchlm.kernels import adamw_numba, numba_lists  # not at the top: half a second for a GPU

        if numba_lists.can_move(params, grads, means, squares):
            numbers = {"betas": betas, "decay": decay, "cautious": cautious}
            adamw_numba.move(params, grads, means, squares, **numbers, step_size=step_size, eps=eps)
            return
    beta1, beta2 = betas
    torch._foreach_lerp_(means, grads, 1 - beta1)
    # before the step: decoupled; the update has the sign of its mean
    decay_(params, means, decay, cautious=cautious)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, means, denominators, -step_size)
