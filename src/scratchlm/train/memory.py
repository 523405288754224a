r"""Settings come in; the bytes that training holds at once go out, part by part.

    weights + gradients + optimizer + activations        tensors
    + average of weights + copy that is being saved      where switched on
    + process + allocator                                on a CPU, where all of it is one process's memory

Activations are counted, not estimated: one forward and backward pass runs on tensors that have shapes but no
data, and every storage is added when it appears and subtracted when it goes; the largest sum is the peak. So
the count follows whatever attention, loss and checkpointing really do, for models of any size, in about a
second. What the allocator adds cannot be counted; its share is measured (benchmarks/bench_plan.py).
"""

import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scratchlm.evaluate.likelihood import rows_together
from scratchlm.loss import token_losses
from scratchlm.model import MODELS, ModelConfig, accounting
from scratchlm.runtime import autocast
from scratchlm.train.build import build_optimizer
from scratchlm.train.config import RunConfig
from scratchlm.train.objective import Objective, logit_rows

PROCESS_BYTES = 500_000_000
"""What a process holds when its data are ready and training begins (measured: 430 to 540 MB)."""
LIBRARY_BYTES = 140_000_000
"""What the first steps load on top: threads, compiled products, the optimizer's (measured: 80 to 180 MB)."""
ALLOCATOR_SHARE = 0.2
"""Memory that was given back in pieces and cannot be used again: share of the tensors (measured on glibc)."""


class MemoryPart(NamedTuple):
    """One thing that takes memory."""

    name: str
    num_bytes: int
    formula: str
    """How the bytes come about, for people."""


def training_parts(
    config: RunConfig, settings: ModelConfig, activations: MemoryPart, *, process_bytes: int | None = None
) -> tuple[MemoryPart, ...]:
    """Return what training holds, in bytes; their sum is the peak.

    Args:
        config: The run.
        settings: Its model, with the vocabulary.
        activations: From `counted_activations` or `estimated_activations`.
        process_bytes: What the process held before the model, on a CPU, where that counts too; else None.
    """
    numbers = accounting.num_parameters(settings)
    weights, states = 4 * numbers, optimizer_bytes(config, settings)
    parts = [
        MemoryPart("weights", weights, "4 bytes each"),
        MemoryPart("gradients", weights, "4 bytes each"),
        MemoryPart("optimizer", states, f"{states / numbers:.3g} bytes per parameter"),
        activations,
    ]
    if config.train.ema_decay:
        parts.append(MemoryPart("average", weights, "4 bytes each"))
    if config.train.save_in_background:
        copy = saved_bytes(config, numbers, states)
        parts.append(MemoryPart("copy to save", copy, "weights, optimizer, average, while they are written"))
    return tuple(parts + ([] if process_bytes is None else _process_parts(parts, process_bytes)))


def counted_activations(
    config: RunConfig, settings: ModelConfig, *, micro_rows: int, precision: str, cached_logits: bool = False
) -> MemoryPart:
    """Return the activations of one micro-batch as they are in a step without data; takes about a second.

    `cached_logits`: uncompiled on a CPU, where the loss makes logits in parts (train/objective.py).
    """
    peak = traced_peak(config, settings, micro_rows, precision, cached_logits=cached_logits)
    beyond = max(0, peak - 8 * accounting.num_parameters(settings))  # weights and gradients are in the peak
    return MemoryPart(
        "activations", beyond, f"{_rows(settings, micro_rows)}, counted on tensors without data"
    )


def estimated_activations(
    settings: ModelConfig, *, micro_rows: int, precision: str, cached_logits: bool = False
) -> MemoryPart:
    """Return the activations of one micro-batch by the formula of model/accounting.py, at once."""
    beyond = accounting.activation_memory(
        settings,
        micro_rows,
        settings.context_length,
        activation_bytes=2 if precision == "bfloat16" else 4,
        logit_tokens=logit_tokens(settings, micro_rows, cached_logits=cached_logits),
    )
    return MemoryPart("activations", beyond, f"{_rows(settings, micro_rows)}, by model/accounting.py")


