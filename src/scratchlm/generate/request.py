"""What is asked of the engine and what it answers: requests in; events, choices and results out.

    Request   a prompt as token ids, how to choose tokens, how many continuations, what to tell about them
    Event     what one step brought for one continuation: a token, text that became certain, perhaps the end
    Result    a request's continuations as a whole

A request is checked against the model before anything is computed (`check`), so that a mistake is an answer
and never the end of an engine that others use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scratchlm.generate.sampling import SamplingConfig

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""stop: a stop token or text; length: max_new_tokens, or the window is full and full="stop"; cancelled: by
`Engine.cancel`; error: the model gave no numbers, or an id that the tokenizer does not have."""

MOST_CHOICES = 128
"""The most continuations of one request: each is computed, so an unbounded number is an attack (vLLM's
CVE-2026-34756)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to continue."""

    prompt_ids: Sequence[int]
    """The tokens to continue, at least one. A text's beginning is the end-of-text token, as in training."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are chosen and when to stop."""
    n: int = 1
    """How many continuations; number i is drawn with seed + i."""
    logprobs: int | None = None
    """None: no alternatives; k >= 0: with every token the k likeliest ones and their logarithms."""
    echo: bool = False
    """Whether to give the prompt's tokens too, with their logarithms where `logprobs` is given."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end the text. None: the tokenizer's end-of-text token; () for none at all."""
    full: Literal["slide", "stop"] = "slide"
    """When the window is full. slide: its last half is computed again from position 0, and a longer prompt
    loses its beginning; stop: the text ends with "length", and a longer prompt is refused."""


class TokenInfo(NamedTuple):
    """A token and what the model thought of it."""

    token_id: int
    logprob: float | None
    """ln p as the model gave it, before temperature and filters. None: nothing stood before it."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place and their logarithms, likeliest first."""
    drawn_logprob: float | None = None
    """ln of the probability with which it was drawn: after biases, penalties, temperature and filters; 0
    where the likeliest is taken. None: it was given, not drawn."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What one step brought for one continuation."""

    request_id: int
    index: int
    """Which of the request's n continuations."""
    token: TokenInfo | None = None
    """The new token. None: only the end is told, or only the prompt."""
    text: str = ""
    """Text that became certain: may be empty, and may include earlier tokens' characters."""
    prompt: tuple[TokenInfo, ...] = ()
    """With `echo`, once, in the first event: the prompt's tokens."""
    finish_reason: FinishReason | None = None
    """Why it ended; None while it goes on."""
    error: str | None = None
    """With finish_reason "error": what happened."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One continuation as a whole."""

    text: str
    tokens: tuple[TokenInfo, ...]
    finish_reason: FinishReason
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a request."""

    choices: tuple[Choice, ...]
    prompt: tuple[TokenInfo, ...] = ()
    """With `echo`: the prompt's tokens."""


class Stats(NamedTuple):
    """What the engine has done and is doing."""

    slots: int
    running: int
    """Continuations that have a slot."""
    waiting: int
    """Continuations that have none yet."""
    finished: int
    """Continuations that ended, for any reason."""
    steps: int
    prompt_tokens: int
    """Tokens that went through prefill, those of slid windows too; a prompt for n continuations once."""
    new_tokens: int
    """Tokens that were chosen."""
    drafted: int
    """Tokens that the drafter guessed."""
    confirmed: int
    """How many of them were right."""


def gather(events: Sequence[Sequence[Event]]) -> Result:
    """Return a request's result from the events of its continuations."""
    choices = tuple(
        Choice(
            text="".join(event.text for event in mine),
            tokens=tuple(event.token for event in mine if event.token is not None),
            finish_reason=mine[-1].finish_reason,
            error=mine[-1].error,
        )
        for mine in events
    )
    return Result(choices=choices, prompt=next((e.prompt for e in events[0] if e.prompt), ()))


def check(request: Request, *, vocab_size: int, context_length: int) -> None:
    """Refuse what cannot be computed.

    Raises:
        ValueError: What is wrong, where, and what is allowed.
    """
    num_prompt = len(request.prompt_ids)
    if num_prompt == 0:
        raise ValueError("prompt_ids: empty; begin a text with the end-of-text token.")
    _check_ids("prompt_ids", request.prompt_ids, vocab_size)
    _check_ids("stop_ids", request.stop_ids or (), vocab_size)
    _check_ids("sampling.logit_bias", request.sampling.logit_bias, vocab_size)
    if not 1 <= request.n <= MOST_CHOICES:
        raise ValueError(f"n={request.n}: ask for 1 to {MOST_CHOICES} continuations.")
    if request.logprobs is not None and not 0 <= request.logprobs <= vocab_size:
        raise ValueError(f"logprobs={request.logprobs}: ask for 0 to {vocab_size} alternatives.")
    if num_prompt > context_length and request.full == "stop":
        raise ValueError(
            f"the prompt has {num_prompt} tokens and the model sees {context_length}; "
            "shorten it, or let the window slide (full='slide')."
        )
    if num_prompt > context_length and request.echo and request.logprobs is not None:
        raise ValueError(
            f"echo with logprobs: the prompt has {num_prompt} tokens and the model sees {context_length}; "
            "shorten it, or leave one of the two out."
        )


def _check_ids(where: str, ids: Sequence[int] | Mapping[int, float], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"{where}: there is no token {token_id}; ids are 0 to {vocab_size - 1}.")
