r"""Decoupled weight decay: parameters and their updates come in, parameters a little nearer to 0 go out.

    everywhere:  p = p - lr * weight_decay * p
    cautious:    p = p - lr * weight_decay * p * (u * p >= 0)        u: the update, which will be subtracted

Plain decay also pulls at coordinates that the loss is pushing outwards, so it moves the minimum that training
finds. Cautious decay leaves those alone and acts only where the update, too, goes towards 0 (or does
nothing): it shortens the way and leaves the goal where it was. It costs two more passes, and nothing to keep.

Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; Chen et al. 2025, "Cautious Weight Decay",
https://arxiv.org/abs/2510.12402, algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_(
    params: Sequence[Tensor], updates: Sequence[Tensor], amount: float, *, cautious: bool = False
) -> None:
    """Shrink parameters in place; call it before the update is applied.

    Args:
        params: What shrinks.
        updates: What will be subtracted from each parameter, in any positive scale: only signs matter.
        amount: lr * weight_decay, the part of a parameter that goes. 0 does nothing.
        cautious: Spare the coordinates that the update moves away from 0.

    Example: p = [1, -1], u = [2, 2], amount = 0.1 -> [0.9, -0.9]; cautious -> [0.9, -1].
    """
    if not amount:
        return
    if not cautious:
        torch._foreach_mul_(params, 1 - amount)
        return
    agree = torch._foreach_mul(params, updates)
    for p, product in zip(params, agree, strict=True):
        p.sub_(p * (product >= 0), alpha=amount)
