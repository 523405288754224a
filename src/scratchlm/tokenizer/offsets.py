"""Ids -> where each token stands in the text, in bytes and in characters.

    "h\u00e9!" as tokens "h", 0xC3, 0xA9, "!"      byte_offsets       0 1 2 3 4
                                              character_offsets  0 1 1 2 3

The tokens of a text that is kept byte for byte are its bytes cut up, so its offsets are sums of lengths: no
search, no text needed. A character begins where a byte of UTF-8 is no continuation byte (10xxxxxx); a token
that begins inside a character belongs to that character, as in tiktoken's decode_with_offsets.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt


class Offsets(NamedTuple):
    """Where tokens stand: token i from offset i to offset i + 1; the last entry is where the text ends."""

    bytes: Int64[np.ndarray, " tokens_and_one"]
    characters: Int64[np.ndarray, " tokens_and_one"]


class EncodedWithOffsets(NamedTuple):
    """Ids of a text and where they stand: token i in text.encode()[byte_offsets[i] : byte_offsets[i + 1]].

    character_offsets[i] is the character that holds the token's first byte.
    """

    ids: UInt[np.ndarray, " tokens"]
    byte_offsets: Int64[np.ndarray, " tokens_and_one"]
    character_offsets: Int64[np.ndarray, " tokens_and_one"]


class DecodedWithOffsets(NamedTuple):
    """The text of ids and where each of them stands in it, as in `EncodedWithOffsets`."""

    text: str
    byte_offsets: Int64[np.ndarray, " tokens_and_one"]
    character_offsets: Int64[np.ndarray, " tokens_and_one"]


class Truncated(NamedTuple):
    """The first ids of a text, and how many of its characters they cover."""

    ids: UInt[np.ndarray, " tokens"]
    num_characters: int


class TokenLengths(NamedTuple):
    """For each id: bytes, characters that begin in it, and whether it begins inside a character."""

    num_bytes: Int64[np.ndarray, " vocabulary"]
    num_characters: Int64[np.ndarray, " vocabulary"]
    begins_inside: Bool[np.ndarray, " vocabulary"]

    def offsets(self, ids: Integer[np.ndarray, " tokens"]) -> Offsets:
        """Where tokens stand; every id must exist."""
        starts = _sums(self.num_bytes[ids])
        characters = _sums(self.num_characters[ids])
        characters[:-1] -= self.begins_inside[ids]
        return Offsets(starts, characters)

    def whole_characters(self, ids: Integer[np.ndarray, " tokens"], num_tokens: int) -> int:
        """The most ids, at most `num_tokens`, behind which no character of the text goes on."""
        while 0 < num_tokens < len(ids) and self.begins_inside[ids[num_tokens]]:
            num_tokens -= 1
        return min(num_tokens, len(ids))


def token_lengths(token_bytes: Mapping[int, bytes]) -> TokenLengths:
    """Measure every token; ids that do not exist count as empty."""
    size = max(token_bytes) + 1
    tokens = [token_bytes.get(id, b"") for id in range(size)]
    num_bytes = np.fromiter(map(len, tokens), np.int64, size)
    ends = _sums(num_bytes)
    is_first_byte = (np.frombuffer(b"".join(tokens), np.uint8) & 0xC0) != 0x80
    begun = _sums(is_first_byte)
    begins_inside = np.zeros(size, bool)
    begins_inside[num_bytes > 0] = ~is_first_byte[ends[:-1][num_bytes > 0]]
    return TokenLengths(num_bytes, begun[ends[1:]] - begun[ends[:-1]], begins_inside)


def _sums(values: np.ndarray) -> Int64[np.ndarray, " sums"]:
    """0, values[0], values[0] + values[1], ..."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
