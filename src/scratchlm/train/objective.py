r"""What is minimised: a model and settings come in, a module (inputs, targets) -> loss goes out.

    loss = mean cross-entropy  +  z_loss * mean(logsumexp(logits)^2)      label smoothing on the targets

All logits of a micro-batch are one table of rows * context_length * vocab_size numbers. Uncompiled on a CPU
it is better not to make a large one: in chunks of 256 positions that stay in the cache, head and loss take
0.46 of the time (one Zen 5 core, d_model 256, vocabulary 4,096); compiled, in chunks of 1,024, the whole step
takes 0.945. Compiled chunks are few and large, since the compiler writes out each of them. Our kernels for
GPUs (kernels/gpu/chunked_cross_entropy.py) always take head and loss together and cut as they need.

Model and loss are one module, since what averages or shards gradients (distributed/) hooks a module's forward
pass: what is computed beside it, such as a head whose matrix is taken from the model, would not be seen.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm import loss as losses
from scratchlm.data.packing import documents_of
from scratchlm.kernels import choose
from scratchlm.model import ModelConfig
from scratchlm.runtime import autocast
from scratchlm.train.config import TrainConfig

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


class Objective(Module):
    """A model and its loss as one module: all of a training step goes through this one's `forward`."""

    def __init__(
        self,
        model: Module,
        config: TrainConfig,
        *,
        device: torch.device,
        precision: str,
        micro_tokens: int,
        compiled: bool,
        end_of_text_id: int,
    ) -> None:
        """Decide how head and loss are computed, and let the model checkpoint its blocks if it shall.

        Args:
            model: Ids -> logits.
            config: Smoothing, z-loss, gradient checkpointing, whether documents are masked from each other.
            device: Where the model is.
            precision: Number format of matrix products.
            micro_tokens: Tokens computed at once.
            compiled: Whether this will be compiled.
            end_of_text_id: Where documents begin, for the mask.
        """
        super().__init__()
        self.model, self.device, self.precision = model, device, precision
        self.document_mask, self.end_of_text_id = config.document_mask, end_of_text_id
        self.extras = {"z_loss": config.z_loss, "label_smoothing": config.label_smoothing}
        if hasattr(model, "gradient_checkpointing"):
            model.gradient_checkpointing = config.gradient_checkpointing
        self.chunk_rows: int | None = logit_rows(model, micro_tokens, device=device, compiled=compiled)
        self.in_parts = self.chunk_rows < micro_tokens
        kernel = choose("chunked_cross_entropy", device=device)
        self.chunk_loss = kernel.function
        if kernel.name == "triton" and model.config.name == "transformer":
            # one kernel computes losses and gradient while the logits are near
            self.in_parts, self.chunk_rows = True, None

    def forward(
        self, inputs: Int[Tensor, "rows time"], targets: Int[Tensor, "rows time"]
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the targets that count."""
        masked = {"documents": documents_of(inputs, self.end_of_text_id)} if self.document_mask else {}
        if not self.in_parts:
            with autocast(self.device, self.precision):
                logits = self.model(inputs, **masked)
            return losses.cross_entropy(logits, targets, **self.extras)
        with autocast(self.device, self.precision):
            hidden = self.model.hidden(inputs, **masked)
        how = {"softcap": self.model.config.logit_softcap, "chunk_rows": self.chunk_rows}
        with autocast(self.device, self.precision):
            return self.chunk_loss(hidden, self.model.head_weight, targets, **how, **self.extras)


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
