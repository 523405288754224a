r"""A model comes in; the bytes that a GPU keeps between forward and backward pass go out.

    bytes(rows) = rows * (outside + layers * block) + logits
    logits      = min(2 GiB, memory / 16, rows * T * V * w) + (4 + w) V D      the head, in chunks

`outside` and `block` are counted on four miniatures (1 and 2 layers, 1 and 2 rows, a vocabulary of 16) whose
tensors have shapes but no data, so the count follows the model's own operations, checkpointing included, for
any width. What is in proportion to the weights cancels out; layouts.py counts it. The plain kernels are
counted, with an attention that keeps no scores; those for GPUs keep less, so the figure is an upper one.
"""

from typing import NamedTuple

import torch

from scratchlm.model import MODELS, ModelConfig
from scratchlm.runtime import autocast
from scratchlm.train.memory import MemoryPart, traced

LOGIT_BYTES = 2**31
"""Logits at once (kernels/gpu/chunked_cross_entropy.py)."""
LOGIT_SHARE = 16
"""And no more than 1 / 16 of the memory (the same)."""


class Activations(NamedTuple):
    """What one row of a batch needs."""

    outside: int
    """Bytes for each row, however many layers."""
    block: int
    """Bytes for each row and layer."""
    settings: ModelConfig
    whole_bytes: int
    """Of a number in a product."""

    def part(self, rows: int, memory_bytes: float) -> MemoryPart:
        """Return what a micro-batch of so many rows needs on a GPU with so much memory."""
        model, width = self.settings, self.whole_bytes
        numbers = rows * (self.outside + model.num_layers * self.block)
        table = rows * model.context_length * model.vocab_size * width
        chunk = min(LOGIT_BYTES, memory_bytes / LOGIT_SHARE, table)
        head = (4 + width) * model.vocab_size * model.d_model
        words = f"{rows} x {model.context_length:,} tokens x {model.num_layers} layers, and the head's logits"
        return MemoryPart("activations", round(numbers + chunk + head), words)


def count_activations(settings: ModelConfig, precision: str, *, checkpointing: bool) -> Activations:
    """Return the bytes of a row, counted without data; takes about a second.

    Args:
        settings: The model.
        precision: Number format of matrix products.
        checkpointing: Whether blocks are computed again in the backward pass.
    """

    def peak(layers: int, rows: int) -> int:
        changes = {"num_layers": layers, "vocab_size": 16}
        if settings.softcap is None:
            changes["attention"] = "sdpa"  # keeps no scores, as the kernels for GPUs
        return _peak(settings.model_copy(update=changes), rows, precision, checkpointing)

    width = 2 if precision in ("bfloat16", "float16") else 4
    if settings.name == "bigram":  # a table of logits: nothing else is kept
        return Activations(0, 0, settings, width)
    one, wide, deep, both = peak(1, 1), peak(1, 2), peak(2, 1), peak(2, 2)
    block = both - wide - deep + one
    return Activations(wide - one - block, block, settings, width)


def _peak(settings: ModelConfig, rows: int, precision: str, checkpointing: bool) -> int:
    def work() -> None:
        model = MODELS.get(settings.name)(settings)
        model.gradient_checkpointing = checkpointing
        for parameter in model.parameters():  # there before, so that they do not come as activations go
            parameter.grad = torch.zeros_like(parameter)
        ids = torch.zeros(rows, settings.context_length, dtype=torch.long)
        with autocast(ids.device, precision):
            hidden = model.hidden(ids)
        hidden.float().sum().backward()

    return traced(work)
