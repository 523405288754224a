r"""Logits of many texts in, each text's next token out, all rows in one go.

    row i:   adjust (biases and penalties of text i)  ->  / temperature_i  ->  softmax  ->  filters_i
             ->  one uniform number of text i's own generator  ->  token_i, ln p_i

Each operation runs once for all rows, filters once for all rows with the same setting. On one thread a row's
bits are those that it has alone: the operations along a row do not see how many rows there are. The naive
twin is sampling.sample, a row at a time.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.generate.request import TokenInfo
from scratchlm.generate.sampling import SamplingConfig, keep_min_p, keep_top_k, keep_top_p, normalise
from scratchlm.kernels.attention_reference import softmax


class Chooser:
    """How one text's tokens are chosen: its settings, its random numbers, what it has written."""

    def __init__(
        self, sampling: SamplingConfig, seed: int, prompt_ids: Sequence[int], vocab_size: int
    ) -> None:
        """Start a text after its prompt."""
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(seed)
        self._counted = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._repeats = sampling.repetition_penalty != 1.0
        self.adjusts = bool(self._counted or self._repeats or sampling.logit_bias)
        if not self.adjusts:
            return
        # kept over the whole vocabulary, so that a long text costs no more a token than a short one
        self._added = torch.zeros(vocab_size, dtype=torch.float64)
        self._added[list(sampling.logit_bias)] = torch.tensor([*sampling.logit_bias.values()]).double()
        self._occurred = torch.zeros(vocab_size, dtype=torch.bool)
        self._occurred[torch.tensor([*prompt_ids])] = True
        self._written: set[int] = set()

    def note(self, token_id: int) -> None:
        """Count a token that was written."""
        if not self.adjusts:
            return
        self._occurred[token_id] = True
        if self._counted:
            first = token_id not in self._written
            self._added[token_id] -= self.sampling.frequency_penalty + self.sampling.presence_penalty * first
            self._written.add(token_id)

    def adjust(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """Return a row's logits with biases and penalties, as sampling.bias and sampling.penalise say."""
        if not self.adjusts:
            return logits
        logits = logits + self._added.float()
        if not self._repeats:
            return logits
        penalty = self.sampling.repetition_penalty
        penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(self._occurred, penalised, logits)


def choose(
    logits: Float[Tensor, "rows vocab"], choosers: Sequence[Chooser], alternatives: Sequence[int | None]
) -> list[TokenInfo]:
    """Return each row's next token and what the model thought of it.

    Args:
        logits: What the model says of each text's next token.
        choosers: How each row is chosen.
        alternatives: How many of the likeliest tokens each row tells.
    """
    wanted = logits
    if any(chooser.adjusts for chooser in choosers):
        rows = zip(choosers, logits, strict=True)
        wanted = torch.stack([chooser.adjust(row) for chooser, row in rows])
    ids, drawn = _next_tokens(wanted, choosers)
    return describe(logits, ids, alternatives, drawn)


def describe(
    logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    alternatives: Sequence[int | None],
    drawn: list[float] | None = None,
) -> list[TokenInfo]:
    """Return ln p of each row's token, and of the likeliest tokens, as many as are asked for."""
    normaliser = _logsumexp(logits)
    logprobs = (logits.gather(1, ids[:, None])[:, 0] - normaliser).tolist()
    best: list[tuple[tuple[int, float], ...]] = [()] * len(logprobs)
    for count in {count for count in alternatives if count}:
        rows = [row for row, other in enumerate(alternatives) if other == count]
        values, tokens = logits[rows].topk(count)
        values = values - normaliser[rows][:, None]
        for row, *pairs in zip(rows, tokens.tolist(), values.tolist(), strict=True):
            best[row] = tuple(zip(*pairs, strict=True))
    chances: list[float | None] = [None] * len(logprobs) if drawn is None else drawn
    return [TokenInfo(*fields) for fields in zip(ids.tolist(), logprobs, best, chances, strict=True)]


def _logsumexp(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Ln of each row's sum of e^logit: torch's function, whose checks cost several times the sum itself."""
    largest = logits.amax(dim=-1, keepdim=True)
    return (logits - largest).exp_().sum(dim=-1).log_() + largest[:, 0]


def _next_tokens(
    logits: Float[Tensor, "rows vocab"], choosers: Sequence[Chooser]
) -> tuple[Int[Tensor, " rows"], list[float]]:
    """Each row's token, and ln of the probability with which it was drawn."""
    ids, drawn = logits.argmax(dim=-1), [0.0] * len(choosers)
    rows = [row for row, chooser in enumerate(choosers) if chooser.sampling.temperature > 0.0]
    if not rows:
        return ids, drawn
    samplings = [choosers[row].sampling for row in rows]
    temperatures = torch.tensor([[sampling.temperature] for sampling in samplings], dtype=logits.dtype)
    probabilities = softmax((logits if len(rows) == len(logits) else logits[rows]) / temperatures)
    probabilities = _filtered(probabilities, [s.top_k for s in samplings], keep_top_k)
    probabilities = _filtered(probabilities, [s.top_p for s in samplings], keep_top_p_by_value)
    probabilities = _filtered(probabilities, [s.min_p for s in samplings], keep_min_p)
    chosen = _drawn(probabilities, [choosers[row].generator for row in rows])
    ids[rows] = chosen
    for row, chance in zip(rows, probabilities.gather(1, chosen[:, None])[:, 0].log().tolist(), strict=True):
        drawn[row] = chance
    return ids, drawn


def keep_top_p_by_value(probabilities: Float[Tensor, "rows vocab"], p: float) -> Float[Tensor, "rows vocab"]:
    """Return what sampling.keep_top_p returns, bit for bit, by sorting values alone.

    NumPy sorts float32 numbers with vector instructions, torch pairs of number and place one by one: 4,096 of
    them take a tenth of the time. The count-th largest value is the border; of those equal to it the first
    ones are kept, as many as are left of the count.
    """
    if p >= 1.0:
        return probabilities
    ordered = torch.from_numpy(np.sort(probabilities.numpy(), axis=-1)).flip(-1)
    kept = ordered.cumsum(dim=-1) - ordered < p
    if bool((kept[:, 1:] & ~kept[:, :-1]).any()):  # rounding let a later one in: only places tell which
        return keep_top_p(probabilities, p)
    count = kept.sum(dim=-1, keepdim=True).clamp(min=1)
    border = ordered.gather(1, count - 1)
    above, equal = probabilities > border, probabilities == border
    room = count - above.sum(dim=-1, keepdim=True)
    if bool((equal.sum(dim=-1, keepdim=True) > room).any()):
        equal &= equal.cumsum(dim=-1) <= room
    return normalise(torch.where(above | equal, probabilities, 0.0))


def _filtered(
    probabilities: Float[Tensor, "rows vocab"],
    settings: list[int | None] | list[float | None],
    keep: Callable[..., Tensor],
) -> Float[Tensor, "rows vocab"]:
    """What a filter leaves of each row, with the row's own setting; None leaves it as it is."""
    for setting in {setting for setting in settings if setting is not None}:
        rows = [row for row, other in enumerate(settings) if other == setting]
        if len(rows) == len(settings):
            return keep(probabilities, setting)
        probabilities[rows] = keep(probabilities[rows], setting)
    return probabilities


def _drawn(
    probabilities: Float[Tensor, "rows vocab"], generators: Sequence[torch.Generator]
) -> Int[Tensor, " rows"]:
    """One token of each row, as sampling.draw does with one generator."""
    sums = probabilities.double().cumsum(dim=-1)
    u = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    ids = torch.searchsorted(sums, u * sums[:, -1:], right=True)[:, 0]
    # u * total may be rounded up to the total itself: then the last token that can be drawn
    return torch.minimum(ids, (sums < sums[:, -1:]).sum(dim=-1))
