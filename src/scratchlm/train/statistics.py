r"""A model between two steps comes in; the sizes of its weights, gradients, updates and activations go out.

    weight       rms of the part's parameters,   rms(x) = sqrt(mean(x^2))
    gradient     rms of their gradients, as the optimizer got them (after clipping)
    update       rms(weights now - weights before) / rms(weights before); where `before_step` was called
    activation   rms of what the part gives out for one row of text, dropout off

One dictionary for each part: the embeddings, every layer, its attention and its feed-forward, the head, and
"logits" for what comes out of the whole. What one looks for: an update around 1/1000 of the weights;
activations that grow from layer to layer and step to step long before the loss shows it; a gradient that is
0 or a hundred times its neighbours'.

Activations need a forward pass of their own: hooks on the model for its duration only, outside of anything
compiled, without random numbers, so that a run with statistics and one without are the same in every bit.

Source: the update's size as in Karpathy 2022, "Neural networks: zero to hero", lecture 4 (there the ratio of
standard deviations, with 1e-3 as the usual value).
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import Module, ModuleList

from scratchlm.distributed.engine import Engine
from scratchlm.generate.engine import evaluating


class Statistics:
    """Sizes of one model's parts."""

    def __init__(self, model: Module, engine: Engine | None = None) -> None:
        """Find the parts.

        Args:
            model: The model itself, not what torch.compile made of it.
            engine: Where processes keep shards of it; then all of them measure together.
        """
        self.model = model
        self._kept = engine.named_parameters() if engine else dict(model.named_parameters())
        self._total = engine.sum_over_shards if engine and not engine.whole else None
        self.parts = dict(parts_of(model))
        self._before: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Copy the weights before the optimizer's step; the next `collect` compares with them."""
        self._before = {name: parameter.clone() for name, parameter in self._kept.items()}

    def forget(self) -> None:
        """Let go of that copy: the step was left out."""
        self._before = {}

    @torch.no_grad()
    def collect(
        self,
        ids: Int[Tensor, "rows time"] | None = None,
        *,
        autocast: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Return part -> what -> size; what is not known is left out.

        Args:
            ids: A row of text (or several) for the activations; None leaves them out.
            autocast: Called around the forward pass to lower its precision, or None.

        Example: {"layers.0": {"weight": 0.06, "gradient": 0.001, "activation": 1.1}, ...}.
        """
        found = {(part, what): size for part, what, size in self._sizes()}
        if ids is not None:
            found |= self._activations(ids, autocast or contextlib.nullcontext)
        self._before = {}
        # one wait for the device, not one for each number
        values = torch.stack([size.float() for size in found.values()]).tolist() if found else []
        layers: dict[str, dict[str, float]] = {part: {} for part in (*self.parts, "logits")}
        for (part, what), value in zip(found, values, strict=True):
            layers[part][what] = value
        return {part: sizes for part, sizes in layers.items() if sizes}

    def _sizes(self) -> Iterator[tuple[str, str, Tensor]]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for part, module in self.parts.items():
            here = [names[id(parameter)] for parameter in module.parameters()]
            parameters = [self._kept[name] for name in here]
            if not parameters:
                continue
            weight = rms(parameters, self._total)
            yield part, "weight", weight
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                yield part, "gradient", rms(gradients, self._total)
            if self._before:
                before = [self._before[name] for name in here]
                moved = torch._foreach_sub(parameters, before)
                yield part, "update", rms(moved, self._total) / rms(before, self._total)

    def _activations(
        self, ids: Tensor, autocast: Callable[[], AbstractContextManager[None]]
    ) -> dict[tuple[str, str], Tensor]:
        found: dict[tuple[str, str], Tensor] = {}

        def measure(part: str) -> Callable[[Module, object, Tensor], None]:
            def hook(module: Module, inputs: object, output: Tensor) -> None:
                found[part, "activation"] = rms([output])

            return hook

        handles = [module.register_forward_hook(measure(part)) for part, module in self.parts.items()]
        try:
            with evaluating(self.model), autocast():
                found["logits", "activation"] = rms([self.model(ids)])
        finally:
            for handle in handles:
                handle.remove()
        return found


def parts_of(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield the parts worth a line: the model's children; for a list, its items and their large parts.

    Example: token_embeddings, layers.0, layers.0.attn, layers.0.ffn, ..., ln_final, lm_head.
    """
    for name, child in model.named_children():
        if not isinstance(child, ModuleList):
            if any(True for _ in child.parameters()):
                yield name, child
            continue
        for number, layer in enumerate(child):
            yield f"{name}.{number}", layer
            for branch, module in layer.named_children():
                # norms have vectors only
                if any(parameter.dim() > 1 for parameter in module.parameters()):
                    yield f"{name}.{number}.{branch}", module


def rms(tensors: list[Tensor], total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the root of the mean square over all numbers of `tensors` together, in float32.

    Example: [3, 4], [5] -> sqrt((9 + 16 + 25) / 3) = 4.08.

    Args:
        tensors: At least one.
        total: Where these are a process's shards: adds up over the processes.
    """
    norms = torch._foreach_norm([tensor.float() for tensor in tensors], 2.0)
    square, count = torch.stack(norms).square().sum(), sum(tensor.numel() for tensor in tensors)
    if total is None:
        return square.div(count).sqrt()
    squares, counts = total(torch.stack([square.double(), square.new_tensor(count, dtype=torch.float64)]))
    return squares.div(counts).sqrt().float()
