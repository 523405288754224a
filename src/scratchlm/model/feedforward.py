r"""Vectors in, vectors of the same width out: the feed-forward half of a block, each token on its own.

    swiglu:  y = W2 (silu(W1 x) * W3 x)          three matrices; the gate W1 decides what of W3 x passes
    silu:    y = W2 silu(W1 x)                   silu(z) = z * sigmoid(z)
    gelu:    y = W2 gelu(W1 x)                   gelu(z) = z * Phi(z), Phi the normal distribution function
    relu2:   y = W2 max(W1 x, 0)^2

`d_ff` is the inner width. Where it is not given, SwiGLU takes 8/3 d_model rounded to a multiple of 64 and
the others 4 d_model: the same number of parameters, so that they can be compared.

Sources: Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6; Hendrycks and Gimpel 2016,
https://arxiv.org/abs/1606.08415; So et al. 2021, https://arxiv.org/abs/2109.08668 (squared ReLU). As in the
sources; the tanh approximation of GELU, as GPT-2 has it, is the setting `approximate`.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.model.linear import Linear, linear
from scratchlm.registry import Family

FEEDFORWARDS: Family["FeedForward"] = Family("feedforward", package="scratchlm.model")
"""Feed-forward parts: built from (d_model, d_ff or None, bias), called on (batch, time, d_model)."""


def silu(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return z * sigmoid(z)."""
    return z * torch.sigmoid(z)


def gelu(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return z times the probability that a standard normal number lies below z."""
    return 0.5 * z * (1 + torch.erf(z * math.sqrt(0.5)))


def gelu_tanh(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return GPT-2's approximation of `gelu`; the two differ by less than 0.001."""
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def relu2(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return max(z, 0)^2."""
    return z.clamp(min=0).square()


class FeedForward(Module, ABC):
    """What all feed-forward parts share: two projections, w1 in and w2 out."""

    num_matrices = 2

    def __init__(self, d_model: int, d_ff: int | None, bias: bool) -> None:
        super().__init__()
        d_ff = d_ff or self.default_d_ff(d_model)
        self.w1 = Linear(d_model, d_ff, bias=bias)
        self.w2 = Linear(d_ff, d_model, bias=bias)

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        """Return the inner width that is taken when none is given: 4 d_model."""
        return 4 * d_model

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return w2 of the inner values of x."""
        return self.w2(self.inner(x))

    @abstractmethod
    def inner(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """Return the d_ff inner values of each vector."""


@FEEDFORWARDS.register("swiglu")
class SwiGLU(FeedForward):
    """A gated feed-forward: one projection decides how much of another passes."""

    num_matrices = 3

    def __init__(self, d_model: int, d_ff: int | None, bias: bool) -> None:
        super().__init__(d_model, d_ff, bias)
        self.w3 = Linear(d_model, self.w1.weight.shape[0], bias=bias)

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        """Return 8/3 d_model rounded to a multiple of 64. Examples: 512 -> 1344, 768 -> 2048."""
        return max(64, round(d_model * 8 / 3 / 64) * 64)

    def inner(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """Return silu(W1 x) * W3 x; the two products run as one."""
        weight = torch.cat((self.w1.weight, self.w3.weight))
        bias = None if self.w1.bias is None else torch.cat((self.w1.bias, self.w3.bias))
        gate, value = linear(x, weight, bias).chunk(2, dim=-1)
        return silu(gate) * value


@FEEDFORWARDS.register("silu")
class SiLUFeedForward(FeedForward):
    """Two matrices around SiLU."""

    def inner(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """Return silu(W1 x)."""
        return silu(self.w1(x))


@FEEDFORWARDS.register("gelu")
class GELUFeedForward(FeedForward):
    """Two matrices around GELU, exact or with GPT-2's tanh approximation."""

    def __init__(
        self, d_model: int, d_ff: int | None, bias: bool, *, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__(d_model, d_ff, bias)
        self.activation = gelu if approximate == "none" else gelu_tanh

    def inner(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """Return gelu(W1 x)."""
        return self.activation(self.w1(x))


@FEEDFORWARDS.register("relu2")
class SquaredReLUFeedForward(FeedForward):
    """Two matrices around the squared ReLU."""

    def inner(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """Return max(W1 x, 0)^2."""
        return relu2(self.w1(x))
