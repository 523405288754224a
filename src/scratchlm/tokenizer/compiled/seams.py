r"""Where a long piece may be cut because no merge reaches over: tokens of the vocabulary -> seams of a piece.

    piece     c1 c2 | c3 c4 c5 | c6      a seam, where no token has both the bytes before and behind inside
    context   .. l L | R r ..        a token over the place holds L R alone, L R r, l L R, or l L R r

A merge makes a token. If no token that is made by a merge has the bytes around a place inside it, nothing is
ever merged over the place, and both sides can be encoded by themselves. Chinese or Thai pieces are sentences,
all different; cut at seams they become words that come back and are found in the cache (mean length with
GPT-2's tokens 1.5 bytes, with o200k's 4 to 5 for Chinese and Japanese).

`kinds` has for each two bytes which of the four contexts any token has; the contexts with three or four bytes
are bits of a hash table without collision handling: two that fall together can only hide a seam.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64

from scratchlm.tokenizer.compiled.uncounted import uncounted_part
from scratchlm.tokenizer.compiled.vector import NONE, ONE, load

_ALONE, _RIGHT, _LEFT, _BOTH = 1, 2, 4, 8
_CONTEXT_BITS = 21
"""256 KB: o200k's 150,000 contexts set 7 % of the bits."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_KIND_SHIFT, _HASH_SHIFT, _WORD_SHIFT = np.uint64(32), np.uint64(64 - _CONTEXT_BITS), np.uint64(6)
_BIT_MASK = np.uint64(63)


class Seams(NamedTuple):
    """What `next_seam` looks up."""

    kinds: UInt8[np.ndarray, "65536"]
    contexts: UInt64[np.ndarray, " words"]


def find_contexts(tokens: Iterable[bytes]) -> Seams:
    """Note the contexts of every place inside a token."""
    tokens = [token for token in tokens if len(token) > 1]
    kinds = np.zeros(1 << 16, np.uint8)
    contexts = np.zeros(1 << (_CONTEXT_BITS - 6), np.uint64)
    joined = np.frombuffer(bytes(2) + b"".join(tokens) + bytes(2), np.uint8).astype(np.uint64)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    starts = np.cumsum(lengths) - lengths + 2
    number = np.repeat(np.arange(len(tokens)), lengths)
    places = np.arange(2, 2 + len(number))
    before, behind = places - starts[number], (starts + lengths)[number] - places
    inside = before > 0
    places, before, behind = places[inside], before[inside], behind[inside]
    kind = np.where(before > 1, _LEFT, _ALONE) * np.where(behind > 1, _RIGHT, _ALONE)
    pair = (joined[places - 1] << np.uint64(8)) | joined[places]
    np.bitwise_or.at(kinds, pair.astype(np.int64), kind.astype(np.uint8))
    left = np.where(before > 1, joined[places - 2], NONE)
    right = np.where(behind > 1, joined[places + 1], NONE)
    key = (kind.astype(np.uint64) << _KIND_SHIFT) | (left << np.uint64(24)) | (pair << np.uint64(8)) | right
    hashed = (key * _GOLDEN) >> _HASH_SHIFT
    np.bitwise_or.at(contexts, (hashed >> _WORD_SHIFT).astype(np.int64), ONE << (hashed & _BIT_MASK))
    return Seams(kinds, contexts)


def no_seams() -> Seams:
    """A table in which every place may be merged over."""
    return Seams(np.full(1 << 16, _ALONE, np.uint8), np.zeros(1 << (_CONTEXT_BITS - 6), np.uint64))


@uncounted_part
def _known(contexts, kind, left, pair, right):
    key = (np.uint64(kind) << _KIND_SHIFT) | np.uint64((left << 24) | (pair << 8) | right)
    hashed = (key * _GOLDEN) >> _HASH_SHIFT
    return (load(contexts, np.int64(hashed >> _WORD_SHIFT)) >> (hashed & _BIT_MASK)) & ONE != NONE


@uncounted_part
def next_seam(text, start, end, kinds, contexts):
    """The first seam between two characters of text[start:end] that is known to be one, or `end`."""
    for place in range(start + 1, end):
        first = np.int64(load(text, np.int64(place)))
        if first & 0xC0 == 0x80:
            continue
        pair = (np.int64(load(text, np.int64(place - 1))) << 8) | first
        kind = load(kinds, pair)
        if kind & _ALONE:
            continue
        left = np.int64(load(text, np.int64(place - 2))) if place - 2 >= start else np.int64(0)
        right = np.int64(load(text, np.int64(place + 1))) if place + 1 < end else np.int64(0)
        if kind & _RIGHT and place + 1 < end and _known(contexts, _RIGHT, np.int64(0), pair, right):
            continue
        if kind & _LEFT and place - 2 >= start and _known(contexts, _LEFT, left, pair, np.int64(0)):
            continue
        within = place - 2 >= start and place + 1 < end
        if kind & _BOTH and within and _known(contexts, _BOTH, left, pair, right):
            continue
        return np.int64(place)
    return np.int64(end)
