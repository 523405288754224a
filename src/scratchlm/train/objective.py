r"""What is minimised: a model and settings come in, a function (inputs, targets) -> loss goes out.

    loss = mean cross-entropy  +  z_loss * mean(logsumexp(logits)^2)      label smoothing on the targets

All logits of a micro-batch are one table of rows * context_length * vocab_size numbers. While that fits it is
the fastest; above CHUNK_BYTES the head works through `chunked_cross_entropy`, a thousand positions at a time.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scratchlm import loss as losses
from scratchlm.data.packing import documents_of
from scratchlm.model.transformer import TransformerLM
from scratchlm.runtime import autocast
from scratchlm.train.config import TrainConfig

Objective = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets [rows, time] -> the mean loss over the targets that count."""

CHUNK_BYTES = 2**30
"""Logits (in float32) above this many bytes are computed in chunks: below it one table is faster."""


def make_objective(
    model: torch.nn.Module,
    config: TrainConfig,
    *,
    device: torch.device,
    precision: str,
    micro_tokens: int,
    end_of_text_id: int,
) -> Objective:
    """Return the loss that training minimises.

    Args:
        model: Ids -> logits.
        config: Smoothing, z-loss and whether documents are masked from each other.
        device: Where the model is.
        precision: Number format of matrix products.
        micro_tokens: Tokens computed at once: decides whether logits are computed in chunks.
        end_of_text_id: Where documents begin, for the mask.
    """
    extras = {"z_loss": config.z_loss, "label_smoothing": config.label_smoothing}
    chunked = isinstance(model, TransformerLM) and 4 * micro_tokens * model.config.vocab_size > CHUNK_BYTES

    def objective(inputs: Tensor, targets: Tensor) -> Tensor:
        masked = {"documents": documents_of(inputs, end_of_text_id)} if config.document_mask else {}
        if chunked:
            with autocast(device, precision):
                hidden = model.hidden(inputs, **masked)
            return chunk_loss(hidden, model.head_weight, targets)
        with autocast(device, precision):
            logits = model(inputs, **masked)
        return losses.cross_entropy(logits, targets, **extras)

    def chunk_loss(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
        compute = partial(losses.chunked_cross_entropy, softcap=model.config.logit_softcap, **extras)
        with autocast(device, precision):
            return compute(hidden, head_weight, targets)

    return objective
