"""Operations with several implementations: a name comes in, the function and the reason go out.

Every operation has a naive twin called "reference", at least one way that is fast on a CPU, and "triton", our
own kernels for a GPU (kernels/gpu/). All implementations of one operation have the same signature. "auto"
takes Triton for tensors on a GPU that can run it and the best plain way for all others:

    choose("attention", "auto").function(q, k, v)         decided by the machine
    choose("attention", "triton", device)                 exactly this one, or an error that says why not

Implementations are named by module and loaded when they are chosen: Numba and Triton take part of a second.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch

from scratchlm.registry import unknown
from scratchlm.runtime import log

KERNELS: dict[str, dict[str, str]] = {
    "attention": {
        "reference": "attention_reference:attention",
        "blocks": "attention_blocks:attention",
        "sdpa": "attention_sdpa:attention",
        "triton": "gpu.attention:attention",
        "triton_one_pass": "gpu.attention:attention_one_pass",
        "triton_tuned": "gpu.attention:attention_tuned",
        "tiled": "attention_tiled:attention",
        "flex": "attention_flex:attention",
    },
    "token_losses": {
        "reference": "cross_entropy:token_losses_reference",
        "plain": "cross_entropy:token_losses",
        "triton": "gpu.cross_entropy:token_losses",
    },
    "chunked_cross_entropy": {
        "reference": "cross_entropy:chunked_cross_entropy_reference",
        "plain": "cross_entropy:chunked_cross_entropy",
        "triton": "gpu.chunked_cross_entropy:chunked_cross_entropy",
    },
    "rms_norm": {
        "reference": "rms_norm:rms_norm_reference",
        "plain": "rms_norm:rms_norm",
        "triton": "gpu.rms_norm:rms_norm",
    },
    "add_rms_norm": {
        "reference": "rms_norm:add_rms_norm_reference",
        "plain": "rms_norm:add_rms_norm",
        "triton": "gpu.rms_norm:add_rms_norm",
    },
    "rotate": {
        "reference": "rotate:rotate_reference",
        "plain": "rotate:rotate",
        "triton": "gpu.rotate:rotate",
    },
    "project_heads": {
        "plain": "project_heads:project_heads",
        "triton": "gpu.project_heads:project_heads",
    },
    "adamw": {
        "reference": "adamw_reference:move",
        "plain": "adamw_plain:move",
        "triton": "gpu.adamw:move",
    },
    "lion": {
        "reference": "lion_plain:move_reference",
        "plain": "lion_plain:move",
        "triton": "gpu.lion:move",
    },
    "scale": {
        "reference": "scale:scale_reference_",
        "plain": "scale:scale_",
        "triton": "gpu.scale:scale_",
    },
    "orthogonalize": {
        "reference": "orthogonalize:orthogonalize_reference",
        "plain": "orthogonalize:orthogonalize",
        "triton": "gpu.newton_schulz:orthogonalize",
    },
}
"""Operation -> name -> "module:function", the module below this package."""

PLAIN = {
    "attention": ("blocks", "plain tensor operations that skip the future"),
    "token_losses": ("plain", "plain tensor operations, the gradient written down"),
    "chunked_cross_entropy": ("plain", "the same, a chunk of the logits at a time"),
    "rms_norm": ("plain", "plain tensor operations, the gradient written down"),
    "add_rms_norm": ("plain", "an addition, then the norm"),
    "rotate": ("plain", "plain tensor operations, the gradient written down"),
    "project_heads": ("plain", "one matrix product, then each step by itself"),
    "adamw": ("plain", "one compiled pass over memory on a CPU, else one call per operation"),
    "lion": ("plain", "one compiled pass over memory on a CPU, else one call per operation"),
    "scale": ("plain", "one call for all tensors"),
    "orthogonalize": ("plain", "torch's products of stacked matrices"),
}
"""Operation -> what "auto" takes where Triton does not run, and what that is."""

_said: set[str] = set()
"""Reasons for falling back that have been said."""


class Choice(NamedTuple):
    """An implementation, its name, and why it was taken."""

    function: Callable[..., Any]
    reason: str
    name: str


def choose(op: str, name: str = "auto", device: torch.device | str | None = None) -> Choice:
    """Return the implementation of `op` called `name`.

    Args:
        op: A key of KERNELS.
        name: A key of KERNELS[op], or "auto".
        device: Where the tensors will be. None: "auto" decides at each call, by the first tensor.

    Raises:
        ValueError: There is no such operation or implementation, or it cannot run on `device`.
    """
    if op not in KERNELS:
        raise ValueError(unknown("operation", op, KERNELS))
    if name == "auto":
        return _choose_by_machine(op) if device is None else _choose_by_device(op, torch.device(device))
    if name not in KERNELS[op]:
        raise ValueError(f"{op}={name}: {unknown('implementation', name, [*KERNELS[op], 'auto'])}")
    if name.startswith("triton"):
        where = "this machine" if device is None else str(device)
        if obstacle := triton_obstacle(None if device is None else torch.device(device)):
            raise ValueError(f"{op}={name} cannot run on {where}: {obstacle} Take {op}=auto.")
    return Choice(load(op, name), "as configured", name)


def load(op: str, name: str) -> Callable[..., Any]:
    """Import and return one implementation."""
    module, _, function = KERNELS[op][name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), function)


def triton_obstacle(device: torch.device | None) -> str | None:
    """Return why our Triton kernels cannot run on a device, as a sentence; None if they can.

    For a device that is not known yet: only whether Triton is there at all.
    """
    from scratchlm.kernels.gpu import support

    return support.obstacle(device)


def _choose_by_device(op: str, device: torch.device) -> Choice:
    plain, reason = PLAIN[op]
    obstacle = triton_obstacle(device)
    if obstacle is None:
        return Choice(load(op, "triton"), "our Triton kernel, on a GPU that runs it", "triton")
    if device.type == "cuda" and obstacle not in _said:
        _said.add(obstacle)
        log.warning("The plain kernels run instead of ours for GPUs: %s", obstacle)
    return Choice(load(op, plain), f"{reason}; no Triton: {obstacle}", plain)


def _choose_by_machine(op: str) -> Choice:
    """Take the plain function on a machine without a GPU; on others one that looks where its tensors are."""
    plain = _choose_by_device(op, torch.device("cpu"))
    if not torch.cuda.is_available():
        return plain
    fast = _choose_by_device(op, torch.device("cuda"))
    if fast.name == plain.name:
        return fast
    reason = f"on a GPU: {fast.reason}; elsewhere: {plain.reason}"
    return Choice(_ByDevice(fast.function, plain.function), reason, fast.name)


class _ByDevice:
    """An operation that looks where its first tensor is; a class, so that what holds it can be pickled."""

    def __init__(self, fast: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.fast, self.plain = fast, plain

    def __call__(self, first: Any, *arguments: Any, **settings: Any) -> Any:
        tensor = first if isinstance(first, torch.Tensor) else first[0]
        function = self.fast if tensor.is_cuda else self.plain
        return function(first, *arguments, **settings)
