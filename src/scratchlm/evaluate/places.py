r"""Model and token shards come in, loss by place in a row goes out, also beyond the training context.

    ring      the split's tokens, cut to n strides of s tokens, the last followed by the first
    row j     tokens j s, j s + 1, ... of the ring, j = 0 .. n - 1
    loss[i]   mean over the rows of -log p(token i + 1 of the row | tokens 0 .. i)      nats per token
    bands     places 0 .. c - 1, c .. 2c - 1, 2c .. 4c - 1            c: the training context, k strides

Every token is predicted at many places, one stride apart, and any stretch of s places holds every token once:
stretches differ in nothing but what stands before. A model that can read on loses nothing, and gains where a
document is longer than the context; one that cannot loses where the places begin that it never saw.

Source: evaluation beyond the length of training as in Press et al. 2021, https://arxiv.org/abs/2108.12409,
section 4; there by whole rows, here place by place and with the same tokens everywhere.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.data.packing import documents_of
from scratchlm.data.shards import TokenDataset
from scratchlm.evaluate.likelihood import rows_together
from scratchlm.generate.engine import evaluating
from scratchlm.loss import token_losses

BANDS = (1, 2, 4)
"""Ends of the bands, in training contexts."""
MOST_TOKENS = 2**15
"""Of the split: at a spread of 2 nats a mean over so many is known to 0.01."""


def place_losses(
    model: torch.nn.Module,
    dataset: TokenDataset,
    *,
    stride: int,
    context_length: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None = None,
    documents: bool = False,
) -> Float[np.ndarray, " places"]:
    """Return the mean loss at each of `context_length` places.

    Args:
        model: Token ids [rows, time] -> logits; must read `context_length` tokens.
        dataset: The split, as token shards; the first MOST_TOKENS of it.
        stride: Tokens from the beginning of one row to that of the next.
        context_length: Places of a row.
        device: Where the model's parameters are.
        autocast: Called around each forward pass to lower its precision, or None.
        documents: Whether tokens attend to their own document only; the model then takes `documents`.

    Raises:
        ValueError: The split is shorter than a row.
    """
    num_rows = min(dataset.num_tokens, max(MOST_TOKENS, context_length)) // stride
    if num_rows * stride < context_length:
        raise ValueError(
            f"{dataset.folder}: holds {dataset.num_tokens} tokens, less than one row of {context_length}; "
            "prepare it from a longer text."
        )
    ring = torch.from_numpy(dataset.read(0, num_rows * stride).astype(np.int64))
    together = rows_together(context_length, dataset.manifest.vocab_size)
    sums = np.zeros(context_length)
    with evaluating(model), torch.no_grad():
        for starts in torch.arange(0, len(ring), stride).split(together):
            rows = _rows(ring, starts, context_length + 1).to(device)
            inputs, targets = rows[:, :-1], rows[:, 1:]
            masked = {"documents": documents_of(inputs, dataset.end_of_text_id)} if documents else {}
            with autocast() if autocast is not None else contextlib.nullcontext():
                logits = model(inputs, **masked)
            sums += token_losses(logits, targets).double().sum(dim=0).cpu().numpy()
    return sums / num_rows


def bands(losses: Float[np.ndarray, " places"], training_length: int) -> dict[str, float]:
    """Return the mean loss of each band that `losses` reaches into: {"1x": ..., "2x": ..., "4x": ...}.

    Example: losses [1, 1, 5, 7], training_length 2 -> {"1x": 1.0, "2x": 6.0}.
    """
    found, start = {}, 0
    for band in BANDS:
        end = band * training_length
        if start < len(losses):
            found[f"{band}x"] = float(losses[start:end].mean())
        start = end
    return found


def _rows(
    ring: Int[Tensor, " tokens"], starts: Int[Tensor, " rows"], length: int
) -> Int[Tensor, "rows time"]:
    """Stretches of the ring: [0, 1, 2, 3], starts [0, 2], length 3 -> [[0, 1, 2], [2, 3, 0]]."""
    return ring[(starts[:, None] + torch.arange(length)) % len(ring)]
