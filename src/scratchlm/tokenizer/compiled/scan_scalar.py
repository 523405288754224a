r"""Bytes -> starts of pieces, one character at a time, for every split pattern: the plain version.

    text      it's 2048!\n\n  ok
    gpt2      it|'s| 2048|!|\n\n | ok
    cl100k    it|'s| |204|8|!\n\n| | ok

A split pattern is a list of alternatives, tried in order wherever a piece starts. Each alternative is a few
runs of characters of one class, so the expression becomes a chain of `if`s and runs: what may stand first
decides the alternative, then the piece goes on while the class fits. Three places need care. `\s+(?!\S)`
gives the last blank of a run back, which then opens the next word; at the end of the text it keeps it.
`\s*[\r\n]+` ends at the last newline of a run of blanks. In o200k capitals may have to give back what small
letters need: see `word_end_o200k`. No run is read more than twice, so the time is linear in the text.

Sources of the patterns: see `pretokenize`, whose regular expressions are the oracle of this file.
"""

# ruff: noqa: ANN001, ANN201, D415 - Numba infers the types, `scan_scalar` names them; expressions end as they end

import numpy as np

from scratchlm.tokenizer.compiled.characters import class_at, class_of
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import (
    CASELESS,
    LETTERS,
    LOWER,
    MARK,
    NUMBER,
    OTHER,
    SPACE,
    UPPER,
)
from scratchlm.tokenizer.compiled.vector import load, store

GPT2, CL100K, QWEN2, O200K = range(4)
"""Codes of the patterns; llama3 splits as cl100k."""

_NEWLINE, _RETURN, _BLANK, _APOSTROPHE, _SLASH = 10, 13, 32, 39, 47
_S, _T, _M, _D, _L, _V, _R, _E = (ord(letter) for letter in "stmdlvre")
_LONG_S = (0xC5, 0xBF)  # U+017F, the other letter that is "s" when case is ignored

# Sets of classes, bit k for class k. Typed: Numba would compile a function anew for each Python constant.
_LETTERS = np.int64(1 << UPPER | 1 << LOWER | 1 << CASELESS)
_NUMBERS = np.int64(1 << NUMBER)
_SIGNS = np.int64(1 << OTHER | 1 << MARK)
_CAPITALS = np.int64(1 << UPPER | 1 << CASELESS | 1 << MARK)
_SMALL = np.int64(1 << LOWER | 1 << CASELESS | 1 << MARK)

_EXACT_CASE, _ANY_CASE = np.int64(0), np.int64(0x20)  # what is set in a letter before it is compared
_NO_NEWLINE, _TO_NEWLINE = np.int64(0), np.int64(1)


@uncounted_loop
def run_end(text, i, end, classes, wanted, limit):
    """The place behind the run of at most `limit` characters from i on whose class is in the set `wanted`."""
    while i < end and limit > 0:
        kind, length = class_at(text, i, end, classes)
        if not wanted >> kind & 1:
            break
        i += length
        limit -= 1
    return i


@uncounted_part
def is_newline(text, i):
    """Is text[i] a line feed or a carriage return?"""
    return load(text, i) == _NEWLINE or load(text, i) == _RETURN


@uncounted_loop
def contraction_end(text, i, end, case_mask):
    """'s|'t|'re|'ve|'m|'ll|'d: the place behind it, or i; case_mask: 0x20 ignores the case, 0 does not."""
    if i + 1 >= end or load(text, i) != _APOSTROPHE:
        return i
    first = np.int64(load(text, i + 1)) | case_mask
    if first in (_S, _T, _M, _D):
        return i + 2
    if i + 2 >= end:
        return i
    second = np.int64(load(text, i + 2))
    if case_mask and load(text, i + 1) == _LONG_S[0] and second == _LONG_S[1]:
        return i + 3
    second |= case_mask
    if (first == _L and second == _L) or (first in (_V, _R) and second == _E):
        return i + 3
    return i


@uncounted_loop
def blanks_end(text, i, end, classes, to_newline):
    r"""\s*[\r\n]+ if to_newline, then \s+(?!\S), then \s+: text[i] is White_Space."""
    last, newline, place = i, np.int64(-1), i
    while place < end:
        kind, length = class_at(text, place, end, classes)
        if kind != SPACE:
            break
        last, place = place, place + length
        if is_newline(text, last):
            newline = place
    if to_newline and newline >= 0:
        return newline
    return place if place == end or last == i else last


@uncounted_part
def piece_end_gpt2(text, i, end, classes):
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    place = contraction_end(text, i, end, _EXACT_CASE)
    if place > i:
        return place
    if load(text, i) == _BLANK and i + 1 < end:
        place = i + 1
    kind, _ = class_of(text, place, end, classes)
    if kind == SPACE:
        return blanks_end(text, i, end, classes, _NO_NEWLINE)
    wanted = _LETTERS if kind >= LETTERS else _NUMBERS if kind == NUMBER else _SIGNS
    return run_end(text, place, end, classes, wanted, end)


