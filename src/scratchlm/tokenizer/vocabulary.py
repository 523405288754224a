r"""What the ids stand for: ids -> bytes and text, at once, with offsets, in batches, one at a time.

    {0: b"<|endoftext|>", 1: b"a", 2: b"\xc3", 3: b"\xa9", ...}    [1, 2, 3]  ->  "a\u00e9"

A token may be a part of a character, so text is made of all bytes together: what is no UTF-8 then becomes
U+FFFD. This is the half of a tokenizer that knows nothing of how text becomes ids.
"""

import functools
from abc import ABC
from collections.abc import Iterable
from typing import Any

import numpy as np

from scratchlm.tokenizer.batches import check_threads, map_in_order
from scratchlm.tokenizer.compiled.decode import Decoder
from scratchlm.tokenizer.offsets import DecodedWithOffsets, TokenLengths, token_lengths
from scratchlm.tokenizer.streaming import StreamDecoder, utf8_of

Ids = Iterable[Any]
"""Whole numbers: a list, an array, a tensor."""


class Vocabulary(ABC):
    """Ids from 0 to vocab_size - 1 and what each of them stands for."""

    special_tokens: dict[str, int]
    """Text of each special token -> its id."""

    _token_bytes: dict[int, bytes]
    """What each id stands for."""

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that a model's embedding needs."""
        return max(self._token_bytes) + 1

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode_single_token(self, token: str | bytes) -> int:
        """The id of the token with exactly this text or these bytes, special tokens included.

        Raises:
            ValueError: There is no such token.
        """
        data = token if isinstance(token, bytes) else utf8_of(token)
        if data not in self._ids_by_bytes:
            raise ValueError(f"{token!r} is no single token of this tokenizer; encode it to see its parts.")
        return self._ids_by_bytes[data]

    @functools.cached_property
    def _ids_by_bytes(self) -> dict[bytes, int]:
        return {token: id for id, token in self._token_bytes.items()}

    @functools.cached_property
    def _lengths(self) -> TokenLengths:
        return token_lengths(self._token_bytes)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that `id` stands for.

        Raises:
            ValueError: There is no such id.
        """
        try:
            return self._token_bytes[id]
        except KeyError:
            raise self._unknown(id) from None

    def _unknown(self, id: object) -> ValueError:
        return ValueError(f"id {id} is not in this tokenizer's vocabulary (0 to {self.vocab_size - 1}).")

    def decode_tokens_bytes(self, ids: Ids) -> list[bytes]:
        """The bytes of each id.

        Raises:
            ValueError: One of them is no id of this tokenizer.
        """
        return list(map(self.token_bytes, _plain(ids)))

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for, joined.

        Raises:
            ValueError: One of them is no id of this tokenizer.
        """
        return self._decoder.to_bytes(_list_or_array(ids))

    def decode(self, ids: Ids, *, errors: str = "replace") -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, or raise with errors="strict"."""
        return self._decoder.to_text(_list_or_array(ids), errors)

    def decode_batch(
        self, batch: Iterable[Ids], *, num_threads: int = 1, errors: str = "replace"
    ) -> list[str]:
        """`decode` of every list of ids, in order."""
        decode = functools.partial(self.decode, errors=errors)
        if check_threads(num_threads) == 1:
            return [decode(ids) for ids in batch]
        return list(map_in_order(decode, batch, num_threads=num_threads, num_waiting=64 * num_threads))

    def decode_with_offsets(self, ids: Ids) -> DecodedWithOffsets:
        """The text of `ids` and the place of each token in it.

        Raises:
            ValueError: One is no id of this tokenizer, or they are no UTF-8 together.
        """
        listed = _list_or_array(ids)
        text = self.decode(listed, errors="strict")
        return DecodedWithOffsets(text, *self._lengths.offsets(np.asarray(listed, np.int64)))

    @functools.cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._token_bytes)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes ids one at a time and never shows half a character."""
        return StreamDecoder(self.token_bytes)


def _plain(ids: Ids) -> Iterable[int]:
    """Python's own whole numbers in place of an array's or a tensor's."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _list_or_array(ids: Ids) -> list[int] | np.ndarray:
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iub"):
            raise ValueError(
                f"an array of {ids.dtype} with shape {ids.shape}: ids are whole numbers in one dimension; "
                "several texts at once: decode_batch."
            )
        return ids
    return ids if isinstance(ids, list) else list(_plain(ids))
