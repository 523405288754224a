r"""Queries or keys and the angles of their positions in, the turned ones out: RoPE's one operation.

    (a, b) -> (a cos - b sin, a sin + b cos)      a, b: the first and the second half of the last axis

The gradient of a rotation is the rotation back: the same line with -sin. It is done in float32: an angle's
cosine in bfloat16 is off by up to 1/500.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34; pairs are halves instead of neighbours,
which is the same once the rows of the projections are arranged (model/position.py).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(
    x: Float[Tensor, "batch heads time d_head"],
    cos: Float[Tensor, "time pairs"],
    sin: Float[Tensor, "time pairs"],
) -> Float[Tensor, "batch heads time d_head"]:
    """Return x with pair k of each vector, (x[k], x[k + d_head / 2]), turned by its position's angle.

    Args:
        x: Queries or keys.
        cos: Cosines of the angles, one row for each token.
        sin: Sines of the angles.
    """
    return _Rotate.apply(x, cos, sin)


def rotate_reference(
    x: Float[Tensor, "batch heads time d_head"],
    cos: Float[Tensor, "time pairs"],
    sin: Float[Tensor, "time pairs"],
) -> Float[Tensor, "batch heads time d_head"]:
    """Return what `rotate` returns, by complex numbers; autograd finds the gradient."""
    a, b = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """The rotation, and the rotation back as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_halves(gradients[0], cos, -sin), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
