r"""Events of the engine come in, the JSON of OpenAI's answers goes out, in pieces or as a whole.

    Reply.piece(told)   what one event adds to one choice      stream: reply.chunk(piece)
    Reply.add(piece)    joins the pieces of a choice           whole:  reply.whole()

Both ways are made of the same pieces, so a stream joined together is the answer as a whole. The text of a
token by itself may be half a character: completions name it "bytes:\xe2\x80", conversations give its bytes.

Source: https://platform.openai.com/docs/api-reference/completions/object, .../chat/object, .../chat/streaming
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scratchlm.generate.request import TokenInfo
from scratchlm.serve.errors import ApiError, busy
from scratchlm.serve.protocol import ChatBody, CompletionBody, GenerationBody
from scratchlm.serve.worker import Served, Told
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.streaming import StreamDecoder

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON has not; the number that OpenAI documents."""


@dataclass
class Piece:
    """What one event adds to one choice."""

    index: int
    """Number of the choice."""
    text: str = ""
    tokens: tuple[TokenInfo, ...] = ()
    """Tokens to tell of: the prompt's with `echo`, and the chosen one."""
    offsets: tuple[int, ...] = ()
    """Where each of them begins in the choice's text."""
    finish_reason: str | None = None
    prompt_ids: tuple[int, ...] = ()
    """The prompt's tokens, once, where ids are told."""


@dataclass
class ChoiceSoFar:
    """What was said of one choice."""

    decoder: StreamDecoder
    """Finds where tokens begin."""
    num_characters: int = 0
    """In front of the next token."""
    said: bool = False
    """Whether it has any text."""
    opened: bool = False
    """Whether its prompt was told."""
    begun: bool = False
    """Whether its stream has begun."""
    pieces: list[Piece] = field(default_factory=list)


