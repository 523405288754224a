r"""AdamW's arithmetic, one tensor at a time: parameters, gradients and two means come in and are moved.

    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g^2
    p = p - decay * p                              where m * p >= 0, if decay is cautious; else everywhere
    p = p - step_size * m / (sqrt(v) + eps)

This is AdamW's inner loop: what depends on the number of the step alone (the corrections of both means) is in
`step_size` and `eps` already, as optim/adamw.py explains. Read it beside the kernels that do the same in one
pass over memory: adamw_numba.py for a CPU, gpu/adamw.py for a GPU.

Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2.
"""

from collections.abc import Sequence

from torch import Tensor


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
        params: What moves.
        grads: Gradients; of the same shapes, and so are the other two lists.
        means: Means of the gradients.
        squares: Means of their squares.
        betas: How much of the two means is kept; each in [0, 1).
        decay: The part of a parameter that goes: lr * weight_decay.
        cautious: Decay only where the update goes towards 0, too.
        step_size: Factor of m / (sqrt(v) + eps).
        eps: Added to the root. Above 0.
    """
    beta1, beta2 = betas
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        m.copy_(m + (1 - beta1) * (g - m))
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        kept = 1 - decay * (m * p >= 0).to(p.dtype) if cautious else 1 - decay
        p.copy_(kept * p - step_size * m / (v.sqrt() + eps))
