r"""Lion: parameters and gradients come in, every coordinate moves by exactly `lr`.

    u = sign(beta1 * m + (1 - beta1) * g)              direction: the newest gradient counts a little more
    p = p - lr * (u + weight_decay * p)
    m = beta2 * m + (1 - beta2) * g                    memory, slower than the direction

One state tensor per parameter (AdamW keeps two), and no square root. Because every coordinate moves by `lr`
whatever its gradient, steps are longer than AdamW's: take `lr` three to ten times smaller than AdamW's and
`weight_decay` as many times larger, so that their product, the strength of decay, stays.

`LionReference` is the formula; `Lion` computes the same for all tensors together, in one pass over memory
where there is a compiled loop or a kernel for it (kernels/).

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", https://arxiv.org/abs/2302.06675,
algorithm 2; the ratio to AdamW's settings from section 5.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.kernels import choose
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.adamw import evaluate_closure, is_cautious


@OPTIMIZERS.register("lion_reference")
class LionReference(Optimizer):
    """Lion one tensor at a time: the formula to read, and what the fast one is tested against."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.5,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: As `Lion`.
            lr: As `Lion`: how far every coordinate moves per step.
            betas: As `Lion`: how much of the memory goes into the direction, and how much of it is kept.
            weight_decay: As `Lion`: each step shrinks the parameter by lr * weight_decay of itself.
            cautious_decay: As `Lion`.
        """
        super().__init__(params, _settings(lr, betas, weight_decay, cautious_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m, g = _momentum(self.state[p], p), p.grad
                u = (beta1 * m + (1 - beta1) * g).sign()
                decaying = (u * p >= 0).to(p.dtype) if is_cautious(group) else 1.0
                p.copy_(p - lr * (u + weight_decay * decaying * p))
                m.copy_(beta2 * m + (1 - beta2) * g)
        return loss


@OPTIMIZERS.register("lion")
class Lion(Optimizer):
    """Lion: every coordinate moves by lr in the direction of a momentum's sign; half of AdamW's memory."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.5,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: Parameters, or groups that override settings: [{"params": [...], "weight_decay": 0.0}].
            lr: How far every coordinate moves per step; a third to a tenth of AdamW's. At least 0.
            betas: How much of the memory goes into the direction, and how much of it is kept; in [0, 1).
            weight_decay: Each step shrinks the parameter by lr * weight_decay of itself; three to ten times
                AdamW's. At least 0.
            cautious_decay: Decay only where the update goes towards 0, too (see kernels/decay.py).
        """
        super().__init__(params, _settings(lr, betas, weight_decay, cautious_decay))
        self._move = choose("lion").function

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._move = choose("lion").function  # a copy chooses for its own machine

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._move(
                    params,
                    [p.grad for p in params],
                    [_momentum(self.state[p], p) for p in params],
                    betas=group["betas"],
                    decay=group["lr"] * group["weight_decay"],
                    cautious=is_cautious(group),
                    step_size=group["lr"],
                )
        return loss


def _momentum(state: dict[str, Any], p: Tensor) -> Tensor:
    if not state:
        state.update(step=0, momentum=torch.zeros_like(p))
    state["step"] += 1
    return state["momentum"]


def _settings(
    lr: float, betas: tuple[float, float], weight_decay: float, cautious_decay: bool
) -> dict[str, Any]:
    if not lr >= 0:
        raise ValueError(f"lr={lr}: the learning rate must be at least 0; 2e-4 suits small models.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={tuple(betas)}: both must lie in [0, 1); (0.9, 0.99) is usual.")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}: must be at least 0; 0.5 is usual, 0 switches it off.")
    settings = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
    return {**settings, "cautious_decay": cautious_decay}