class Reply(ABC):
    """The answer to one request."""

    def __init__(
        self, body: GenerationBody, model: Served, prompts: Sequence[Sequence[int]], *, id: str, created: int
    ) -> None:
        """Prepare an answer.

        Args:
            body: What was asked.
            model: Who answers.
            prompts: Token ids of each prompt.
            id: Of the answer.
            created: Now, in seconds since 1970.
        """
        self.body, self.model, self.prompts = body, model, prompts
        self.tokenizer = model.tokenizer
        self.id, self.created = id, created
        self.num_new = 0
        self.choices = [ChoiceSoFar(model.tokenizer.stream_decoder()) for _ in range(len(prompts) * body.n)]

    def piece(self, told: Told) -> Piece:
        """What an event adds.

        Raises:
            ApiError: The event tells of a failure.
        """
        event = told.event
        if event.finish_reason == "error":
            raise ApiError(500, f"generation failed: {event.error}", code="generation_error")
        if event.finish_reason == "cancelled":
            raise busy(503, "the server stopped this answer.", "stopped")
        self.num_new += event.token is not None  # a text that ends without a token has none
        index = told.prompt * self.body.n + event.index
        piece = Piece(index, event.text, finish_reason=event.finish_reason)
        tokens = self._told_tokens(told)
        if self._tells_tokens:
            piece.tokens = tokens
            piece.offsets = tuple(self._place(self.choices[index], token.token_id) for token in tokens)
        self._finish(piece, told)
        self.choices[index].said |= bool(piece.text)
        return piece

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """A piece as objects of a stream: none where it tells nothing."""
        choice = self.choices[piece.index]
        found = [] if choice.begun else self._opening(piece.index)
        choice.begun = True
        if piece.text or piece.tokens or piece.prompt_ids:
            found.append(self._chunk(replace(piece, finish_reason=None)))
        if piece.finish_reason is not None:
            found.append(self._chunk(Piece(piece.index, finish_reason=piece.finish_reason)))
        usage = {"usage": None} if self.body.stream_options.include_usage else {}
        return [{**self._head(stream=True), "choices": [choice], **usage} for choice in found]

    def last_chunk(self) -> dict[str, Any]:
        """The object after all choices: how many tokens it was."""
        return {**self._head(stream=True), "choices": [], "usage": self.usage()}

    def add(self, piece: Piece) -> None:
        """Keep a piece for the answer as a whole."""
        self.choices[piece.index].pieces.append(piece)

    def whole(self) -> dict[str, Any]:
        """The answer as a whole, when every choice has ended."""
        choices = []
        for index, choice in enumerate(self.choices):
            joined = Piece(
                index,
                "".join(piece.text for piece in choice.pieces),
                tuple(token for piece in choice.pieces for token in piece.tokens),
                tuple(offset for piece in choice.pieces for offset in piece.offsets),
                choice.pieces[-1].finish_reason,
                choice.pieces[0].prompt_ids,
            )
            choices.append(self._choice(joined))
        return {**self._head(stream=False), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens so far; a prompt counts once, however many continuations it has."""
        prompt = sum(len(ids) for ids in self.prompts)
        counts = {"prompt_tokens": prompt, "completion_tokens": self.num_new}
        return {**counts, "total_tokens": prompt + self.num_new}

    @property
    @abstractmethod
    def _tells_tokens(self) -> bool:
        """Whether tokens are told of, besides the text."""

    @abstractmethod
    def _told_tokens(self, told: Told) -> tuple[TokenInfo, ...]:
        """Which tokens of an event are told."""

    @abstractmethod
    def _finish(self, piece: Piece, told: Told) -> None:
        """Change a piece before it is told."""

    @abstractmethod
    def _head(self, *, stream: bool) -> dict[str, Any]:
        """Fields of the object around the choices."""

    @abstractmethod
    def _opening(self, index: int) -> list[dict[str, Any]]:
        """What a choice's stream begins with."""

    @abstractmethod
    def _chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece as a choice of a stream."""

    @abstractmethod
    def _choice(self, piece: Piece) -> dict[str, Any]:
        """All pieces, joined, as a choice of the whole answer."""

    def _place(self, choice: ChoiceSoFar, token_id: int) -> int:
        """Where a token begins in the text, in characters."""
        place = max(choice.num_characters, 0)
        choice.num_characters += len(choice.decoder.push(token_id))
        return place


class CompletionReply(Reply):
    """The answer to POST /v1/completions."""

    body: CompletionBody

    def __init__(self, body: CompletionBody, *args: Any, echoes: Sequence[str], **settings: Any) -> None:
        """Prepare an answer; arguments as of `Reply`, and with `echo` each prompt as a text."""
        super().__init__(body, *args, **settings)
        self.echoes = echoes
        if body.echo:
            for index, choice in enumerate(self.choices):  # the first token may stand before the text
                prompt = index // body.n
                extra = len(self.tokenizer.decode(self.prompts[prompt])) - len(echoes[prompt])
                choice.num_characters = -extra

    @property
    def _tells_tokens(self) -> bool:
        return self.body.logprobs is not None or self.body.return_token_ids

    def _told_tokens(self, told: Told) -> tuple[TokenInfo, ...]:
        token, prompt = told.event.token, told.event.prompt
        if prompt:  # what was put in front of the client's ids is not told
            prompt = prompt[len(prompt) - len(self.prompts[told.prompt]) :]
        return (*prompt, *(() if token is None else (token,)))

    def _finish(self, piece: Piece, told: Told) -> None:
        choice = self.choices[piece.index]
        if self.body.echo and not choice.opened:
            piece.text = self.echoes[told.prompt] + piece.text
        if self.body.return_token_ids and not choice.opened:
            piece.prompt_ids = tuple(self.prompts[told.prompt])
        choice.opened = True

    def _head(self, *, stream: bool) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
        }

    def _opening(self, index: int) -> list[dict[str, Any]]:
        return []

    def _chunk(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece)

    def _choice(self, piece: Piece) -> dict[str, Any]:
        made: dict[str, Any] = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        if self.body.logprobs is not None:
            made["logprobs"] = completion_logprobs(
                self.tokenizer, piece, self.body.logprobs, ids=self.body.return_token_ids
            )
        if self.body.return_token_ids:
            made["token_ids"] = [token.token_id for token in piece.tokens]
            if piece.prompt_ids:
                made["prompt_token_ids"] = list(piece.prompt_ids)
        return made


class ChatReply(Reply):
    """The answer to POST /v1/chat/completions."""

    body: ChatBody

    @property
    def _tells_tokens(self) -> bool:
        return self.body.logprobs or self.body.return_token_ids

    def _told_tokens(self, told: Told) -> tuple[TokenInfo, ...]:
        token = told.event.token
        if token is None or token.token_id in self.model.template.stop_ids:
            return ()  # the end of the turn is no part of what was said
        return (token,)

    def _finish(self, piece: Piece, told: Told) -> None:
        if not self.model.template.special and not self.choices[piece.index].said:
            piece.text = piece.text.lstrip()  # "Assistant: Hi": the blank belongs to the label

    def _head(self, *, stream: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}

    def _opening(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": None}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def _chunk(self, piece: Piece) -> dict[str, Any]:
        delta = {} if piece.finish_reason is not None else {"content": piece.text}
        return {"index": piece.index, "delta": delta, **self._about(piece)}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.index, "message": message, **self._about(piece)}

    def _about(self, piece: Piece) -> dict[str, Any]:
        about: dict[str, Any] = {"logprobs": None, "finish_reason": piece.finish_reason}
        ids = self.body.return_token_ids
        if self.body.logprobs and piece.tokens:
            entries = [chat_entry(self.tokenizer, token, ids=ids) for token in piece.tokens]
            about["logprobs"] = {"content": entries, "refusal": None}
        if ids:
            about["token_ids"] = [token.token_id for token in piece.tokens]
        return about


def completion_logprobs(
    tokenizer: Tokenizer, piece: Piece, alternatives: int, *, ids: bool
) -> dict[str, Any]:
    """The `logprobs` of a completion's choice.

    Args:
        tokenizer: Names the tokens.
        piece: The tokens and where they are.
        alternatives: How many were asked for; the chosen token is among them, too, as one more if need be.
        ids: Whether to add the ids.
    """
    top: list[dict[str, float] | None] = []
    for token in piece.tokens:
        if token.logprob is None:
            top.append(None)
            continue
        found: dict[str, float] = {}
        for token_id, logprob in (*token.alternatives, (token.token_id, token.logprob)):
            found.setdefault(token_name(tokenizer, token_id), finite(logprob))
        top.append(found)
    made: dict[str, Any] = {
        "tokens": [token_name(tokenizer, token.token_id) for token in piece.tokens],
        "token_logprobs": [None if t.logprob is None else finite(t.logprob) for t in piece.tokens],
        "top_logprobs": top if alternatives else None,
        "text_offset": list(piece.offsets),
    }
    if ids:
        made["token_ids"] = [token.token_id for token in piece.tokens]
        made["top_token_ids"] = [[id for id, _ in token.alternatives] for token in piece.tokens]
    return made


def chat_entry(tokenizer: Tokenizer, token: TokenInfo, *, ids: bool) -> Mapping[str, Any]:
    """A token of a conversation's `logprobs`."""
    made = _entry(tokenizer, token.token_id, token.logprob or 0.0, ids=ids)
    made["top_logprobs"] = [_entry(tokenizer, id, logprob, ids=ids) for id, logprob in token.alternatives]
    return made


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of a token by itself: half a character is "bytes:" and its bytes."""
    data = token_bytes(tokenizer, token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes of a token; none where the model's table has more rows than the tokenizer has tokens."""
    try:
        return tokenizer.token_bytes(token_id)
    except ValueError:
        return b""


def finite(logprob: float) -> float:
    """A number that JSON has.

    Raises:
        ApiError: It is none at all.
    """
    if math.isnan(logprob):
        raise ApiError(500, "the model's logits are no numbers.", code="generation_error")
    return max(logprob, LEAST_LOGPROB)


def names(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token by itself."""
    return [token_name(tokenizer, token_id) for token_id in ids]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float, *, ids: bool) -> dict[str, Any]:
    data = token_bytes(tokenizer, token_id)
    made = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": finite(logprob)}
    return {**made, "token_id": token_id} if ids else made
