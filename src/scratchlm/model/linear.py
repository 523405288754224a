r"""Vectors or ids in, vectors out: the two layers that hold nearly all parameters, Linear and Embedding.

    linear:     y = x W^T (+ b)        W of shape (out_features, in_features), as the course stores it
    embedding:  y = W[ids]             W of shape (num_embeddings, embedding_dim)

Initial values keep the size of activations: a linear layer draws from a normal distribution with variance
2 / (in_features + out_features), an embedding from one with variance 1, both cut off at three standard
deviations, so that no single weight starts far away.

Source: Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; truncation as in Stanford
CS336, assignment 1, section 3.4.1.
"""

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, Parameter

CUT = 3.0
"""Initial values lie within this many standard deviations (CS336, assignment 1, section 3.4.1)."""

_DRAWING = threading.local()
"""`is_off` of a thread: whether it leaves initial values out."""


class Linear(Module):
    """A matrix product with a learned weight, and a learned offset when asked for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        truncated_normal_(self.weight, std=glorot_std(in_features, out_features))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return x W^T, plus the bias if there is one."""
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table of vectors, looked up by id."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        truncated_normal_(self.weight, std=std)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """Return row `ids[i]` of the table for every i."""
        # index_select: its gradient adds whole rows; that of W[ids] is several times slower in eager mode
        return self.weight.index_select(0, ids.reshape(-1)).reshape(*ids.shape, -1)


def glorot_std(in_features: int, out_features: int) -> float:
    """Return the standard deviation that keeps activations and gradients alike in size on average."""
    return math.sqrt(2 / (in_features + out_features))


def linear(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """Return x W^T + b for a weight that is not (or not alone) a layer's own."""
    y = x @ weight.T
    return y if bias is None else y + bias


@contextlib.contextmanager
def no_initial_values() -> Iterator[None]:
    """Leave out initial values of models that this thread makes within: their weights are loaded afterwards.

    No random number is drawn, whatever other threads draw meanwhile.
    """
    before = getattr(_DRAWING, "is_off", False)
    _DRAWING.is_off = True
    try:
        yield
    finally:
        _DRAWING.is_off = before


@torch.no_grad()
def truncated_normal_(
    tensor: Float[Tensor, "*shape"], *, std: float, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Fill `tensor` in place from a normal distribution around 0 that is cut off at CUT standard deviations.

    By inversion: u uniform in the part of (0, 1) that the cut leaves, then x = std * Phi^-1(u). `std` is
    that of the normal distribution before the cut; the cut at 3 takes 1.3 % of it away. Nothing happens
    within `no_initial_values`.
    """
    if getattr(_DRAWING, "is_off", False):
        return tensor
    edge = math.erf(CUT / math.sqrt(2))  # = 2 Phi(CUT) - 1; erfinv takes 2 u - 1 directly
    tensor.uniform_(-edge, edge, generator=generator)
    return tensor.erfinv_().mul_(std * math.sqrt(2)).clamp_(-CUT * std, CUT * std)
