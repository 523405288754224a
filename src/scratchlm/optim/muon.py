r"""Muon: parameters and gradients come in, every matrix turns by the same amount in all its directions.

    m = momentum * m + (1 - momentum) * g              mean of the gradients
    n = momentum * m + (1 - momentum) * g              Nesterov: look one step ahead
    o = orthogonalized(n)                              U S V^T -> about U V^T   (kernels/orthogonalize.py)
    p = p - lr * (scale * o + weight_decay * p)        scale: by the matrix's shape, below

A gradient of a matrix is dominated by a few directions; AdamW, which looks at coordinates one by one, keeps
it so. Muon gives all directions the same length, so that rare ones are learned too. It needs one state tensor
and a few matrix products per matrix and step, which are few beside those of the batch. Matrices of one shape
are computed together. Everything that is no matrix between two hidden layers (embeddings, the head, gains,
biases) is moved by AdamW, in this same optimizer, so that one state holds all.

    scale = "adamw":     0.2 * sqrt(max(rows, columns))     steps as long as AdamW's: lr and decay carry over
    scale = "spectral":  sqrt(max(1, rows / columns))       lr is the length in every direction; 0.02 is usual
    scale = "none":      1

`MuonReference` is the formula, one matrix at a time in the parameter's own precision.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the momentum as a mean,
which changes nothing but the scale of m, as in torch.optim.Muon; scale="adamw" from Liu et al. 2025,
https://arxiv.org/abs/2502.16982, eq. 4.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.kernels import choose
from scratchlm.kernels.decay import decay_
from scratchlm.kernels.orthogonalize import orthogonalize_reference
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.adamw import (
    adamw_settings,
    evaluate_closure,
    is_cautious,
    move_by_adamw,
    move_by_adamw_reference,
)
from scratchlm.runtime import PrecisionName, choose_precision

Scale = Literal["adamw", "spectral", "none"]
"""How long a matrix's step is, given its shape."""

RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates that Liu et al. observed (0.2 to 0.4) and match."""


class WholeMatrices:
    """How Muon sees matrices: parameters are whole. What shards them puts something alike in its place."""

    def shape(self, p: Tensor) -> tuple[int, ...]:
        """Of the whole matrix that a parameter, or its rows, belongs to."""
        return tuple(p.shape)

    def turned(
        self, params: Sequence[Tensor], rows: Sequence[Tensor], turn: Callable[[list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """Return what `turn` makes of the matrices, of which `rows` are those that are here."""
        return turn(list(rows))


class _Split(NamedTuple):
    """A group's parameters that have a gradient, by who moves them."""

    matrices: list[Tensor]
    others: list[Tensor]


