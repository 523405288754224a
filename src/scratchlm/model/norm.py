r"""Vectors in, vectors of a steady size out: RMSNorm, LayerNorm, and no norm at all.

    rmsnorm:    y = x / sqrt(mean(x^2) + eps) * w
    layernorm:  y = (x - mean(x)) / sqrt(var(x) + eps) * w + b
    none:       y = x

Each vector (the last axis) is normalised alone, so a token never sees another one here. The arithmetic is
done in float32: the square of a bfloat16 number loses its small terms. All three start as the plain
normalisation: w = 1, b = 0.

Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4; Ba et al. 2016,
https://arxiv.org/abs/1607.06450, eq. 4. As in the sources, except that eps stands under the root, as
everybody has it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter

from scratchlm.registry import Family

NORMS: Family[Module] = Family("norm", package="scratchlm.model")
"""Normalisations: built from d_model, called on (batch, ..., d_model)."""


@NORMS.register("rmsnorm")
class RMSNorm(Module):
    """Divide by the root mean square, multiply by a learned gain."""

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        gain: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = Parameter(torch.ones(d_model, device=device, dtype=dtype)) if gain else None

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return x with root mean square 1, times the gain."""
        return rms_norm(x, self.weight, eps=self.eps)


def rms_norm(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, " d_model"] | None = None, *, eps: float = 1e-5
) -> Float[Tensor, "*batch d_model"]:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis; without a weight, no gain."""
    return _RMSNorm.apply(x, weight, eps)


def rms_norm_reference(
    x: Float[Tensor, "*batch d_model"], weight: Float[Tensor, " d_model"] | None = None, *, eps: float = 1e-5
) -> Float[Tensor, "*batch d_model"]:
    """Return what `rms_norm` returns; autograd finds the gradient."""
    x_f32 = x.float()
    y = x_f32 * torch.rsqrt(x_f32.square().mean(dim=-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written down.

    With r = 1 / sqrt(mean(x^2) + eps) and n numbers in a vector:

        dw = sum over vectors of  r * dy * x
        dx = r * (w * dy) - x * r^3 / n * sum(w * dy * x)

    The backward pass needs x and r, not the four tables that autograd keeps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        x_f32 = x.float()
        # the norm reads x once and keeps no table of squares
        length = torch.linalg.vector_norm(x_f32, dim=-1, keepdim=True)
        r = torch.rsqrt(length.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, r, weight)
        y = x_f32 * r
        return (y if weight is None else y.mul_(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, r, weight = ctx.saved_tensors
        dy, x_f32 = gradients[0].float(), x.float()
        product = dy * x_f32
        dw = None if weight is None else (product.flatten(0, -2).T @ r.flatten()).to(weight.dtype)
        along = product.sum(dim=-1) if weight is None else product @ weight
        dx = dy * r if weight is None else (dy * weight).mul_(r)
        dx.addcmul_(x_f32, r.pow(3) * along.unsqueeze(-1), value=-1 / x.shape[-1])
        return dx.to(x.dtype), dw, None


@NORMS.register("layernorm")
class LayerNorm(Module):
    """Subtract the mean, divide by the standard deviation; a learned gain and offset."""

    def __init__(
        self,
        d_model: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.bias = Parameter(torch.zeros(d_model, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return x with mean 0 and variance 1, times the gain, plus the offset."""
        x_f32 = x.float()
        centred = x_f32 - x_f32.mean(dim=-1, keepdim=True)
        y = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@NORMS.register("none")
class NoNorm(Module):
    """Return the vectors as they are: for the ablation that takes the norms away."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return x."""
        return x