def logit_tokens(settings: ModelConfig, micro_rows: int, *, cached_logits: bool = False) -> int:
    """Return for how many tokens the training loss holds logits at once (train/objective.py)."""
    tokens = micro_rows * settings.context_length
    return logit_rows(settings, tokens, device=torch.device("cpu"), compiled=not cached_logits)


def saved_bytes(config: RunConfig, num_parameters: int, optimizer_bytes: int) -> int:
    """Return the bytes of one checkpoint."""
    return 4 * num_parameters * (1 + bool(config.train.ema_decay)) + optimizer_bytes


def optimizer_bytes(config: RunConfig, settings: ModelConfig) -> int:
    """Return the bytes of the optimizer's state: found by one step of a miniature of the model.

    Each parameter's state is in proportion to it, so what the miniature's matrix of a name keeps per number
    holds for the real one of that name: AdamW keeps 2 numbers, Muon 1 for a matrix, SGD none.
    """
    small = {
        "num_layers": 1,
        "vocab_size": 16,
        "context_length": 8,
        "d_model": 8 * settings.num_heads,
        "d_ff": 16,
    }
    model = MODELS.get(settings.name)(settings.model_copy(update=small))
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    share = {
        _place(name): _bytes(optimizer.state[parameter]) / parameter.numel()
        for name, parameter in model.named_parameters()
    }
    with torch.device("meta"):
        full = MODELS.get(settings.name)(settings)
    return round(sum(share[_place(name)] * parameter.numel() for name, parameter in full.named_parameters()))


def traced_peak(
    config: RunConfig, settings: ModelConfig, micro_rows: int, precision: str, *, cached_logits: bool
) -> int:
    """Return the most bytes of tensors alive at once in a step and a validation, without the optimizer's.

    Args:
        config: The run.
        settings: Its model, with the vocabulary.
        micro_rows: Rows computed at once.
        precision: Number format of matrix products.
        cached_logits: Whether the loss makes logits in parts.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to load

    with FakeTensorMode(), _Living() as living:
        model = MODELS.get(settings.name)(settings)
        objective = Objective(
            model,
            config.train,
            device=torch.device("cpu"),
            precision=precision,
            micro_tokens=micro_rows * settings.context_length,
            compiled=not cached_logits,
            end_of_text_id=0,
        )
        ids = torch.zeros(micro_rows, settings.context_length, dtype=torch.long)
        for _ in range(1 + (micro_rows < config.rows_per_step)):  # a second one starts with gradients
            objective(ids, ids).backward()
        with torch.no_grad(), autocast(ids.device, precision):  # validation, which may need more
            together = rows_together(settings.context_length, settings.vocab_size)
            rows = torch.zeros(together, settings.context_length, dtype=torch.long)
            token_losses(model.eval()(rows), rows)
    return living.peak


def traced(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors alive at once while `work` runs on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to load

    with FakeTensorMode(), _Living() as living:
        work()
    return living.peak


class _Living(TorchDispatchMode):
    """Adds up the bytes of all storages that exist, as they come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # the same for all views
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.now -= num_bytes


def _process_parts(tensors: list[MemoryPart], before: int) -> list[MemoryPart]:
    # what is copied for saving lies in few large pieces: they leave no gaps
    gaps = ALLOCATOR_SHARE * sum(part.num_bytes for part in tensors if part.name != "copy to save")
    return [
        MemoryPart("process", before + LIBRARY_BYTES, "Python and libraries, before the model"),
        MemoryPart("allocator", round(gaps), f"{ALLOCATOR_SHARE:.0%} of the tensors: gaps"),
    ]


def _rows(settings: ModelConfig, micro_rows: int) -> str:
    return f"{micro_rows} x {settings.context_length:,} tokens"


def _place(name: str) -> str:
    """The name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", name)


def _bytes(state: dict[str, Any]) -> int:
    tensors = (value for value in state.values() if isinstance(value, torch.Tensor) and value.numel() > 1)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