@OPTIMIZERS.register("muon_reference")
class MuonReference(Optimizer):
    """Muon one matrix at a time in full precision: the formula to read, and the fast one's test."""

    needs_whole_matrices = True

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        scale: Scale = "adamw",
        iterations: int = 5,
        adamw_ratio: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: As `Muon`.
            lr: As `Muon`: step size.
            momentum: As `Muon`: how much of the mean of gradients is kept per step.
            weight_decay: As `Muon`: each step shrinks the parameter by lr * weight_decay of itself.
            scale: As `Muon`: the length of a matrix's step, given its shape.
            iterations: As `Muon`: Newton-Schulz iterations.
            adamw_ratio: As `Muon`: learning rate of what is no matrix, as a multiple of `lr`.
            betas: As `Muon`: AdamW's.
            eps: As `Muon`: AdamW's.
            cautious_decay: As `Muon`.
        """
        adamw = adamw_settings(lr, betas, eps, weight_decay, cautious_decay)
        super().__init__(params, adamw | _settings(momentum, scale, iterations, adamw_ratio))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            split = _split(group)
            for p in split.matrices:
                m, g, momentum = _momentum(self.state[p], p), p.grad, group["momentum"]
                m.copy_(momentum * m + (1 - momentum) * g)
                ahead = momentum * m + (1 - momentum) * g
                o = orthogonalize_reference(ahead, iterations=group["iterations"])
                decay_([p], [o], group["lr"] * group["weight_decay"], cautious=is_cautious(group))
                p.sub_(group["lr"] * _scale(p.shape, group["scale"]) * o)
            for p in split.others:
                move_by_adamw_reference(p, self.state[p], _for_adamw(group))
        return loss


@OPTIMIZERS.register("muon")
class Muon(Optimizer):
    """Muon: orthogonalized momentum for the blocks' matrices, AdamW for everything else."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        scale: Scale = "adamw",
        iterations: int = 5,
        precision: PrecisionName = "auto",
        adamw_ratio: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: Groups with a "kind" as `groups.parameter_groups` gives them: Muon moves "matrix", AdamW
                the rest. Without kinds Muon moves every parameter of two dimensions or more; those with
                three are stacks of matrices.
            lr: Step size of matrices; with scale="adamw" as for AdamW. At least 0.
            momentum: How much of the mean of gradients is kept per step; in [0, 1).
            weight_decay: Each step shrinks the parameter by lr * weight_decay of itself. At least 0.
            scale: The length of a matrix's step, given its shape; the table at the head of optim/muon.py.
            iterations: Newton-Schulz iterations; 5 bring singular values to 0.68 ... 1.21.
            precision: Number format of their products; "auto": bfloat16 where the hardware multiplies it.
            adamw_ratio: Learning rate of what is no matrix, as a multiple of `lr`. At least 0.
            betas: AdamW's: how much of the means of g and of g^2 is kept per step; each in [0, 1).
            eps: AdamW's: added to sqrt(v). Above 0.
            cautious_decay: Decay only where the update goes towards 0, too (see kernels/decay.py).
        """
        adamw = adamw_settings(lr, betas, eps, weight_decay, cautious_decay)
        muon = _settings(momentum, scale, iterations, adamw_ratio)
        super().__init__(params, {**adamw, **muon, "precision": precision})
        self.matrices: Any = WholeMatrices()
        """From the rows that are here to whole matrices and back."""
        self._choose()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not hasattr(self, "matrices"):  # a copy; what takes a saved state over keeps its way to matrices
            self.matrices = WholeMatrices()
        self._choose()  # a copy chooses for its own machine

    def _choose(self) -> None:
        self._move, self._orthogonalize = choose("adamw").function, choose("orthogonalize").function
        self._precisions: dict[tuple[PrecisionName, torch.device], torch.dtype] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            split = _split(group)
            for alike in self._by_shape(split.matrices):
                self._move_matrices(alike, group)
            move_by_adamw(split.others, self.state, _for_adamw(group), self._move)
        return loss

    def _move_matrices(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices that have one shape, or one shape and its transpose."""
        lr, momentum = group["lr"], group["momentum"]
        grads = [p.grad for p in params]
        memories = [_momentum(self.state[p], p) for p in params]
        torch._foreach_lerp_(memories, grads, 1 - momentum)
        ahead = torch._foreach_lerp(grads, memories, momentum)
        updates = self.matrices.turned(params, ahead, lambda whole: self._turn(whole, group))
        decay_(params, updates, lr * group["weight_decay"], cautious=is_cautious(group))
        for p, update in zip(params, updates, strict=True):
            p.sub_(update, alpha=lr * _scale(self.matrices.shape(p), group["scale"]))

    def _turn(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Orthogonalize matrices that have one shape, or one shape and its transpose."""
        wide = torch.cat([_wide(n).reshape(-1, min(n.shape[-2:]), max(n.shape[-2:])) for n in matrices])
        dtype = self._dtype(group, matrices[0])
        wide = self._orthogonalize(wide, iterations=group["iterations"], dtype=dtype)
        parts = wide.split([math.prod(n.shape[:-2]) for n in matrices])
        return [
            (part if n.shape[-2] <= n.shape[-1] else part.mT).reshape(n.shape).to(n.dtype)
            for n, part in zip(matrices, parts, strict=True)
        ]

    def _by_shape(self, matrices: Iterable[Tensor]) -> Iterable[list[Tensor]]:
        """Matrices that can be stacked: one shape, or a shape and its transpose, as a block's up and down."""
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for p in matrices:
            alike[p.device, p.dtype, *sorted(self.matrices.shape(p)[-2:])].append(p)
        return alike.values()

    def _dtype(self, group: dict[str, Any], p: Tensor) -> torch.dtype:
        key = (group["precision"], p.device)
        if key not in self._precisions:
            self._precisions[key] = getattr(torch, choose_precision(*key).name)
        return self._precisions[key]


def _split(group: dict[str, Any]) -> _Split:
    """Parameters with a gradient: the matrices between hidden layers, and the others."""
    moving = [p for p in group["params"] if p.grad is not None]
    own = group.get("kind", "matrix") == "matrix"
    return _Split([p for p in moving if own and p.ndim >= 2], [p for p in moving if not own or p.ndim < 2])


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT


def _scale(shape: Sequence[int], scale: Scale) -> float:
    rows, columns = shape[-2:]
    if scale == "adamw":
        return RMS_OF_ADAMW * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if scale == "spectral" else 1.0


def _momentum(state: dict[str, Any], p: Tensor) -> Tensor:
    if not state:
        state.update(step=0, momentum=torch.zeros_like(p))
    state["step"] += 1
    return state["momentum"]


def _for_adamw(group: dict[str, Any]) -> dict[str, Any]:
    return {**group, "lr": group["lr"] * group["adamw_ratio"]}


def _settings(momentum: float, scale: Scale, iterations: int, adamw_ratio: float) -> dict[str, Any]:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: must lie in [0, 1); 0.95 is usual.")
    if scale not in ("adamw", "spectral", "none"):
        raise ValueError(f"scale={scale!r}: use 'adamw', 'spectral' or 'none'.")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: at least one; 5 is usual.")
    if not adamw_ratio >= 0:
        raise ValueError(f"adamw_ratio={adamw_ratio}: must be at least 0; 1 is one learning rate for all.")
    return {"momentum": momentum, "scale": scale, "iterations": iterations, "adamw_ratio": adamw_ratio}
