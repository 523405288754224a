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

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter

from scratchlm.kernels import choose
from scratchlm.kernels.rms_norm import Normed
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
        self.feeds_product = False
        """Whether matrix products alone read the result: under autocast it may then be in their format."""
        self.rms_norm, self.add_rms_norm = choose("rms_norm").function, choose("add_rms_norm").function

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return x with root mean square 1, times the gain."""
        return self.rms_norm(x, self.weight, eps=self.eps, dtype=self._dtype(x))

    def after_adding(
        self, x: Float[Tensor, "*batch d_model"], branch: Float[Tensor, "*batch d_model"]
    ) -> Normed:
        """Return x + branch and its norm; on a GPU in one pass over memory."""
        return self.add_rms_norm(x, branch, self.weight, eps=self.eps, dtype=self._dtype(x))

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """The product's number format, on a GPU: rounding here saves a pass over the vectors, and no bit."""
        if self.feeds_product and x.is_cuda and torch.is_autocast_enabled("cuda"):
            return torch.get_autocast_dtype("cuda")
        return None


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
