r"""Logits in, the next token out: greedy, temperature, top-k, top-p, min-p, repetition penalty.

    bias:         logit + bias of the token, - presence if it was written, - frequency * how often
    penalty:      logit / penalty if logit > 0, logit * penalty otherwise, for tokens that occurred before
    temperature:  p = softmax(logits / temperature); 0 takes the likeliest token
    top-k:        keep the k likeliest tokens
    top-p:        keep the likeliest tokens until their probabilities add up to p
    min-p:        keep tokens with at least min_p times the probability of the likeliest

The filters work in this order, each on what the one before it left. A token is drawn with one uniform number
u: the first token at which the running sum of the probabilities exceeds u times their total. It grows at
tokens with p > 0 only, so no other is drawn.

Sources: penalty: Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1 (for negative logits
multiplied, as everybody corrects it); top-k: Fan et al. 2018, https://arxiv.org/abs/1805.04833; top-p:
Holtzman et al. 2019, https://arxiv.org/abs/1904.09751; min-p: Nguyen et al. 2024,
https://arxiv.org/abs/2407.01082; presence and frequency: https://platform.openai.com/docs/api-reference
"frequency_penalty" and "presence_penalty", which count what was written, not the prompt.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from scratchlm.config import Config
from scratchlm.kernels.attention_reference import softmax


class SamplingConfig(Config):
    """How tokens are chosen and when to stop."""

    temperature: float = Field(default=1.0, ge=0.0)
    """Below 1 the likely tokens get likelier, above 1 all get more equal; 0 always takes the likeliest."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep only this many tokens, the likeliest ones. None: all."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Keep the likeliest tokens that together have this probability. None: all."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Keep tokens with at least this share of the likeliest one's probability. None: all."""
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    """Above 1 tokens that occurred already get less likely; 1 changes nothing."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken from the logits of tokens that were written already (the prompt does not count)."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken from a written token's logit, once for each time that it was written."""
    logit_bias: dict[int, float] = Field(default={})
    """Token id -> what is added to its logit; -100 forbids it in practice."""
    max_new_tokens: int = Field(default=256, ge=0)
    """The most tokens to add."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the output."""
    seed: int = 0
    """The same seed gives the same text."""


def sample(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    generator: torch.Generator,
    previous_ids: Int[Tensor, "batch previous"],
) -> Int[Tensor, " batch"]:
    """Return the next token of each row.

    Args:
        logits: The model's output at the last position.
        config: How to choose.
        generator: Source of randomness, on the device of the logits; not used at temperature 0.
        previous_ids: Tokens that occurred before, for the repetition penalty.
    """
    logits = penalise(logits.float(), previous_ids, config.repetition_penalty)
    if config.temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities = softmax(logits / config.temperature)
    if config.top_k is not None:
        probabilities = keep_top_k(probabilities, config.top_k)
    if config.top_p is not None:
        probabilities = keep_top_p(probabilities, config.top_p)
    if config.min_p is not None:
        probabilities = keep_min_p(probabilities, config.min_p)
    return draw(probabilities, generator)


def draw(probabilities: Float[Tensor, "batch vocab"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Return one token of each row, token i with a probability in proportion to its number.

    Example: [0.5, 0.25, 0.25] and u = 0.6 -> 1: the running sums are 0.5, 0.75, 1.
    """
    sums = probabilities.double().cumsum(dim=-1)
    u = torch.rand(len(sums), 1, generator=generator, dtype=torch.float64, device=generator.device)
    ids = torch.searchsorted(sums, u.to(sums.device) * sums[:, -1:], right=True)[:, 0]
    # u * total may be rounded up to the total itself: then the last token that can be drawn
    return torch.minimum(ids, (sums < sums[:, -1:]).sum(dim=-1))


def bias(
    logits: Float[Tensor, " vocab"], config: SamplingConfig, counts: Mapping[int, int]
) -> Float[Tensor, " vocab"]:
    """Return a row's logits with logit_bias added and the presence and frequency penalties taken away.

    Example: presence 0.5, frequency 0.1, a token written twice: its logit loses 0.7.

    Args:
        logits: The model's output at the last position.
        config: How much.
        counts: How often each token was written.
    """
    added = dict(config.logit_bias)
    if config.presence_penalty or config.frequency_penalty:
        for token_id, count in counts.items():
            taken = config.presence_penalty + config.frequency_penalty * count
            added[token_id] = added.get(token_id, 0.0) - taken
    if not added:
        return logits
    return logits.index_add(0, torch.tensor(list(added)), torch.tensor(list(added.values())))


def penalise(
    logits: Float[Tensor, "batch vocab"], previous_ids: Int[Tensor, "batch previous"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Return logits in which tokens that occurred before are less likely (penalty > 1)."""
    if penalty == 1.0 or previous_ids.shape[1] == 0:
        return logits
    seen = logits.gather(1, previous_ids)
    return logits.scatter(1, previous_ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def keep_top_k(probabilities: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Return the probabilities with all but the k largest set to 0 and the rest adding up to 1.

    Example: [0.5, 0.3, 0.2], k=2 -> [0.625, 0.375, 0].
    """
    kept, ids = probabilities.topk(min(k, probabilities.shape[-1]), dim=-1)
    return normalise(torch.zeros_like(probabilities).scatter(-1, ids, kept))


def keep_top_p(probabilities: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Return the probabilities of the smallest set of likeliest tokens that together have at least p.

    Example: [0.5, 0.3, 0.2], p=0.6 -> [0.625, 0.375, 0]: the token that crosses p stays.
    """
    if p >= 1.0:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < p, ordered, 0.0)
    return normalise(torch.zeros_like(probabilities).scatter(-1, ids, kept))


def keep_min_p(probabilities: Float[Tensor, "batch vocab"], min_p: float) -> Float[Tensor, "batch vocab"]:
    """Return the probabilities of tokens that have at least min_p times the largest probability.

    Example: [0.5, 0.3, 0.2], min_p=0.5 -> [0.625, 0.375, 0].
    """
    largest = probabilities.amax(dim=-1, keepdim=True)
    return normalise(torch.where(probabilities >= min_p * largest, probabilities, 0.0))


def normalise(weights: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    """Return each row divided by its sum."""
    return weights / weights.sum(dim=-1, keepdim=True)
