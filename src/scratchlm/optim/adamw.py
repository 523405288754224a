r"""AdamW: parameters and gradients come in, each parameter moves by about `lr` per step in its own scale.

    p = p - lr * weight_decay * p                       decay first, by itself: "decoupled"
    m = beta1 * m + (1 - beta1) * g                     mean of the gradients
    v = beta2 * v + (1 - beta2) * g^2                   mean of their squares
    p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

Both means start at zero and are too small at first; dividing by 1 - beta^t (t = 1, 2, ...) makes up for that
exactly. m / sqrt(v) has no unit, so every coordinate moves by about `lr` whatever the size of its gradient.
Weight decay does not pass through m and v: added to the gradient it would be divided by sqrt(v), and large
gradients would switch it off.

`AdamWReference` is the formula, one tensor at a time: read it first. `AdamW` folds the corrections into two
numbers and computes the same for all tensors together: in one pass over memory, compiled for the CPU
(kernels/adamw_numba.py) or for the GPU (kernels/gpu/adamw.py), and for other number formats and machines with
one call per operation (kernels/adamw_plain.py).

    p = p - lr * sqrt(c2) / c1 * m / (sqrt(v) + eps * sqrt(c2))       c1 = 1 - beta1^t, c2 = 1 - beta2^t

Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1; Loshchilov & Hutter 2019,
https://arxiv.org/abs/1711.05101, algorithm 2. Decay multiplies by the scheduled `lr`, as in
torch.optim.AdamW and CS336 (the paper has a separate schedule for it).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from scratchlm.kernels import choose
from scratchlm.kernels.decay import decay_
from scratchlm.optim import OPTIMIZERS

TensorLists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, gradients, means, means of squares: four lists in the same order."""


