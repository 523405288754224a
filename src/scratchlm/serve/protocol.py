r"""JSON of a client comes in, checked requests go out: the fields of OpenAI's interface that we compute.

    GET  /                       the page                         text/html, with a strict content policy
    GET  /health                 {"status": "ok"}                 503: "loading", "draining", "stopped"
    GET  /metrics                counters and gauges              Prometheus' text
    GET  /v1/models              {"object": "list", "data": [MODEL, ...]}
    GET  /v1/models/{id}         MODEL
    POST /v1/completions         CompletionBody -> COMPLETION
    POST /v1/chat/completions    ChatBody -> CHAT
    POST /tokenize               TokenizeBody -> {"tokens": [1, 2], "count": 2, "max_model_len": 256,
                                                  "token_strs": ["<|endoftext|>", "Once"]}
    POST /detokenize             DetokenizeBody -> {"prompt": "Once"}
    GET  /tokenizer_info         ?model=: {"eos_token", "bos_token", "pad_token", "chat_template", ...}

    MODEL       {"id": "demo", "object": "model", "created": 1760000000, "owned_by": "scratchlm",
                 "context_length": 256, "vocab_size": 4096, "step": 1500, "chat_tokens": true,
                 "max_tokens": 4096, "max_choices": 16}
    COMPLETION  {"id": "cmpl-...", "object": "text_completion", "created": 1, "model": "demo",
                 "choices": [{"index": 0, "text": "...", "finish_reason": "stop", "logprobs": null | LP}],
                 "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}
    LP          {"tokens": ["Once"], "token_logprobs": [-0.1], "text_offset": [0],
                 "top_logprobs": [{"Once": -0.1, "The": -2.3}]}
                 with return_token_ids also "token_ids": [17], "top_token_ids": [[17, 9]] in LP's order
    CHAT        {"id": "chatcmpl-...", "object": "chat.completion", "created": 1, "model": "demo",
                 "choices": [{"index": 0, "finish_reason": "stop",
                              "message": {"role": "assistant", "content": "...", "refusal": null},
                              "logprobs": null | {"content": [ENTRY], "refusal": null}}],
                 "usage": {...}}
    ENTRY       {"token": " Hi", "bytes": [32, 72, 105], "logprob": -0.2, "top_logprobs": [ENTRY without it]}
                 with return_token_ids also "token_id": 17
    choices with return_token_ids also have "token_ids": [17, 9] and, completions only, "prompt_token_ids"

A stream is Server-Sent Events, `data: {json}\n\n`, and ends with `data: [DONE]`. Its chunks are COMPLETION
with the new part of each choice (finish_reason null until the end), or object "chat.completion.chunk" with
"delta": {"role": "assistant", "content": null} first, then {"content": "..."}, then {} with finish_reason.
With stream_options.include_usage every chunk has "usage": null, and a last one has it with "choices": [].

Rules: a text prompt begins with the end-of-text token, as in training; token ids are taken as they are, so a
branch is the prompt's ids and those of the answer as far as it is kept (in a conversation these alone, as
answer_token_ids: ours, not OpenAI's). Special tokens in texts are text.
logprobs of completions tell of every chosen token, the one that ended the text included; chat leaves that
one out. A prompt that is longer than the context is an error unless full="slide". What is not known is
refused, `null` means "not given", and nothing of a request is an address that would be opened.

Errors: errors.py; in a stream that has begun the same object is an event. Inline scripts and styles of the
page are allowed by their hashes, so there are no style="..." or onclick="..." attributes in it.

Source: https://platform.openai.com/docs/api-reference; return_token_ids, top_k, min_p, /tokenize and
/detokenize as in https://docs.vllm.ai/en/latest/serving/openai_compatible_server.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from scratchlm.generate.sampling import SamplingConfig
from scratchlm.registry import unknown
from scratchlm.serve.errors import bad_request

UNSUPPORTED = frozenset(
    {
        *("audio", "best_of", "function_call", "functions", "metadata", "modalities", "moderation"),
        *("parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options", "tools"),
        *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store"),
        *("suffix", "tool_choice", "verbosity", "web_search_options", "response_format"),
    }
)
"""Fields of OpenAI's interface that ask for something we do not do."""

