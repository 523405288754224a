r"""A model comes in; while it runs, its parts have names in every profiler's timeline.

    step > forward > layers.3 > layers.3.attn        torch's profiler: record_function
                                                     NVIDIA's (nsys): NVTX ranges, on a GPU

Modules get their ranges from forward hooks, so nothing in the model changes; a block that checkpointing
computes again shows its range again in the backward pass. Gradients have no modules: the backward pass is one
range, and its operations carry their own names. A compiled model is one range, its modules are gone.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

DEEPEST = 3
"""Parts of a dotted name: layers.3.attn has a range, layers.3.attn.q_proj would only fill the picture."""


@contextlib.contextmanager
def named_range(name: str, device: torch.device) -> Iterator[None]:
    """Give what runs inside a name in profilers."""
    with torch.profiler.record_function(name):
        if device.type != "cuda":
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()


@contextlib.contextmanager
def module_ranges(model: Module, device: torch.device) -> Iterator[None]:
    """Give the forward pass of every module down to DEEPEST a range of the module's name."""
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if name and name.count(".") < DEEPEST and type(module).forward is not Module.forward:
            enter, leave = _hooks(name, device)
            handles += [
                module.register_forward_pre_hook(enter),
                # also when the forward pass is stopped half-way, as checkpointing does when it has enough
                module.register_forward_hook(leave, always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(name: str, device: torch.device) -> tuple[Callable[..., None], Callable[..., None]]:
    opened: list[contextlib.AbstractContextManager[Any]] = []

    def enter(module: Module, arguments: Any) -> None:
        opened.append(named_range(name, device))
        opened[-1].__enter__()

    def leave(module: Module, arguments: Any, output: Any) -> None:
        opened.pop().__exit__(None, None, None)

    return enter, leave
