r"""Stochastic gradient descent: parameters and gradients come in, parameters moved downhill go out.

    g = g + weight_decay * p
    b = momentum * b + g                        b starts at 0; without momentum b = g
    d = g + momentum * b  if nesterov else  b
    p = p - lr_t * d                            lr_t = lr, or lr / sqrt(t + 1) for t = 0, 1, 2, ...

Momentum lets steps in one direction add up to 1 / (1 - momentum) of a single step and those that disagree
cancel. With decay="inverse_sqrt" the steps shrink as CS336's first optimizer does: their sum grows without
bound, so any point can be reached, and the noise of late steps dies away. Weight decay is added to the
gradient (L2), not decoupled.

Source: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html, in torch.optim.SGD's form
(lr outside the momentum); the decay from Stanford CS336, assignment 1, section "The SGD optimizer".
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.optim import OPTIMIZERS


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """SGD with momentum, Nesterov's variant, and CS336's lr / sqrt(t + 1)."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: Literal["none", "inverse_sqrt"] = "none",
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: Parameters, or groups of them that override settings: [{"params": [...], "lr": 0.1}].
            lr: Step size, multiplied by the gradient. At least 0.
            momentum: How much of the last direction is kept; in [0, 1). 0.9 is usual.
            nesterov: Look ahead along the direction; needs momentum.
            weight_decay: Added to the gradient as weight_decay * p. At least 0.
            decay: "inverse_sqrt" divides lr by sqrt(t + 1), with t the parameter's updates so far.

        Raises:
            ValueError: A setting is out of its range.
        """
        if not lr >= 0:
            raise ValueError(f"lr={lr}: the learning rate must be at least 0; 1e-2 is a place to start.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must lie in [0, 1); 0.9 is usual.")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=true needs momentum above 0; set momentum=0.9.")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay={weight_decay}: must be at least 0.")
        if decay not in ("none", "inverse_sqrt"):
            raise ValueError(f"decay={decay!r}: use 'none' or 'inverse_sqrt'.")
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for t, params in self._by_step(group).items():
                lr = group["lr"] / math.sqrt(t + 1) if group["decay"] == "inverse_sqrt" else group["lr"]
                torch._foreach_add_(params, self._directions(params, group), alpha=-lr)
        return loss

    def _by_step(self, group: dict[str, Any]) -> dict[int, list[Tensor]]:
        """Parameters with a gradient, by how many updates they have had; counts this one."""
        lists: dict[int, list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                t = state.get("step", 0)
                state["step"] = t + 1
                lists[t].append(p)
        return lists

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> Sequence[Tensor]:
        grads: Sequence[Tensor] = [p.grad for p in params]
        momentum = group["momentum"]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        if not momentum:
            return grads
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        return torch._foreach_add(grads, buffers, alpha=momentum) if group["nesterov"] else buffers
