r"""A model, a tokenizer and a prompt in; pieces of text out, one token at a time.

    prefill:  all tokens of the prompt in one pass; their keys and values stay in the cache
    decode:   one token in, one out, against the cache

A text may grow past the context length: when the window is full, its last half is computed again from
position 0 and goes on from there. Text is held back while it may still turn into a stop string or an
incomplete character. A prompt opens a document, so the end-of-text token stands before it, as in the
training data.

Source: prefill and decode as in Pope et al. 2022, https://arxiv.org/abs/2211.05102, section 2.1.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.generate.sampling import SamplingConfig, sample
from scratchlm.kernels.attention_reference import softmax
from scratchlm.tokenizer import Tokenizer


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
    are the continuation.

    Args:
        model: Token ids -> logits, with `config.context_length` and `make_cache()`.
        tokenizer: The one that the model was trained with.
        prompt: Text to continue; special tokens in it are plain text. Empty: the beginning of a document.
        config: How to choose tokens and when to stop.
        use_cache: Whether to keep keys and values; without it every token costs a pass over the whole window.
    """
    ids = [tokenizer.end_of_text_id, *tokenizer.encode_ordinary(prompt)]
    generator = torch.Generator().manual_seed(config.seed)
    window = Window(model, ids, use_cache=use_cache)
    decoder, held = tokenizer.stream_decoder(), HeldText(config.stop)
    for count in range(1, config.max_new_tokens + 1):
        logits = window.next_logits()
        token_id = int(sample(logits[None], config, generator, torch.tensor([ids]))[0])
        probability = float(softmax(logits)[token_id])
        if token_id == tokenizer.end_of_text_id:
            yield Piece(token_id, held.push(decoder.flush()) + held.flush(), probability)
            return
        text = held.push(decoder.push(token_id))
        if count == config.max_new_tokens:
            text += held.push(decoder.flush()) + held.flush()
        yield Piece(token_id, text, probability)
        if held.stopped:
            return
        ids.append(token_id)
        window.append(token_id)


def generate_text(
    model: Module, tokenizer: Tokenizer, prompt: str, config: SamplingConfig, *, use_cache: bool = True
) -> str:
    """Return the continuation of `prompt` as one text; arguments as in `stream`."""
    return "".join(piece.text for piece in stream(model, tokenizer, prompt, config, use_cache=use_cache))


class Window:
    """The tokens that the model sees, at most context_length of them, and what the cache knows about them."""

    def __init__(self, model: Module, ids: list[int], *, use_cache: bool) -> None:
        """Start with the last context_length of `ids`.

        Args:
            model: Token ids -> logits.
            ids: At least one token.
            use_cache: Whether to keep keys and values.
        """
        self.model = model
        self.capacity: int = model.config.context_length
        self.ids = ids[-self.capacity :]
        self.cache = model.make_cache() if use_cache else None
        self.device = next(model.parameters()).device

    def append(self, token_id: int) -> None:
        """Add a token; a full window keeps its last half and is computed again."""
        if len(self.ids) == self.capacity:
            self.ids = self.ids[self.capacity - self.capacity // 2 :]
            if self.cache is not None:
                self.cache.clear()
        self.ids.append(token_id)

    @torch.no_grad()
    def next_logits(self) -> Float[Tensor, " vocab"]:
        """Return the logits of the token after the window, in float32 on the CPU."""
        with evaluating(self.model):
            known = self.cache.length if self.cache is not None else 0
            new_ids = torch.tensor([self.ids[known:]], device=self.device)
            hidden = self.model.hidden(new_ids, cache=self.cache)
            return self.model.head(hidden[0, -1:])[0].float().cpu()


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Dropout off inside this context; afterwards the model is in the mode in which it came."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class HeldText:
    """Text on its way out, kept back while its end may be the beginning of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        """Watch for the texts in `stop`; empty ones are ignored."""
        self.stop = tuple(text for text in stop if text)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """Add `text`; return what is certain to be emitted.

        Example: stop ["END"]; push("the E") -> "the ", push("N") -> "", push("ough") -> "ENough"; had "D"
        come instead, push("D") -> "" and `stopped` would be True.
        """
        if self.stopped:
            return ""
        self._held += text
        ends = [self._held.find(stop) for stop in self.stop]
        found = [end for end in ends if end >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        longest = max((overlap(self._held, stop) for stop in self.stop), default=0)
        cut = len(self._held) - longest
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """Return what was held back: nothing can follow any more."""
        out, self._held = self._held, ""
        return out


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop` without being all of it.

    Example: "the EN", "END" -> 2.
    """
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
