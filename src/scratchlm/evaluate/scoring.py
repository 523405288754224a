r"""Contexts and continuations come in; how likely the model finds each continuation comes out.

    score(a | c) = sum_i ln p(a_i | c, a_1 .. a_(i-1))        nats, at most 0

    windows of a model that reads L = 4 tokens, c context, a continuation, * predicted:
    c c c a a            inputs  c c c a                       predicts a a
    c c c c c a a        inputs      c c c a                   predicts a a     the beginning is cut off
    c a a a a a a        inputs  c a a a,  then  a a a a       predicts 4 a, then 2 a; each once

Requests with the same inputs are one row (the letters A to D behind one question differ in the last target
only). What many rows begin with, such as solved questions, is computed once (prefixes.py). Rows are computed
longest first, together with those of nearly their length, so that almost nothing is filled up; and only the
places that are asked for go through the head. Losses are computed in float32 and added in float64.

Source: multiple choice by likelihood as in Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4;
windows as in Gao et al., "A framework for few-shot language model evaluation", which our numbers equal.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.evaluate.prefixes import Group, Row, group_rows
from scratchlm.generate.engine import evaluating
from scratchlm.loss import token_losses
from scratchlm.model.kv_cache import KVCache
from scratchlm.tokenizer import Tokenizer

TOKENS_TOGETHER = 4096
"""Places that go through the model at once, fillers included: enough to fill its matrix products."""
MOST_ROWS = 64
KEPT_TOGETHER = 4 * TOKENS_TOGETHER
"""Places of rows behind a common beginning, that included: their keys and values are held at once."""
PORTION = 4096
"""Pairs that are sorted by length together; more would only take memory."""
LEAST_SAVED = 256
"""Tokens that a common beginning has to save on a CPU. Measured with 1.6 million parameters and four choices
behind each question: 48 saved tokens a question are 0.81x as fast, 144 1.13x, 336 1.9x, 1440 3.0x."""
LEAST_SAVED_ELSEWHERE = 2 * TOKENS_TOGETHER
"""On a GPU two small passes take as long as two full ones."""
LOGITS_TOGETHER = 2**25
"""Logits that are held at once: 128 MiB in float32."""


class Pair(NamedTuple):
    """What stands before, and what is scored."""

    context: Sequence[int]
    """Token ids, at least one: a text begins with the end-of-text token, as in training."""
    continuation: Sequence[int]
    """Token ids, at least one."""


class Score(NamedTuple):
    """How likely a model found a continuation."""

    logprob: float
    """ln p of the whole continuation."""
    is_greedy: bool
    """Whether each token of it was the likeliest one: greedy generation would write it."""
    num_tokens: int
    """Tokens of the continuation."""
    num_cut: int
    """Tokens of the beginning that no window has room for; 0 for what the model reads whole."""


class Window(NamedTuple):
    """Inputs ids[start:end], of which the last `num_targets` predict what follows them."""

    start: int
    end: int
    num_targets: int


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """Return the token ids of a text that is cut in two.

    The text is encoded as a whole, so that its tokens are those of training; blanks at the end of the context
    belong to the continuation, where words begin with them. Where a token reaches over the border, it and all
    behind it are scored. Special tokens in the text are plain text.

    Raises:
        ValueError: There is nothing to score.
    """
    if not continuation:
        raise ValueError("the continuation is empty; there is nothing to score.")
    kept = context.rstrip()
    before = tokenizer.encode_ordinary(kept)
    whole = tokenizer.encode_ordinary(context + continuation)
    same = 0
    while same < min(len(before), len(whole) - 1) and before[same] == whole[same]:
        same += 1
    return Pair([tokenizer.end_of_text_id, *whole[:same]], whole[same:])


def score(
    model: torch.nn.Module,
    pairs: Iterable[Pair],
    *,
    context_length: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Score continuations; the results are in the order of `pairs`.

    Args:
        model: Token ids -> logits, with `hidden` and `head`; in evaluation mode meanwhile.
        pairs: Token ids of contexts and continuations, taken as they are needed.
        context_length: The most tokens that the model reads at once.
        device: Where the model's parameters are.
        autocast: Called around each forward pass to lower its precision, or None.
        progress: Called with how many pairs are scored.

    Raises:
        ValueError: A pair has no context or no continuation, or the model's logits are no numbers.
    """
    scores: list[Score] = []
    waiting = iter(pairs)
    with evaluating(model), torch.no_grad():
        while portion := list(itertools.islice(waiting, PORTION)):
            done = len(scores)
            for share, found in _score_portion(model, portion, done, context_length, device, autocast):
                scores += found
                if progress is not None:
                    progress(done + int(share * len(portion)))
    return scores


