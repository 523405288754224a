r"""A prompt in, its best continuations out: beam search, the `beams` likeliest beginnings kept at every step.

    each step   every kept beginning is continued with every token
                of all these, the likeliest by the sum of ln p go on; one that ends a text is set aside
    score       sum of ln p / length^length_penalty       length: new tokens, the end's included
    over        when no beginning can still become better than the worst of the best `beams` ends

Sampling draws from the model; this looks for what the model thinks likeliest as a whole, which taking the
likeliest token each time (beams=1) misses. ln p only falls, so what a beginning can still reach is its sum at
the largest length that is left (length_penalty > 0) or at its own (otherwise): stopping by this bound loses
nothing. Beams are slots: those that one beginning leads to get copies of its keys and values.

`beam_search_reference` computes every beginning from its first token at every step: the naive twin.

Source: Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 7, with the plain power of the length as
the length penalty; the search itself: Lowerre 1976, "The Harpy speech recognition system".
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import Module

from scratchlm.config import Config
from scratchlm.generate.engine import CHUNK, evaluating
from scratchlm.generate.runner import Runner
from scratchlm.generate.runner_fused import fastest_runner


class BeamConfig(Config):
    """How wide to search and what to prefer."""

    beams: int = Field(default=4, ge=1, le=128)
    """Beginnings that are kept at every step; 1: always the likeliest token."""
    length_penalty: float = 1.0
    """The sum of ln p is divided by the length to this power: 0 prefers short texts, above 1 long ones."""
    max_new_tokens: int = Field(default=256, ge=1)
    """The most tokens to add."""


class Beam(NamedTuple):
    """A continuation that was found."""

    score: float
    """Sum of ln p over length^length_penalty: what beams are ordered by."""
    logprob: float
    """Sum of ln p of the new tokens."""
    token_ids: tuple[int, ...]
    """The new tokens, the one that ends the text included."""
    finished: bool
    """Whether it ends with a stop token; else the room or max_new_tokens ended it."""


class _Open(NamedTuple):
    """A beginning that goes on: its tokens, its sum of ln p, which kept beginning it continues."""

    token_ids: tuple[int, ...]
    logprob: float
    parent: int


Next = Callable[[list[_Open]], Float[Tensor, "beams vocab"]]
"""Kept beginnings -> ln p of every next token, in float64."""


def beam_search(
    model: Module,
    prompt_ids: Sequence[int],
    config: BeamConfig,
    *,
    stop_ids: Sequence[int] = (),
    runner: Runner | None = None,
) -> list[Beam]:
    """Return the best continuations that were found, best first, at most `beams`.

    Args:
        model: Token ids -> logits.
        prompt_ids: The tokens to continue.
        config: How wide to search.
        stop_ids: Tokens that end a text.
        runner: How the model is computed, with at least `beams` slots. None: the fastest that can run it.

    Raises:
        ValueError: The prompt is empty or leaves no room in the context, or the runner has too few slots.
    """
    with evaluating(model):
        search = _Slots(runner or fastest_runner(model, config.beams), prompt_ids, config)
        return _search(search.next_logprobs, _room(model, prompt_ids), config, frozenset(stop_ids))


@torch.no_grad()
def beam_search_reference(
    model: Module, prompt_ids: Sequence[int], config: BeamConfig, *, stop_ids: Sequence[int] = ()
) -> list[Beam]:
    """Return the same by whole passes over every beginning; arguments as in `beam_search`."""

    def next_logprobs(beams: list[_Open]) -> Tensor:
        ids = torch.tensor([[*prompt_ids, *beam.token_ids] for beam in beams])
        return torch.log_softmax(model(ids)[:, -1].double(), dim=-1)

    with evaluating(model):
        return _search(next_logprobs, _room(model, prompt_ids), config, frozenset(stop_ids))


def _search(
    next_logprobs: Next,
    room: int,
    config: BeamConfig,
    stop_ids: frozenset[int],
) -> list[Beam]:
    most = min(config.max_new_tokens, room)
    kept, ends = [_Open((), 0.0, 0)], []
    for length in range(1, most + 1):
        logprobs = next_logprobs(kept)
        sums = logprobs + torch.tensor([[beam.logprob] for beam in kept], dtype=torch.float64)
        # even if every stop token of every beam comes first, `beams` others remain
        enough = min(config.beams * (1 + len(stop_ids)), sums.numel())
        values, places = sums.flatten().topk(enough)
        opened: list[_Open] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            parent, token_id = divmod(place, sums.shape[1])
            ids = (*kept[parent].token_ids, token_id)
            if token_id in stop_ids:
                ends.append(Beam(value / length**config.length_penalty, value, ids, True))
            else:
                opened.append(_Open(ids, value, parent))
            if len(opened) == config.beams:
                break
        kept = opened
        ends = sorted(ends, key=lambda beam: -beam.score)[: config.beams]
        reachable = most if config.length_penalty > 0 else length
        if not kept:
            break
        if len(ends) == config.beams and kept[0].logprob / reachable**config.length_penalty <= ends[-1].score:
            return ends
    cut = [Beam(k.logprob / most**config.length_penalty, k.logprob, k.token_ids, False) for k in kept]
    return sorted((*ends, *cut), key=lambda beam: -beam.score)[: config.beams]


class _Slots:
    """A runner's slots as beams: beginning i is in slot `self.slots[i]`."""

    def __init__(self, runner: Runner, prompt_ids: Sequence[int], config: BeamConfig) -> None:
        if runner.num_slots < config.beams:
            raise ValueError(f"beam search: {config.beams} beams and {runner.num_slots} slots; take as many.")
        self.runner, self.prompt_ids = runner, list(prompt_ids)
        self.slots: list[int] = []
        self.length = len(prompt_ids)

    def next_logprobs(self, kept: list[_Open]) -> Float[Tensor, "beams vocab"]:
        """Return ln p of every next token of every beginning."""
        if not self.slots:
            return torch.log_softmax(self._prompt().double(), dim=-1)
        self._move([beam.parent for beam in kept])
        logits = self.runner.decode(self.slots, [beam.token_ids[-1] for beam in kept])
        self.length += 1
        return torch.log_softmax(logits.double(), dim=-1)

    def _prompt(self) -> Float[Tensor, "1 vocab"]:
        self.runner.clear(0)
        for start in range(0, self.length, CHUNK):
            hidden = self.runner.prefill(0, self.prompt_ids[start : start + CHUNK])
        self.slots = [0]
        return self.runner.logits(hidden[-1:])

    def _move(self, parents: list[int]) -> None:
        """Give every beginning a slot: the first of a parent takes its slot, the others get copies."""
        old, taken = self.slots, {self.slots[parent] for parent in parents}
        free = [slot for slot in range(self.runner.num_slots) if slot not in taken]
        self.slots, given = [], set()
        for parent in parents:
            slot = old[parent]
            if slot in given:
                slot = free.pop()
                self.runner.copy(old[parent], slot, self.length)
            given.add(slot)
            self.slots.append(slot)


def _room(model: Module, prompt_ids: Sequence[int]) -> int:
    """How many tokens can be written: the last one needs no place in the window."""
    length = model.config.context_length
    if not 1 <= len(prompt_ids) <= length:
        raise ValueError(f"beam search: the prompt has {len(prompt_ids)} tokens; 1 to {length} are possible.")
    return length - len(prompt_ids) + 1
