"""One continuation under way: its window, its random numbers, its text, and when it is over.

    window    the tokens that the model sees, at most context_length of them
    ids       the prompt and what was written, all of it
    known     how many of them the runner has computed
    waiting   window[known:], one token while decoding, more at the start and after the window slid

Everything that a continuation's next token depends on is here or in its slot of the runner, so neighbours
cannot change it.
"""

import math

from jaxtyping import Float
from torch import Tensor

from scratchlm.generate.choosing import Chooser
from scratchlm.generate.request import Event, FinishReason, Request, TokenInfo
from scratchlm.generate.text import HeldText
from scratchlm.tokenizer import Tokenizer


class Prompt:
    """What the continuations of one request have in common, once one of them has computed it."""

    logits: Float[Tensor, "1 vocab"] | None = None
    """What the model says of the token after the prompt."""


class Sequence:
    """One of the n continuations of a request."""

    def __init__(
        self,
        request: Request,
        request_id: int,
        index: int,
        *,
        shared: Prompt,
        tokenizer: Tokenizer | None,
        context_length: int,
        vocab_size: int,
    ) -> None:
        """Start with the last context_length tokens of the prompt."""
        self.request, self.request_id, self.index = request, request_id, index
        self.sampling, self.shared = request.sampling, shared
        self.context_length = context_length
        self.prompt: list[TokenInfo] = []
        self.window: list[int] = list(request.prompt_ids[-context_length:])
        self.known = 0
        self.ids: list[int] = list(request.prompt_ids)
        self.slot = -1
        self.chooser = Chooser(self.sampling, self.sampling.seed + index, self.ids, vocab_size)
        self._decoder = tokenizer.stream_decoder() if tokenizer is not None else None
        self._held = HeldText(self.sampling.stop)
        ids = request.stop_ids
        self._stop_ids = frozenset(
            ids if ids is not None else () if tokenizer is None else (tokenizer.end_of_text_id,)
        )
        self._prompt_is_told = not request.echo
        self.slid = self.finished = False

    @property
    def waiting(self) -> int:
        """How many tokens the runner must compute before the next one can be chosen."""
        return len(self.window) - self.known

    @property
    def room(self) -> int:
        """How many tokens fit into the window behind those that are there."""
        return self.context_length - len(self.window)

    @property
    def wants_scores(self) -> bool:
        """Whether the prompt's own logits are still needed."""
        return not self._prompt_is_told and self.request.logprobs is not None

    @property
    def num_new(self) -> int:
        """How many tokens were written so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing of it was computed yet and nothing written."""
        return self.known == 0 and self.num_new == 0

    @property
    def holds_prompt(self) -> bool:
        """Whether its slot begins with all of the prompt that fits into the window."""
        return not self.slid and self.known >= min(len(self.request.prompt_ids), self.context_length)

    def accept(self, token: TokenInfo) -> Event:
        """Take the chosen token; return what it brings. The window moves, unless it was the last token."""
        if not math.isfinite(token.logprob):
            return self.fail(f"the model's logits are no numbers after {self.num_new} new tokens.")
        if token.token_id in self._stop_ids:
            return self._event(token, self._push(self._rest()) + self._held.flush(), "stop")
        try:
            text = self._push("" if self._decoder is None else self._decoder.push(token.token_id))
        except ValueError as error:
            return self.fail(f"token {token.token_id}: {error}")
        if self.num_new + 1 == self.sampling.max_new_tokens or self._is_full:
            text += self._push(self._rest()) + self._held.flush()
            return self._event(token, text, "stop" if self._held.stopped else "length")
        if self._held.stopped:
            return self._event(token, text, "stop")
        self.chooser.note(token.token_id)
        self.ids.append(token.token_id)
        self._append(token.token_id)
        return self._event(token, text, None)

    def end(self, reason: FinishReason) -> Event:
        """End it without a further token; return the text that was held back."""
        return self._event(None, self._push(self._rest()) + self._held.flush(), reason)

    def fail(self, error: str) -> Event:
        """End it because something went wrong."""
        return self._event(None, self._held.flush(), "error", error)

    def forget(self) -> None:
        """Have its window computed again: the model's weights changed."""
        self.known, self.shared.logits = 0, None
        if self.wants_scores:
            self.prompt = []

    @property
    def _is_full(self) -> bool:
        return self.request.full == "stop" and len(self.window) == self.context_length

    def _append(self, token_id: int) -> None:
        """Add a token; a full window keeps its last half and is computed again."""
        if len(self.window) == self.context_length:
            self.window = self.window[self.context_length - self.context_length // 2 :]
            self.known, self.slid = 0, True
        self.window.append(token_id)

    def _push(self, text: str) -> str:
        return self._held.push(text)

    def _rest(self) -> str:
        return "" if self._decoder is None else self._decoder.flush()

    def _event(
        self, token: TokenInfo | None, text: str, reason: FinishReason | None, error: str | None = None
    ) -> Event:
        prompt: tuple[TokenInfo, ...] = ()
        if not self._prompt_is_told:
            prompt = tuple(self.prompt) or tuple(TokenInfo(i, None) for i in self.request.prompt_ids)
            self._prompt_is_told = True
        self.finished = reason is not None
        return Event(
            request_id=self.request_id,
            index=self.index,
            token=token,
            text=text,
            prompt=prompt,
            finish_reason=reason,
            error=error,
        )
