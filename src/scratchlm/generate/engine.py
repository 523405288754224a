r"""Requests in, tokens and text out: continuous batching over a fixed number of slots.

    one step:   waiting requests take free slots
                prompts go through the model, at most a chunk's tokens       prefill
                all slots whose prompts are known get one further token      decode
                each slot's token is chosen with its own settings and random numbers

A long prompt delays the others by one chunk a step, not by its whole length; a text that ends frees its slot
for the next one at once. What a request gets does not depend on who is beside it, on the slot that it has or
on when it came: bit for bit on one thread. The engine is synchronous and for one thread: whoever drives it
calls `step` and deals out the events.

A full window: with full="slide" the window's last half is computed again from position 0 and goes on from
there; with full="stop" the text ends.

Sources: prefill and decode as in Pope et al. 2022, https://arxiv.org/abs/2211.05102, section 2.1; scheduling
by steps: Yu et al. 2022 (Orca), https://www.usenix.org/conference/osdi22/presentation/yu; chunks of prompts
between decodes: Agrawal et al. 2023, https://arxiv.org/abs/2308.16369.
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.choosing import choose, describe
from scratchlm.generate.request import Event, Request, Result, Stats, TokenInfo, check, gather
from scratchlm.generate.runner import PlainRunner, Runner
from scratchlm.generate.runner_fused import fastest_runner
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.generate.sequence import Prompt, Sequence
from scratchlm.generate.speculate import Drafter
from scratchlm.tokenizer import Tokenizer

CHUNK = 256
"""Tokens of a prompt that go through the model at once: enough to fill its matrix products, few enough that
those who write meanwhile wait for tens of milliseconds, not for a whole prompt."""


class Engine:
    """Continues many texts at once with one model."""

    def __init__(
        self,
        model: Module,
        tokenizer: Tokenizer | None,
        *,
        slots: int = 8,
        chunk: int = CHUNK,
        runner: Runner | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """Prepare empty slots.

        Args:
            model: Token ids -> logits, with `config.context_length` and `make_cache()`.
            tokenizer: The one that the model was trained with; None: tokens alone, no text, no stop texts.
            slots: How many texts are continued at once; more wait.
            chunk: The most tokens of a prompt in one step.
            runner: How the model is computed. None: the fastest that can run it.
            drafter: Who guesses the next tokens, so that one pass may confirm several (speculate.py).

        Raises:
            ValueError: A number is below 1.
        """
        for name, value in {"slots": slots, "chunk": chunk}.items():
            if value < 1:
                raise ValueError(f"engine: {name}={value}; it must be at least 1.")
        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        self.runner = runner or fastest_runner(model, slots)
        self._drafters = (
            None if drafter is None else [drafter.another() for _ in range(self.runner.num_slots)]
        )
        self._slots: list[Sequence | None] = [None] * self.runner.num_slots
        self._waiting: deque[Sequence] = deque()
        self._told: list[Event] = []
        self._next_id = 0
        self._finished = self._steps = self._prompt_tokens = self._new_tokens = 0
        self._drafted = self._confirmed = 0

    def submit(self, request: Request) -> int:
        """Queue a request; return the number that its events carry.

        Raises:
            ValueError: The request cannot be computed; nothing was queued.
        """
        sizes = {"vocab_size": self.runner.vocab_size, "context_length": self.runner.context_length}
        check(request, **sizes)
        if not self.is_busy:
            self._take_up_weights()
        request_id, shared = self._next_id, Prompt()
        self._next_id += 1
        for index in range(request.n):
            self._waiting.append(
                Sequence(request, request_id, index, shared=shared, tokenizer=self.tokenizer, **sizes)
            )
        return request_id

    def cancel(self, request_id: int) -> bool:
        """End a request and free its slots at once; the next step tells. Return whether it was under way."""
        mine = [s for s in (*self._slots, *self._waiting) if s is not None and s.request_id == request_id]
        for sequence in mine:
            self._close(sequence, sequence.end("cancelled"))
        return bool(mine)

    def step(self) -> list[Event]:
        """Do one step; return what it brought, each continuation's events in their order."""
        with self._ready():
            self._admit()
            self._prefill()
            self._decode()
        self._steps += 1
        events, self._told = self._told, []
        return events

    def run(self, requests: Iterable[Request]) -> list[Result]:
        """Continue all requests to their ends; return their results in the same order.

        Raises:
            ValueError: A request cannot be computed, or other requests are under way.
        """
        if self.is_busy:
            raise ValueError("engine: run() is for an engine without other requests; use submit and step.")
        requests = list(requests)
        length, vocab_size = self.runner.context_length, self.runner.vocab_size
        for request in requests:
            check(request, vocab_size=vocab_size, context_length=length)
        ids = [self.submit(request) for request in requests]
        events: dict[tuple[int, int], list[Event]] = {
            (i, k): [] for i, r in zip(ids, requests, strict=True) for k in range(r.n)
        }
        with self._ready():
            while self.is_busy:
                for event in self.step():
                    events[event.request_id, event.index].append(event)
        return [
            gather([events[i, k] for k in range(request.n)]) for i, request in zip(ids, requests, strict=True)
        ]

    def stats(self) -> Stats:
        """Return what the engine has done and is doing."""
        running = sum(sequence is not None for sequence in self._slots)
        counts = (self._finished, self._steps, self._prompt_tokens, self._new_tokens)
        counts += (self._drafted, self._confirmed)
        return Stats(len(self._slots), running, len(self._waiting), *counts)

    @property
    def is_busy(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._waiting or self._told) or any(sequence is not None for sequence in self._slots)

    def warm_up(self) -> None:
        """Compile now what would be compiled at the first token (on a CPU seconds, once an installation)."""
        with self._ready():
            self.runner.warm_up()
            for drafter in self._drafters or ():
                drafter.warm_up()

    def refresh(self) -> None:
        """Say that the model's weights changed: texts under way are computed again with the new ones.

        Needed only while the engine is busy. An idle engine takes up the weights as they are when the next
        request comes, whether they were changed in place, moved, or are computed from others (adapters).
        """
        self._take_up_weights()
        for sequence in (*self._slots, *self._waiting):
            if sequence is not None:
                sequence.forget()

    def _take_up_weights(self) -> None:
        with self._ready():
            self.runner.refresh()
            for drafter in self._drafters or ():
                drafter.refresh()

    def _ready(self) -> contextlib.AbstractContextManager[None]:
        # walking over all modules at every token is felt by small models
        return evaluating(self.model) if self.model.training else contextlib.nullcontext()

    def _admit(self) -> None:
        for slot, taken in enumerate(self._slots):
            while taken is None and self._waiting:
                sequence = self._waiting.popleft()
                if sequence.sampling.max_new_tokens == 0 and not sequence.wants_scores:
                    self._close(sequence, sequence.end("length"))
                    continue
                self._slots[slot], sequence.slot = sequence, slot
                if self._drafters is not None:
                    self._drafters[slot].begin()
                break

    def _prefill(self) -> None:
        """Compute chunks of texts that have more than one token waiting, the oldest first.

        Several short prompts go through in one step, as many as have a chunk's tokens together. Where a
        prompt is cut never depends on the others.
        """
        spent = 0
        while True:
            for sequence in self._slots:
                if sequence is not None and sequence.is_fresh and sequence.shared.logits is not None:
                    self._borrow(sequence)
            behind = [s for s in self._slots if s is not None and (s.waiting > 1 or s.wants_scores)]
            if not behind:
                return
            sequence = min(behind, key=lambda s: (s.request_id, s.index))
            ids = sequence.window[sequence.known : sequence.known + self.chunk]
            if spent and spent + len(ids) > self.chunk:
                return
            spent += len(ids)
            self._prefill_chunk(sequence, ids)

    def _prefill_chunk(self, sequence: Sequence, ids: list[int]) -> None:
        """Compute a text's next tokens; after the prompt's last one its first new token is chosen."""
        if sequence.known == 0:
            self.runner.clear(sequence.slot)
        hidden = self.runner.prefill(sequence.slot, ids)
        self._prompt_tokens += len(ids)
        if sequence.wants_scores:
            self._score(sequence, hidden)
        sequence.known += len(ids)
        if sequence.waiting:
            return
        if sequence.sampling.max_new_tokens == 0:
            self._close(sequence, sequence.end("length"))
            return
        # the last row by itself: its logits must not depend on whether the others' are wanted
        logits = self.runner.logits(hidden[-1:])
        if sequence.num_new == 0:
            sequence.shared.logits = logits
        self._choose([sequence], logits)

    def _borrow(self, sequence: Sequence) -> None:
        """Copy the prompt's keys and values from another continuation of its request, if one has them."""
        for other in self._slots:
            if other is not None and other.shared is sequence.shared and other.holds_prompt:
                self.runner.copy(other.slot, sequence.slot, len(sequence.window))
                sequence.known, sequence.prompt = len(sequence.window), list(other.prompt)
                self._choose([sequence], sequence.shared.logits)
                return

    def _decode(self) -> None:
        ready = [s for s in self._slots if s is not None and s.waiting == 1 and not s.wants_scores]
        for sequence in ready:
            if sequence.known == 0:
                self.runner.clear(sequence.slot)
        if self._drafters is not None:
            ready = [s for s in ready if not self._confirm(s, self._drafters[s.slot])]
        if not ready:
            return
        logits = self.runner.decode([s.slot for s in ready], [s.window[-1] for s in ready])
        for sequence in ready:
            sequence.known += 1
        self._choose(ready, logits)

    def _confirm(self, sequence: Sequence, drafter: Drafter) -> bool:
        """Let one pass choose several tokens, as long as the guesses are right; False if there is no guess.

        Row i is computed as if the first i guesses were true, and counts only if they were. Each token is
        chosen as it would be without guesses, from the same logits with the same random numbers.
        """
        room = min(sequence.room, sequence.sampling.max_new_tokens - sequence.num_new - 1)
        guesses = drafter.propose(sequence.ids, room) if room > 0 else []
        if not guesses:
            return False
        rows = self.runner.logits(self.runner.prefill(sequence.slot, [sequence.window[-1], *guesses]))
        self._drafted += len(guesses)
        for row, guess in zip(rows, [*guesses, None], strict=True):
            sequence.known += 1
            self._choose([sequence], row[None])
            if sequence.finished or sequence.ids[-1] != guess:
                break
            self._confirmed += 1
        if not sequence.finished and sequence.known:  # known 0: the window slid
            self.runner.truncate(sequence.slot, sequence.known)
        return True

    def _choose(self, sequences: list[Sequence], logits: Float[Tensor, "rows vocab"]) -> None:
        """Choose each sequence's next token and tell what it brings."""
        alternatives = [sequence.request.logprobs for sequence in sequences]
        tokens = choose(logits, [sequence.chooser for sequence in sequences], alternatives)
        self._new_tokens += len(tokens)
        for sequence, token in zip(sequences, tokens, strict=True):
            event = sequence.accept(token)
            if event.finish_reason is None:
                self._told.append(event)
            else:
                self._close(sequence, event)

    def _score(self, sequence: Sequence, hidden: Float[Tensor, "time d_model"]) -> None:
        """Note what the model thought of the prompt's tokens after those of this chunk."""
        ids, wanted = sequence.window, sequence.request.logprobs
        if sequence.known == 0:
            sequence.prompt.append(TokenInfo(ids[0], None))
        following = torch.tensor(ids[sequence.known + 1 : sequence.known + 1 + len(hidden)])
        if len(following):
            rows = self.runner.logits(hidden)[: len(following)]
            sequence.prompt += describe(rows, following, [wanted] * len(following))

    def _close(self, sequence: Sequence, event: Event) -> None:
        """Tell a continuation's end and free what it had."""
        if sequence.slot >= 0:
            self._slots[sequence.slot] = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._finished += 1
        self._told.append(event)