def _score_portion(
    model: torch.nn.Module,
    pairs: Sequence[Pair],
    number: int,
    context_length: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None,
) -> Iterator[tuple[float, list[Score]]]:
    """Yield the share that is done and, with the last, the scores."""
    rows: dict[Row, list[tuple[int, list[int]]]] = {}
    cuts = []
    for index, pair in enumerate(pairs):
        if not len(pair.context) or not len(pair.continuation):
            raise ValueError(f"pair {number + index}: needs a token of context and one of continuation.")
        ids = [*pair.context, *pair.continuation]
        found = list(windows(len(pair.context), len(ids), context_length))
        cuts.append(found[0].start)
        for start, end, num_targets in found:
            rows.setdefault(tuple(ids[start:end]), []).append((index, ids[end + 1 - num_targets : end + 1]))
    sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
    done, total = 0, sum(map(len, rows))
    free = {ids: len(ids) - max(len(targets) for _, targets in wanted) for ids, wanted in rows.items()}
    groups = group_rows(free, least=LEAST_SAVED if device.type == "cpu" else LEAST_SAVED_ELSEWHERE)
    for batch, past in _with_past(model, groups, device, autocast):
        wanted = [(row, index, targets) for row, ids in enumerate(batch) for index, targets in rows[ids]]
        with autocast() if autocast is not None else contextlib.nullcontext():
            losses = _losses(model, batch, past, [(row, targets) for row, _, targets in wanted], device)
        for (_, index, _), (loss, is_likeliest) in zip(wanted, losses, strict=True):
            sums[index] -= loss
            greedy[index] &= is_likeliest
            if loss != loss:
                raise ValueError(f"pair {number + index}: the model's logits are no numbers.")
        done += sum(map(len, batch))
        yield done / total, []
    sizes = [len(pair.continuation) for pair in pairs]
    yield 1.0, [Score(*found) for found in zip(sums, greedy, sizes, cuts, strict=True)]


def windows(num_context: int, num_ids: int, context_length: int) -> Iterator[Window]:
    """Yield the stretches of `num_ids` ids that predict those behind the first `num_context`, each once.

    Example: num_context 3, num_ids 5, context_length 4 -> (0, 4, 2).
    """
    if num_ids - num_context <= context_length:
        yield Window(max(0, num_ids - 1 - context_length), num_ids - 1, num_ids - num_context)
        return
    for first in range(num_context, num_ids, context_length):
        end = min(first + context_length, num_ids)
        yield Window(max(0, end - 1 - context_length), end - 1, end - first)


def _with_past(
    model: torch.nn.Module,
    groups: Sequence[Group],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]] | None,
) -> Iterator[tuple[list[Row], KVCache | None]]:
    """Yield batches of rows, and the keys and values of what a batch's rows begin with, if it is kept."""
    for shared, rows in groups:
        if not shared:
            for batch in _batches(rows, shared):
                yield batch, None
            continue
        past = model.make_cache(shared)
        with autocast() if autocast is not None else contextlib.nullcontext():
            for first in range(0, shared, TOKENS_TOGETHER):
                ids = rows[0][first : min(shared, first + TOKENS_TOGETHER)]
                model.hidden(torch.tensor([ids], device=device), cache=past)
        for batch in _batches(rows, shared):
            yield batch, past


def _batches(rows: Iterable[Row], shared: int) -> Iterator[list[Row]]:
    """Rows of about one length together, longest first: what does not fit into memory fails at once."""
    held: list[Row] = []
    for row in sorted(rows, key=len, reverse=True):
        longest = len(held[0]) if held else len(row)
        size = (len(held) + 1) * (longest - shared)
        kept = (len(held) + 1) * longest if shared else 0
        full = size > TOKENS_TOGETHER or kept > KEPT_TOGETHER
        if held and (len(held) == MOST_ROWS or full):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _losses(
    model: torch.nn.Module,
    batch: Sequence[Row],
    past: KVCache | None,
    wanted: Sequence[tuple[int, list[int]]],
    device: torch.device,
) -> list[tuple[float, bool]]:
    """For each (row, targets of the row's last places): the summed loss and whether all were likeliest."""
    start = 0 if past is None else past.length
    inputs = torch.zeros(len(batch), len(batch[0]) - start, dtype=torch.long)
    for row, ids in enumerate(batch):
        inputs[row, : len(ids) - start] = torch.tensor(ids[start:])  # nothing looks ahead at what fills up
    cache = {} if past is None else {"cache": past.repeated(len(batch), len(batch[0]))}
    hidden = model.hidden(inputs.to(device), **cache)
    places = [(row, len(batch[row]) - start - len(ids) + i) for row, ids in wanted for i in range(len(ids))]
    chosen = torch.tensor(places, device=device)
    targets = torch.tensor([token_id for _, ids in wanted for token_id in ids], device=device)
    losses, likeliest = _at_places(model, hidden[chosen[:, 0], chosen[:, 1]], targets)
    sizes = [len(ids) for _, ids in wanted]
    return [
        (float(part.sum()), bool(hit.all()))
        for part, hit in zip(losses.split(sizes), likeliest.split(sizes), strict=True)
    ]


def _at_places(
    model: torch.nn.Module, hidden: Float[Tensor, "places d_model"], targets: Int[Tensor, " places"]
) -> tuple[Float[Tensor, " places"], Tensor]:
    """Each target's loss in float64 and whether it was the likeliest, on the CPU; few logits at a time."""
    losses, likeliest = [], []
    size = max(1, LOGITS_TOGETHER // model.config.vocab_size)
    for some, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        logits = model.head(some).float()
        losses.append(token_losses(logits, wanted).double().cpu())
        likeliest.append((logits.argmax(dim=-1) == wanted).cpu())
    return torch.cat(losses), torch.cat(likeliest)