MOST_BIASES = 1024
"""Entries of logit_bias: each is work at every token. OpenAI documents no number; vLLM was stopped by such
lists (PYSEC-2026-4350)."""
MOST_STOPS = 16
"""OpenAI takes 4; lm-eval's tasks have more."""
LONGEST_STOP = 256
"""Characters of a stop text: each is searched for at every token."""
MOST_MESSAGES = 2048
"""Turns of a conversation, far more than fit into a context; each is looked at by itself."""
MOST_ALTERNATIVES = 20
"""As OpenAI's top_logprobs, 0 to 20."""

Prompts = list[str] | list[list[int]]


class Strict(BaseModel):
    """A JSON object: strict about names and types, null means "not given"."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        for name in value:  # the first one only: pydantic would explain each of a million
            if name not in cls.model_fields:
                told = str(name)[:100]
                message = unknown("parameter", told, cls.model_fields)
                raise PydanticCustomError("unknown", message, {"name": told})
        return {k: v for k, v in value.items() if v is not None}


class Body(Strict):
    """The JSON object of a request."""

    model: str | None = None
    """Which model; not given: the first one."""


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    """A last chunk with the numbers of tokens."""


class GenerationBody(Body):
    """What completions and conversations have in common."""

    n: int = Field(default=1, ge=1)
    """Continuations of each prompt."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the likeliest tokens that together have this probability."""
    top_k: int | None = Field(default=None, ge=-1)
    """Keep the k likeliest tokens; 0 and -1: all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Keep tokens with this share of the likeliest one's probability."""
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    """Above 1 what occurred gets less likely."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken from what was written already."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """The same for each time it was written."""
    logit_bias: dict[str, float] = Field(default={}, max_length=MOST_BIASES)
    """Token id, as text, -> what is added to its logit."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed gives the same text; not given: a new one each time."""
    stop: list[str] = Field(default=[], max_length=MOST_STOPS, fail_fast=True)
    """A text, or several, that end the answer and are no part of it."""
    stream: bool = False
    """Whether to send the answer piece by piece."""
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(default=None, max_length=1000)
    """Taken and not looked at."""
    full: Literal["stop", "slide"] = "stop"
    """When the context is full. stop: the text ends; slide: the beginning is forgotten and it goes on."""
    return_token_ids: bool = False
    """Whether to tell the ids of tokens."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        for text in value:
            if not 0 < len(text) <= LONGEST_STOP:
                raise ValueError(f"a stop text must have 1 to {LONGEST_STOP} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            if not (name.isascii() and name.isdigit() and len(name) < 10):
                raise ValueError(f"{name[:20]!r} is no token id")
            if not -100 <= number <= 100:
                raise ValueError("must be from -100 to 100")
        return value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "GenerationBody":
        if self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    def sampling(self, *, max_new_tokens: int, seed: int, stop: tuple[str, ...] = ()) -> SamplingConfig:
        """What the engine needs to know.

        Args:
            max_new_tokens: The most tokens to add.
            seed: Used where the client named none.
            stop: Further texts that end the answer.
        """
        return SamplingConfig(
            temperature=self.temperature,
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            top_p=None if self.top_p == 1.0 else self.top_p,
            min_p=self.min_p or None,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(name): number for name, number in self.logit_bias.items()},
            max_new_tokens=max_new_tokens,
            stop=(*self.stop, *stop),
            seed=seed if self.seed is None else self.seed,
        )


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Prompts
    """A text, token ids, or a list of either."""
    max_tokens: int = Field(default=16, ge=0)
    """The most tokens to add; 0 with `echo` only tells of the prompt. 16 is OpenAI's default."""
    logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    """Tell the logarithm of each token's probability, and so many alternatives."""
    echo: bool = False
    """Whether the answer begins with the prompt."""

    @field_validator("prompt", mode="plain")  # a million lists would be tried as each of the types
    @classmethod
    def _as_list(cls, value: object) -> object:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and all(_is_id(item) for item in value):
            return [value]
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
        lists = value if isinstance(value, list) and all(isinstance(item, list) for item in value) else []
        if lists and all(lists) and all(_is_id(part) for item in lists for part in item):
            return value
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    """{"role": "system" | "user" | "assistant", "content": "..."}, in order."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most tokens to add; not given: as many as fit into the context."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of max_tokens."""
    logprobs: bool = False
    """Whether to tell the logarithm of each token's probability."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    """How many alternatives; needs logprobs=true."""
    answer_token_ids: list[int] = Field(default=[], fail_fast=True)
    """Tokens with which the answer begins, as far as another one is kept; what is answered follows them."""

    @field_validator("messages")
    @classmethod
    def _texts(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_message(number, message) for number, message in enumerate(value)]

    @model_validator(mode="after")
    def _consistent(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens: an older name of max_completion_tokens; give one of the two")
        return self


class TokenizeBody(Body):
    """POST /tokenize: a text, or a conversation as the model would read it."""

    prompt: str | None = None
    """The text."""
    messages: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, max_length=MOST_MESSAGES, fail_fast=True
    )
    """Or the conversation."""
    add_generation_prompt: bool = True
    """End a conversation with the beginning of the assistant's turn."""
    add_special_tokens: bool = True
    """Begin a text with the end-of-text token, as a prompt does. Without it a text that is nothing but the
    name of a special token is that token: so clients learn the ids of those that /tokenizer_info names."""
    return_token_strs: bool = False
    """Whether to tell the text of each token."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[int] = Field(fail_fast=True)
    """Token ids."""


Parsed = TypeVar("Parsed", bound=Body)


def parse(kind: type[Parsed], data: bytes) -> Parsed:
    """Read a request's JSON.

    Raises:
        ApiError: It is no JSON (also: nested too deeply, no UTF-8), or not of this kind.
    """
    try:
        tree = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is no valid JSON: {error}.") from None
    if not isinstance(tree, dict):
        raise bad_request("the body must be a JSON object.")
    for name in sorted(UNSUPPORTED & tree.keys()):
        if tree[name] is not None:
            raise bad_request(f"{name}: not supported by this server; leave it out.", param=name)
    try:
        return kind.model_validate({key: item for key, item in tree.items() if key not in UNSUPPORTED})
    except ValidationError as error:
        raise _first(kind, error.errors(include_url=False)[0]) from None


def _first(kind: type[Body], detail: ErrorDetails) -> Exception:
    """One mistake as an answer."""
    place = [*detail["loc"], *([detail["ctx"]["name"]] if detail["type"] == "unknown" else [])]
    where = ".".join(str(part) for part in place)[:100]
    if detail["type"] == "unknown":
        return bad_request(detail["msg"], param=where)
    message = detail["msg"].removeprefix("Value error, ").removesuffix(".")
    if not where and ":" in message:
        where, message = message.split(": ", 1)
    if detail["type"] == "missing":
        message = "missing; it must be given"
    return bad_request(f"{where}: {message[:1].lower()}{message[1:]}.", param=where or None)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _message(number: int, message: dict[str, Any]) -> dict[str, Any]:
    """One message with its content as one text, and without fields that are null."""
    found = {key: item for key, item in message.items() if item is not None}
    if found.get("role") == "developer":  # the newer name of system
        found["role"] = "system"
    if isinstance(found.get("content"), list):
        texts = []
        for part in found["content"]:
            if not isinstance(part, dict) or part.get("type") != "text" or set(part) != {"type", "text"}:
                raise ValueError(f"message {number}: content must be text; other parts are not supported")
            if not isinstance(part["text"], str):
                raise ValueError(f"message {number}: the text of a part of content must be a text")
            texts.append(part["text"])
        found["content"] = "".join(texts)
    return found
