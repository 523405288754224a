"""Prompts come in, what a model writes behind them comes out: many at once, always the likeliest token.

    the window     [ prompt ................ | answer ...... ]      context_length tokens
    too long          [ .. prompt .......... | answer ...... ]      the beginning is cut off, and counted

An answer may have `max_new_tokens`, and at most half of the window where the prompt needs the rest. The texts
come from generate/engine.py, so an answer does not depend on what else is written beside it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Request
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.tokenizer import Tokenizer

SLOTS = 8
"""Texts that are written at once: as the engine's."""


class Written(NamedTuple):
    """What a model wrote."""

    text: str
    num_cut: int
    """Tokens of the prompt's beginning that the window had no room for."""


def write_all(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig | Sequence[SamplingConfig],
    *,
    stop_ids: tuple[int, ...] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Written]:
    """Continue all prompts; return the texts in their order.

    Args:
        model: Token ids -> logits, with `config.context_length` and `make_cache()`.
        tokenizer: The one that the model was trained with.
        prompts: Token ids, at least one each.
        sampling: How tokens are chosen and when to stop, for all prompts or for each.
        stop_ids: Tokens that end a text. None: the end-of-text token.
        progress: Called with how many texts are done.

    Raises:
        ValueError: A prompt is empty, or the model's logits are no numbers.
    """
    configs = [sampling] * len(prompts) if isinstance(sampling, SamplingConfig) else sampling
    length = model.config.context_length
    engine = Engine(model, tokenizer, slots=max(1, min(SLOTS, len(prompts))))
    places, cuts = {}, []
    for place, (ids, config) in enumerate(zip(prompts, configs, strict=True)):
        kept, new = room(len(ids), config.max_new_tokens, length)
        cuts.append(len(ids) - kept)
        config = config.model_copy(update={"max_new_tokens": new})
        request = Request(prompt_ids=ids[len(ids) - kept :], sampling=config, stop_ids=stop_ids, full="stop")
        places[engine.submit(request)] = place
    texts: list[list[str]] = [[] for _ in prompts]
    done = 0
    while engine.is_busy:
        for event in engine.step():
            if event.error is not None:
                raise ValueError(f"prompt {places[event.request_id]}: {event.error}")
            texts[places[event.request_id]].append(event.text)
            if event.finish_reason is not None:
                done += 1
                if progress is not None:
                    progress(done)
    return [Written("".join(parts), cut) for parts, cut in zip(texts, cuts, strict=True)]


def room(num_prompt: int, max_new_tokens: int, context_length: int) -> tuple[int, int]:
    """Return how many of a prompt's last tokens are kept, and how many new ones there may be.

    Example: (100, 256, 64) -> (32, 32); (100, 16, 64) -> (48, 16); (10, 256, 64) -> (10, 54).
    """
    kept = min(num_prompt, max(context_length - max_new_tokens, (context_length + 1) // 2))
    return kept, min(max_new_tokens, context_length - kept)
