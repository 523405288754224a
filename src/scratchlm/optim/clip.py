r"""Clipping: gradients come in, the same direction with a bounded length goes out.

    norm = sqrt(sum over all gradients of g^2)
    g = g * min(1, max_norm / (norm + 1e-6))

One bad batch can give a gradient many times longer than usual, and one step along it undoes hours of
training. The length is taken over all parameters together, so their gradients keep their proportions.
On an accelerator everything stays there: comparing the norm in Python would make the CPU wait for it at every
step. Gradients that are short enough are not written again: on a CPU, where nobody waits, Python looks at the
norm, and on our GPUs the kernel does (kernels/gpu/scale.py).

Source: Pascanu et al. 2013, https://arxiv.org/abs/1211.5063, algorithm 1; the 1e-6 as in
torch.nn.utils.clip_grad_norm_ and CS336.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels import choose

EPS = 1e-6
"""Keeps 0 / 0 away; the same value as torch's and CS336's, so that results agree."""


@torch.no_grad()
def clip_gradients_(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    common_norm: Callable[[Float[Tensor, ""]], Float[Tensor, ""]] | None = None,
) -> Float[Tensor, ""]:
    """Scale all gradients in place so that their common length is at most `max_norm`.

    Args:
        parameters: Those without a gradient are skipped; all gradients are on one device.
        max_norm: The longest length allowed, above 0; `float("inf")` only measures.
        common_norm: Where these are a part of all gradients: their length -> the length of all.

    Returns:
        The length before clipping, as a tensor on the gradients' device (0 when there are none).

    Raises:
        ValueError: `max_norm` is not above 0.

    Example: gradients [3] and [4] have norm 5; with max_norm=1 they become [0.6] and [0.8].
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm}: must be above 0; use inf to measure without clipping.")
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = gradient_norm(grads)
    if common_norm is not None:
        norm = common_norm(norm)
    if grads and max_norm != float("inf") and not _is_known_short(norm, max_norm):
        # torch.compile fuses its own operations; it cannot look for what a machine has
        scale_ = torch._foreach_mul_ if torch.compiler.is_compiling() else _scale_on(norm.device)
        scale_(grads, (max_norm / (norm + EPS)).clamp(max=1.0))
    return norm


@functools.cache
def _scale_on(device: torch.device) -> Callable[..., None]:
    return choose("scale", device=device).function


def _is_known_short(norm: Tensor, max_norm: float) -> bool:
    """Whether the factor is 1 and this can be told without waiting for a device."""
    return not torch.compiler.is_compiling() and norm.device.type == "cpu" and float(norm) + EPS <= max_norm


def gradient_norm(grads: list[Tensor]) -> Float[Tensor, ""]:
    """Return the length of all of `grads` taken as one vector, in float32 or wider."""
    if not grads:
        return torch.zeros(())
    dtype = functools.reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    return torch.stack(torch._foreach_norm(grads, 2.0, dtype)).square().sum().sqrt()