@uncounted_part
def word_start(text, i, end, classes):
    r"""[^\r\n\p{L}\p{N}]? : the place behind this character, or i."""
    kind, length = class_of(text, i, end, classes)
    return i if kind >= LETTERS or kind == NUMBER or is_newline(text, i) else i + length


@uncounted_part
def rest_end(text, i, end, classes, digits, slash):
    r"""\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ : behind the first that fits.

    With slash, [\r\n/]* follows the signs. No alternative for words fits at i.
    """
    place = i
    kind, _ = class_of(text, i, end, classes)
    if kind == NUMBER:
        return run_end(text, i, end, classes, _NUMBERS, digits)
    if load(text, i) == _BLANK and i + 1 < end:
        place = i + 1
        kind, _ = class_of(text, place, end, classes)
    if not _SIGNS >> kind & 1:
        return blanks_end(text, i, end, classes, _TO_NEWLINE)
    place = run_end(text, place, end, classes, _SIGNS, end)
    while place < end and (is_newline(text, place) or (slash and load(text, place) == _SLASH)):
        place += 1
    return place


@uncounted_part
def word_end_cl100k(text, i, end, classes):
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+ : the place behind, or i."""
    place = contraction_end(text, i, end, _ANY_CASE)
    if place > i:
        return place
    start = word_start(text, i, end, classes)
    place = run_end(text, start, end, classes, _LETTERS, end)
    return place if place > start else i


@uncounted_loop
def word_end_o200k(text, i, end, classes):
    r"""P?C*S+|P?C+S* with P = [^\r\n\p{L}\p{N}], C capitals and S small letters: the place behind, or i.

    Caseless letters and marks are in C and in S. Where C* takes everything (no small letter follows), S+
    needs one character back: the last that is in S too. What is behind it is capitals only, the next piece.
    A mark in P's place may stand for S+ itself. Only capitals: the second alternative.
    """
    start = word_start(text, i, end, classes)
    place, both_end = start, np.int64(-1)
    while place < end:
        kind, length = class_at(text, place, end, classes)
        if kind == LOWER:
            return run_end(text, place, end, classes, _SMALL, end)
        if not _CAPITALS >> kind & 1:
            break
        place += length
        if kind != UPPER:
            both_end = place
    if both_end >= 0:
        return both_end
    kind, length = class_of(text, i, end, classes)
    if kind == MARK:
        return i + length
    return place if place > start else i


@uncounted_part
def piece_end_cl100k(text, i, end, classes, pattern):
    """A word, else the alternatives that cl100k, qwen2 and o200k share; o200k's words end in contractions."""
    if pattern == O200K:
        place = word_end_o200k(text, i, end, classes)
        if place > i:
            return contraction_end(text, place, end, _ANY_CASE)
    else:
        place = word_end_cl100k(text, i, end, classes)
        if place > i:
            return place
    return rest_end(text, i, end, classes, 1 if pattern == QWEN2 else 3, pattern == O200K)


@uncounted_loop
def scan_scalar(text, firsts, stops, ends, classes, starts, bounds, pattern):
    """Write the start of every piece of every segment, and behind each segment's its stop.

    Segment i is text[firsts[i]:stops[i]]; text[stops[i]:ends[i]] is what follows it, where that is known
    and the segment stops at a safe cut. Its pieces are text[starts[j]:starts[j + 1]] for j in
    range(bounds[i], bounds[i + 1] - 1). Any bytes are legal.

    Args:
        text: uint8, with PADDING readable bytes behind the last end.
        firsts: int32, where each segment begins.
        stops: int32, where it stops.
        ends: int32, as far as its text is known; at least the stop.
        classes: `character_classes()`.
        starts: int32, receives the starts; room for the bytes of all segments + their number + 128.
        bounds: int32, receives the index in `starts` of each segment's first piece, then the total.
        pattern: GPT2, CL100K, QWEN2 or O200K.

    Returns:
        The number of starts written.
    """
    count = np.int64(0)
    for segment in range(len(firsts)):
        i, stop, end = np.int64(firsts[segment]), np.int64(stops[segment]), np.int64(ends[segment])
        store(bounds, segment, np.int32(count))
        while i < stop:
            store(starts, count, np.int32(i))
            count += 1
            if pattern == GPT2:
                i = piece_end_gpt2(text, i, end, classes)
            else:
                i = piece_end_cl100k(text, i, end, classes, pattern)
        store(starts, count, np.int32(stop))
        count += 1
    store(bounds, len(firsts), np.int32(count))
    return count