@OPTIMIZERS.register("adamw_reference")
class AdamWReference(Optimizer):
    """AdamW one tensor at a time: the formula to read, and what the fast one is tested against."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: As `AdamW`.
            lr: As `AdamW`: step size.
            betas: As `AdamW`: how much of the means of g and of g^2 is kept per step.
            eps: As `AdamW`: added to sqrt(v).
            weight_decay: As `AdamW`: each step shrinks the parameter by lr * weight_decay of itself.
            cautious_decay: As `AdamW`.
        """
        super().__init__(params, adamw_settings(lr, betas, eps, weight_decay, cautious_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    move_by_adamw_reference(p, self.state[p], group)
        return loss


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """AdamW: adaptive steps with decoupled weight decay, a few calls per step for all tensors together."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        cautious_decay: bool = False,
    ) -> None:
        """Keep the settings; state is made at the first step.

        Args:
            params: Parameters, or groups that override settings: [{"params": [...], "weight_decay": 0.0}].
            lr: Step size: about how far every coordinate moves per step. At least 0.
            betas: How much of the means of g and of g^2 is kept per step; each in [0, 1).
            eps: Added to sqrt(v); gradients much smaller than this hardly move their parameter. Above 0.
            weight_decay: Each step shrinks the parameter by lr * weight_decay of itself. At least 0.
            cautious_decay: Decay only where the update goes towards 0, too (see kernels/decay.py).
        """
        super().__init__(params, adamw_settings(lr, betas, eps, weight_decay, cautious_decay))
        self._move = choose("adamw").function

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._move = choose("adamw").function  # a copy chooses for its own machine

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; return what `closure` returns."""
        loss = evaluate_closure(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            move_by_adamw(params, self.state, group, self._move)
        return loss


def move_by_adamw_reference(p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """Move one parameter by its gradient: the formula.

    Args:
        p: A parameter with a gradient.
        state: The optimizer's state of it; filled at the first call.
        group: Settings by name, as `adamw_settings` gives them.
    """
    lr, (beta1, beta2) = group["lr"], group["betas"]
    state = adamw_state(state, p)
    t = state["step"] = state["step"] + 1
    m, v, g = state["mean"], state["square"], p.grad
    m.copy_(beta1 * m + (1 - beta1) * g)
    v.copy_(beta2 * v + (1 - beta2) * g * g)
    m_corrected = m / (1 - beta1**t)
    v_corrected = v / (1 - beta2**t)
    u = m_corrected / (v_corrected.sqrt() + group["eps"])
    decay_([p], [u], lr * group["weight_decay"], cautious=is_cautious(group))  # before the step
    p.sub_(lr * u)


def move_by_adamw(
    params: Sequence[Tensor],
    states: MutableMapping[Tensor, dict[str, Any]],
    group: Mapping[str, Any],
    move: Callable[..., None],
) -> None:
    """Move parameters by their gradients, all together.

    Args:
        params: Parameters with gradients.
        states: The optimizer's states by parameter; filled at the first call.
        group: Settings by name, as `adamw_settings` gives them.
        move: An implementation of the operation "adamw" (kernels/).
    """
    lr, (beta1, beta2) = group["lr"], group["betas"]
    for t, lists in _by_step(params, states).items():
        correction1, root_correction2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
        move(
            *lists,
            betas=(beta1, beta2),
            decay=lr * group["weight_decay"],
            cautious=is_cautious(group),
            step_size=lr * root_correction2 / correction1,
            eps=group["eps"] * root_correction2,
        )


def _by_step(
    params: Sequence[Tensor], states: MutableMapping[Tensor, dict[str, Any]]
) -> dict[int, TensorLists]:
    """Count each parameter's step; group by it: the corrections depend on it."""
    if params and params[0].device.type == "cuda":
        make_flat_states([p for p in params if not states[p]], states)
    lists: dict[int, TensorLists] = defaultdict(lambda: ([], [], [], []))
    for p in params:
        state = adamw_state(states[p], p)
        state["step"] += 1
        same, grads, means, squares = lists[state["step"]]
        same.append(p)
        grads.append(p.grad)
        means.append(state["mean"])
        squares.append(state["square"])
    return lists


def adamw_settings(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, cautious_decay: bool = False
) -> dict[str, Any]:
    """Check AdamW's settings and return them as an optimizer's defaults.

    Raises:
        ValueError: A setting is out of its range.
    """
    if not lr >= 0:
        raise ValueError(f"lr={lr}: the learning rate must be at least 0; 1e-3 suits small models.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={tuple(betas)}: both must lie in [0, 1); (0.9, 0.95) suits language models.")
    if not eps > 0:
        raise ValueError(f"eps={eps}: must be above 0, or a zero gradient divides 0 by 0; use 1e-8.")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}: must be at least 0; 0.1 is usual, 0 switches it off.")
    settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    return {**settings, "cautious_decay": cautious_decay}


def adamw_state(state: dict[str, Any], p: Tensor) -> dict[str, Any]:
    """Return `state`, filled when it is empty. `step` is an int: it needs no device and no sync."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
    return state


def make_flat_states(params: Sequence[Tensor], states: MutableMapping[Tensor, dict[str, Any]]) -> None:
    """Fill states like `adamw_state`, with views of one buffer of zeros for each number format.

    Two calls of a GPU's allocator instead of two for each parameter, and tensors that lie back to back as far
    as their sizes are multiples of 16 bytes: a kernel walks through them as through one. What is saved
    is the same: a tensor for each parameter.
    """
    whole: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        if p.is_contiguous():
            whole[p.device, p.dtype].append(p)
    for alike in whole.values():
        step = max(1, 16 // alike[0].element_size())
        places = [0, *accumulate(-(-p.numel() // step) * step for p in alike)]
        means, squares = (alike[0].new_zeros(places[-1]) for _ in range(2))
        for p, place in zip(alike, places, strict=False):
            here = slice(place, place + p.numel())
            states[p].update(step=0, mean=means[here].view(p.shape), square=squares[here].view(p.shape))


def is_cautious(group: Mapping[str, Any]) -> bool:
    """Whether a group decays cautiously; one saved before there was a choice does not say, and does not."""
    return group.get("cautious_decay", False)


def evaluate_closure(closure: Callable[[], Any] | None) -> Any:
    """Call `closure`, which computes the loss and its gradients, with gradients on."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
