r"""Vectors in, vectors of root mean square 1 times a gain out: RMSNorm.

    y = x / sqrt(mean(x^2) + eps) * w

Each vector (the last axis) is normalised alone. The arithmetic is done in float32: the square of a bfloat16
number loses its small terms. The plain form here writes its gradient down; with r = 1 / sqrt(mean(x^2) + eps)
and n numbers in a vector:

    dw = sum over vectors of  r * dy * x
    dx = r * (w * dy) - x * r^3 / n * sum(w * dy * x)

so the backward pass needs x and r, not the four tables that autograd keeps. gpu/rms_norm.py has the same two
lines as kernels.

Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4. As in the source, except that eps
stands under the root, as everybody has it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Args:
        x: Vectors.
        weight: The gain; None for none.
        eps: Keeps a vector of zeros finite.
        dtype: The result's number format; None: that of x. A matrix product in bfloat16 reads it anyway.
    """
    return _RMSNorm.apply(x, weight, eps, dtype)


def rms_norm_reference(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Return what `rms_norm` returns; autograd finds the gradient."""
    x_f32 = x.to(torch.promote_types(x.dtype, torch.float32))
    y = x_f32 * torch.rsqrt(x_f32.square().mean(dim=-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(dtype or x.dtype)


class Normed(NamedTuple):
    """A sum and its norm."""

    total: Float[Tensor, "*batch d_model"]
    normed: Float[Tensor, "*batch d_model"]


def add_rms_norm(
    x: Float[Tensor, "*batch d_model"],
    branch: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Normed:
    """Return x + branch and its norm; the other arguments as in `rms_norm`."""
    total = x + branch
    return Normed(total, rms_norm(total, weight, eps=eps, dtype=dtype))


def add_rms_norm_reference(
    x: Float[Tensor, "*batch d_model"],
    branch: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Normed:
    """Return what `add_rms_norm` returns; autograd finds the gradient."""
    total = x + branch
    return Normed(total, rms_norm_reference(total, weight, eps=eps, dtype=dtype))


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written down, as in the head of this file."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> Tensor:
        x_wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # the norm reads x once and keeps no table of squares
        length = torch.linalg.vector_norm(x_wide, dim=-1, keepdim=True)
        r = torch.rsqrt(length.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, r, weight)
        y = x_wide * r
        return (y if weight is None else y.mul_(weight)).to(dtype or x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, r, weight = ctx.saved_tensors
        dy, x_wide = gradients[0].to(r.dtype), x.to(r.dtype)
        product = dy * x_wide
        dw = None if weight is None else (product.flatten(0, -2).T @ r.flatten()).to(weight.dtype)
        along = product.sum(dim=-1) if weight is None else product @ weight.to(r.dtype)
        dx = dy * r if weight is None else (dy * weight).mul_(r)
        dx.addcmul_(x_wide, r.pow(3) * along.unsqueeze(-1), value=-1 / x.shape[-1])
        return dx.to(x.dtype), dw, None, None