class Piece(NamedTuple):
    """One generated token."""

    token_id: int
    """The token."""
    text: str
    """Text that became certain with this token: may be empty, and may include earlier tokens' characters."""
    probability: float
    """What the model gave this token, before temperature and filters."""


def stream(
    model: Module,
    tokenizer: Tokenizer,
    prompt: str,
    config: SamplingConfig,
    *,
    use_cache: bool = True,
) -> Iterator[Piece]:
    """Yield the continuation of `prompt` token by token.

    It ends at the end-of-text token (a piece of its own, without text of its own), at a stop string (the
    text before it is emitted, it is not), or after config.max_new_tokens. The texts of all pieces together
    are the continuation. A prompt opens a document, so the end-of-text token stands before it, as in the
    training data; a text may grow past the context length (full="slide").

    Args:
        model: Token ids -> logits, with `config.context_length` and `make_cache()`.
        tokenizer: The one that the model was trained with.
        prompt: Text to continue; special tokens in it are plain text. Empty: the beginning of a document.
        config: How to choose tokens and when to stop.
        use_cache: Whether to keep keys and values; without it every token costs a pass over the whole window.

    Raises:
        ValueError: The model's logits are no numbers.
    """
    ids = (tokenizer.end_of_text_id, *tokenizer.encode_ordinary(prompt))
    runner = None if use_cache else PlainRunner(model, 1, use_cache=False)
    engine = Engine(model, tokenizer, slots=1, chunk=model.config.context_length, runner=runner)
    engine.submit(Request(prompt_ids=ids, sampling=config))
    while engine.is_busy:
        for event in engine.step():
            if event.error is not None:
                raise ValueError(f"generation: {event.error}")
            if event.token is not None:
                yield Piece(event.token.token_id, event.text, math.exp(event.token.logprob))


def generate_text(
    model: Module, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, *, use_cache: bool = True
) -> str:
    """Return the continuation of `prompt` as one text; arguments as in `stream`."""
    return "".join(piece.text for piece in stream(model, tokenizer, prompt, config, use_cache=use_cache))


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Dropout off inside this context; afterwards the model is in the mode in which it came."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
