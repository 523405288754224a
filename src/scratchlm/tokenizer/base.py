"""What every tokenizer offers: text -> ids with special tokens, ids -> text, at once, in batches, streaming.

A tokenizer supplies `_encode_array` (well-formed text -> ids), the bytes of each id and `_stable_prefix`;
everything else is here once. Special tokens follow tiktoken's rule: the text of a special token is an error
unless the caller allows it (then it becomes one id) or says that it is plain text
(`disallowed_special=()`), so that text from a user never turns into a control token unnoticed. Where
several match at one place, the longest wins.
"""

import contextlib
import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from scratchlm.tokenizer.streaming import (
    StreamDecoder,
    cut_specials,
    cut_stream,
    repair_surrogates,
    specials_pattern,
)

END_OF_TEXT = "<|endoftext|>"
"""The special token between documents."""

Specials = Collection[str] | Literal["all"]

Ids = Iterable[Any]
"""Whole numbers: a list, an array, a tensor."""


class Tokenizer(ABC):
    """Text <-> ids. Ids run from 0 to vocab_size - 1."""

    special_tokens: dict[str, int]
    """Text of each special token -> its id."""

    _token_bytes: dict[int, bytes]
    """What each id stands for."""

    @abstractmethod
    def _encode_array(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of `text`, which has no lone surrogates; special tokens in it are plain text."""

    @abstractmethod
    def _stable_prefix(self, text: str) -> int:
        """Number of leading characters whose ids stay the same whatever follows `text`."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Everything that defines this tokenizer, as JSON values; "type" is its name in the family."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load what `save` wrote.

        Raises:
            ValueError: The file is missing or damaged; the message names it.
        """

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that a model's embedding needs."""
        return max(self._token_bytes) + 1

    @property
    def end_of_text_id(self) -> int:
        """The id that separates documents.

        Raises:
            ValueError: This tokenizer has no such token.
        """
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(
                f"this tokenizer has no {END_OF_TEXT!r}; its special tokens are {list(self.special_tokens)}. "
                f"Add {END_OF_TEXT!r} to special_tokens."
            )
        return self.special_tokens[END_OF_TEXT]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the canonical JSON: two tokenizers with equal fingerprints give equal ids."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def save(self, path: Path) -> None:
        """Write the one-file JSON, atomically."""
        from scratchlm.tokenizer.formats import write_saved

        write_saved(Path(path), self._content())

    # text -> ids

    def encode(
        self, text: str, *, allowed_special: Specials = (), disallowed_special: Specials = "all"
    ) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: Any string; lone surrogates count as U+FFFD.
            allowed_special: Special tokens that become their id where they stand in the text.
            disallowed_special: Special tokens that are an error; those in neither collection are plain text.

        Raises:
            ValueError: The text holds a disallowed special token, or one of the names is no special token.
        """
        allowed, disallowed = self._choose(allowed_special, disallowed_special)
        stream = cut_specials(repair_surrogates(text), specials_pattern({*allowed, *disallowed}))
        return [id for ids in self._encode_stream(stream, disallowed) for id in ids]

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special tokens are plain text."""
        return self._encode_array(repair_surrogates(text)).tolist()

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Like `encode_ordinary`, as uint16, or uint32 when the vocabulary has more than 65,536 ids."""
        return self._encode_array(repair_surrogates(text)).astype(self.dtype)

    def encode_batch(self, texts: Iterable[str], *, num_threads: int = 1) -> list[np.ndarray]:
        """`encode_to_numpy` of every text, in order; the result does not depend on `num_threads`."""
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads}: must be at least 1.")
        if num_threads == 1:
            return [self.encode_to_numpy(text) for text in texts]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(self.encode_to_numpy, texts))

    def encode_iterable(
        self,
        chunks: Iterable[str],
        *,
        allowed_special: Specials = (),
        disallowed_special: Specials = "all",
    ) -> Iterator[int]:
        """Yield the ids of the chunks' concatenation, wherever its parts were cut.

        Holds about 10,000 characters, a chunk and the longest piece in memory, not the text.

        Raises:
            ValueError: As `encode`, when the offending place is reached.
        """
        allowed, disallowed = self._choose(allowed_special, disallowed_special)
        stream = cut_stream(
            chunks, specials=specials_pattern({*allowed, *disallowed}), stable_prefix=self._stable_prefix
        )
        for ids in self._encode_stream(stream, disallowed):
            yield from ids

    def _encode_stream(
        self, stream: Iterable[tuple[str, str | None]], disallowed: Collection[str]
    ) -> Iterator[list[int]]:
        for text, special in stream:
            if special in disallowed:
                raise ValueError(
                    f"the text contains the special token {special!r}, which is not allowed here. Pass "
                    f"allowed_special={{{special!r}}} to encode it as one id, or disallowed_special=() "
                    "to encode it as plain text."
                )
            yield self._encode_array(text).tolist()
            if special is not None:
                yield [self.special_tokens[special]]

    def _choose(self, allowed_special: Specials, disallowed_special: Specials) -> tuple[set[str], set[str]]:
        known = set(self.special_tokens)
        allowed = known if allowed_special == "all" else set(allowed_special)
        disallowed = known - allowed if disallowed_special == "all" else set(disallowed_special) - allowed
        for name in sorted((allowed | disallowed) - known):
            raise ValueError(f"{name!r} is no special token of this tokenizer; it has {sorted(known)}.")
        return allowed, disallowed

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    # ids -> text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that `id` stands for.

        Raises:
            ValueError: There is no such id.
        """
        return self.decode_bytes([id])

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for, joined.

        Raises:
            ValueError: One of them is no id of this tokenizer.
        """
        plain = ids.tolist() if hasattr(ids, "tolist") else ids
        try:
            return b"".join(map(self._token_bytes.__getitem__, plain))
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is not in this tokenizer's vocabulary (0 to {self.vocab_size - 1})."
            ) from None

    def decode(self, ids: Ids, *, errors: str = "replace") -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, or raise with errors="strict"."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes ids one at a time and never shows half a character."""
        return StreamDecoder(self.token_bytes)


def check_specials(special_tokens: Iterable[str]) -> list[str]:
    """Return the distinct special tokens in their order.

    Raises:
        ValueError: One is empty or not valid text.
    """
    names = list(dict.fromkeys(special_tokens))
    for name in names:
        with contextlib.suppress(UnicodeEncodeError):
            if name and name.encode("utf-8"):
                continue
        raise ValueError(f"special token {name!r}: must be valid text of at least one character.")
    return names


def check_name(name: str, known: Collection[str], role: str) -> str:
    """Return `name` if it is known.

    Raises:
        ValueError: It is not; the message lists those that are.
    """
    if name not in known:
        raise ValueError(f"{role} {name!r} is not known; choose one of {', '.join(known)}.")
    return name
