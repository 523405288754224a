"""Model and token shards come in; loss, perplexity and bits per byte over the whole split come out.

    loss          = -(1 / N) * sum_i log p(token_i | tokens before it in its row)     nats per token
    perplexity    = e^loss                             it hesitates among so many equally likely tokens
    bits per byte = loss * N / (ln 2 * num_bytes)      independent of the tokenizer

Every token of the split is predicted exactly once, in rows of whole documents (data/packing.py), so the
numbers depend neither on the batch size nor on a seed, and they may be compared with the entropy of a
corpus. Per-token losses are computed in float32; the sums of the batches are added in float64.

Source: Shannon 1948, "A Mathematical Theory of Communication"; bits per byte as in Gao et al. 2020, "The
Pile", https://arxiv.org/abs/2101.00027, section 3.1.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from scratchlm.data.packing import documents_of, evaluation_rows
from scratchlm.data.shards import TokenDataset
from scratchlm.distributed.process import Processes
from scratchlm.generate.engine import evaluating
from scratchlm.loss import IGNORE, bits_per_byte, token_losses

MOST_ROWS = 16
"""Rows that go through a model together; more of them fill no processor better."""
LOGIT_BYTES = 2**31
"""Fewer rows where their logits would take more."""
BYTES_OF_A_LOGIT = 14
"""Alive at once while losses are computed: bfloat16, float32 and its exponential, and a copy (counted)."""


class Likelihood(NamedTuple):
    """How well a model predicted a text."""

    loss: float
    """Mean negative log-likelihood, nats per token; lower is better."""
    perplexity: float
    """e^loss."""
    bits_per_byte: float
    """Bits that the model needs for one byte of the text; raw bytes need 8."""
    num_tokens: int
    """How many tokens were predicted."""
    num_bytes: int
    """How many bytes of text these tokens stand for."""


class Rows(NamedTuple):
    """Some rows of a split, with how many of their positions are scored."""

    inputs: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]
    num_scored: int


def evaluate_split(
    model: torch.nn.Module,
    dataset: TokenDataset,
    *,
    context_length: int,
    rows_per_batch: int | None = None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None = None,
    max_tokens: int | None = None,
    documents: bool = False,
    processes: Processes | None = None,
) -> Likelihood:
    """Score `model` on a split.

    Args:
        model: Token ids [rows, time] -> logits [rows, time, vocabulary]; in evaluation mode meanwhile.
        dataset: The split, as token shards.
        context_length: Positions in one row, at least 1; the model's own one for a fair number.
        rows_per_batch: Rows that go through the model together; changes speed and memory, not the result.
            None: what `rows_together` says.
        device: Where the model's parameters are.
        autocast: Called around each forward pass to lower its precision, or None.
        max_tokens: For a quick look: stop after the first row that reaches this many tokens. The bytes are
            then the split's, in proportion to the tokens.
        documents: Whether tokens attend to their own document only, as a model with train.document_mask has
            learned to; the model then takes `documents`.
        processes: Those that share the work and have the same model: each takes every so many batches, and
            all get the same result.

    Raises:
        ValueError: The split has no tokens, or a number is below 1.
    """
    for name, value in {
        "context_length": context_length,
        "rows_per_batch": rows_per_batch,
        "max_tokens": max_tokens,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")
    if dataset.num_tokens == 0:
        raise ValueError(
            "evaluation: the split has no tokens; prepare it again from a text with at least one document."
        )

    def masked(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"documents": documents_of(inputs, dataset.end_of_text_id)} if documents else {}

    total, num_tokens = 0.0, 0
    size = rows_per_batch or rows_together(context_length, dataset.manifest.vocab_size)
    batches = _batches(_rows(dataset, context_length, max_tokens), size)
    together = processes or Processes()
    with evaluating(model), torch.no_grad():
        for batch in _share(batches, together):
            inputs, targets = batch.inputs.to(device), batch.targets.to(device)
            with autocast() if autocast is not None else contextlib.nullcontext():
                logits = model(inputs, **masked(inputs))
            total += float(token_losses(logits, targets).sum())
            num_tokens += batch.num_scored
    if together.world_size > 1:
        sums = together.sum(torch.tensor([total, num_tokens], dtype=torch.float64))
        total, num_tokens = float(sums[0]), int(sums[1])
    return likelihood(total, num_tokens, _bytes_of(dataset, num_tokens))


def rows_together(context_length: int, vocab_size: int) -> int:
    """How many rows go through a model at once: 16, or fewer so that their logits stay within 2 GiB.

    Example: (256, 1536) -> 16; (2048, 128256) -> 1.
    """
    return min(MOST_ROWS, max(1, LOGIT_BYTES // (BYTES_OF_A_LOGIT * context_length * vocab_size)))


def likelihood(total_nats: float, num_tokens: int, num_bytes: int) -> Likelihood:
    """Express a text's total negative log-likelihood in the three usual units.

    Example: 1,000 tokens for 4,000 bytes at 1,386.3 nats -> loss 1.386, perplexity 4.0, 0.5 bits per byte.
    """
    loss = total_nats / num_tokens
    # e^709 is the largest power that float64 holds; a diverged model is worse than that
    perplexity = math.exp(loss) if loss < 709 else math.nan if math.isnan(loss) else math.inf
    bits = bits_per_byte(loss, num_tokens, num_bytes) if num_bytes else math.nan
    return Likelihood(loss, perplexity, bits, num_tokens, num_bytes)


def _rows(dataset: TokenDataset, context_length: int, max_tokens: int | None) -> Iterator[Rows]:
    num_tokens = 0
    for batch in evaluation_rows(dataset, context_length):
        inputs, targets = batch.inputs.reshape(-1, context_length), batch.targets.reshape(-1, context_length)
        for row_inputs, row_targets in zip(inputs, targets, strict=True):
            num_scored = int((row_targets != IGNORE).sum())
            yield Rows(row_inputs[None], row_targets[None], num_scored)
            num_tokens += num_scored
            if max_tokens is not None and num_tokens >= max_tokens:
                return


def _batches(rows: Iterator[Rows], rows_per_batch: int) -> Iterator[Rows]:
    """Join single rows; unscored rows fill up the last batch, so that a compiled model sees one shape."""
    held: list[Rows] = []
    for row in rows:
        held.append(row)
        if len(held) == rows_per_batch:
            yield _join(held)
            held = []
    if held:
        filler = Rows(torch.zeros_like(held[0].inputs), torch.full_like(held[0].targets, IGNORE), 0)
        yield _join(held + [filler] * (rows_per_batch - len(held)))


def _share(batches: Iterator[Rows], processes: Processes) -> Iterator[Rows]:
    """This process's batches; all get equally many, since a sharded model needs all for each of them."""
    if processes.world_size == 1:
        yield from batches
        return
    while several := list(itertools.islice(batches, processes.world_size)):
        if processes.rank < len(several):
            yield several[processes.rank]
        else:
            like = several[0]
            yield Rows(torch.zeros_like(like.inputs), torch.full_like(like.targets, IGNORE), 0)


def _join(rows: list[Rows]) -> Rows:
    return Rows(
        torch.cat([row.inputs for row in rows]),
        torch.cat([row.targets for row in rows]),
        sum(row.num_scored for row in rows),
    )


def _bytes_of(dataset: TokenDataset, num_tokens: int) -> int:
    if num_tokens == dataset.num_tokens:
        return dataset.num_bytes
    return round(dataset.num_bytes * num_tokens / dataset.num_tokens)
