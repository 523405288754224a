r"""What is minimised: a model and settings come in, a function (inputs, targets) -> loss goes out.

    loss = mean cross-entropy  +  z_loss * mean(logsumexp(logits)^2)      label smoothing on the targets

All logits of a micro-batch are one table of rows * context_length * vocab_size numbers. Uncompiled on a CPU
it is better not to make a large one: in chunks of 256 positions that stay in the cache, head and loss take
0.46 of the time (one Zen 5 core, d_model 256, vocabulary 4,096); compiled, in chunks of 1,024, the whole step
takes 0.945. Compiled chunks are few and large, since the compiler writes out each of them. Our kernels for
GPUs (kernels/gpu/chunked_cross_entropy.py) always take head and loss together and cut as they need.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scratchlm import loss as losses
from scratchlm.data.packing import documents_of
from scratchlm.kernels import choose
from scratchlm.model import ModelConfig
from scratchlm.runtime import autocast
from scratchlm.train.config import TrainConfig

Objective = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets [rows, time] -> the mean loss over the targets that count."""

CHUNK_BYTES = 2**30
"""Logits (in float32) above this many bytes are always computed in chunks."""
CACHE_BYTES = 2**20
"""The same uncompiled on a CPU: about the cache of a core."""
CACHE_ROWS = 256
"""Positions of a chunk there."""
CHUNK_BYTES_COMPILED_CPU = 2**25
"""The same compiled on a CPU: what does not stay in its caches."""
COMPILED_ROWS = 1024
"""Positions of a chunk there."""
MOST_CHUNKS = 8
"""Chunks of a compiled step."""


def make_objective(
    model: torch.nn.Module,
    config: TrainConfig,
    *,
    device: torch.device,
    precision: str,
    micro_tokens: int,
    compiled: bool,
    end_of_text_id: int,
) -> Objective:
    """Return the loss that training minimises, and let the model checkpoint its blocks if it shall.

    Args:
        model: Ids -> logits.
        config: Smoothing, z-loss, gradient checkpointing, whether documents are masked from each other.
        device: Where the model is.
        precision: Number format of matrix products.
        micro_tokens: Tokens computed at once.
        compiled: Whether the function will be compiled.
        end_of_text_id: Where documents begin, for the mask.
    """
    extras = {"z_loss": config.z_loss, "label_smoothing": config.label_smoothing}
    if hasattr(model, "gradient_checkpointing"):
        model.gradient_checkpointing = config.gradient_checkpointing
    chunk_rows: int | None = logit_rows(model, micro_tokens, device=device, compiled=compiled)
    in_parts = chunk_rows < micro_tokens
    kernel = choose("chunked_cross_entropy", device=device)
    if kernel.name == "triton" and model.config.name == "transformer":
        in_parts, chunk_rows = True, None  # one kernel computes losses and gradient while the logits are near

    def objective(inputs: Tensor, targets: Tensor) -> Tensor:
        masked = {"documents": documents_of(inputs, end_of_text_id)} if config.document_mask else {}
        if in_parts:
            with autocast(device, precision):
                hidden = model.hidden(inputs, **masked)
            return chunk_loss(hidden, model.head_weight, targets)
        with autocast(device, precision):
            logits = model(inputs, **masked)
        return losses.cross_entropy(logits, targets, **extras)

    def chunk_loss(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
        softcap = model.config.logit_softcap
        compute = partial(kernel.function, softcap=softcap, chunk_rows=chunk_rows, **extras)
        with autocast(device, precision):
            return compute(hidden, head_weight, targets)

    return objective


def logit_rows(
    model: torch.nn.Module | ModelConfig, micro_tokens: int, *, device: torch.device, compiled: bool
) -> int:
    """Return how many of the positions of a micro-batch have their logits computed together.

    Args:
        model: A model or its configuration; only the transformer's head can be computed in parts.
        micro_tokens: Positions computed at once.
        device: Where.
        compiled: Whether the loss will be compiled.
    """
    config = model if isinstance(model, ModelConfig) else model.config
    table_bytes = 4 * micro_tokens * config.vocab_size
    if config.name != "transformer" or micro_tokens == 0:
        return micro_tokens
    if device.type == "cpu" and not compiled:
        return min(micro_tokens, CACHE_ROWS) if table_bytes > CACHE_BYTES else micro_tokens
    if device.type == "cpu" and table_bytes > CHUNK_BYTES_COMPILED_CPU:
        return -(-micro_tokens // min(MOST_CHUNKS, -(-micro_tokens // COMPILED_ROWS)))
    return -(-micro_tokens // MOST_CHUNKS) if table_bytes > CHUNK_BYTES else micro_tokens
