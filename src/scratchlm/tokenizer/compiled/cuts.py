r"""Where a text may be cut, whatever pattern splits it; and is it UTF-8?

    ... the cat|, who|\n|Then| came ...        | = a safe cut

A safe cut is a place where a piece starts whatever stands further left or right of it: between a letter or
number and a blank with a letter behind it; between a letter or number and a character that is neither letter,
number, mark, White_Space nor apostrophe ("don't" is one piece in o200k); between a line feed and something
that is neither White_Space nor "/" (o200k lets line feeds and slashes follow punctuation). The character
before the cut ends its piece there, so the left side is complete as well.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.characters import character_start, class_of, code_point_at
from scratchlm.tokenizer.compiled.unicode_classes import LETTERS, NUMBER, OTHER, SPACE
from scratchlm.tokenizer.compiled.vector import compiled_loop, inlined, load, mask_below

_NEWLINE, _BLANK, _APOSTROPHE, _SLASH = 10, 32, 39, 47
_BLOCK = 64


@inlined
def _is_cut(text, first, i, end, classes):
    """May the text be cut before text[i]? first < i < end, and text[i] starts a character."""
    after, _ = class_of(text, i, end, classes)
    if load(text, i - 1) == _NEWLINE:
        return after != SPACE and load(text, i) != _SLASH
    before, _ = class_of(text, character_start(text, first, i - 1, end), end, classes)
    if before != NUMBER and before < LETTERS:
        return False
    if load(text, i) == _BLANK:
        if i + 1 >= end:
            return False
        following, _ = class_of(text, i + 1, end, classes)
        return following >= LETTERS
    return after == OTHER and load(text, i) != _APOSTROPHE


@compiled_loop
def last_cut(text, first, stop, end, classes):
    """The greatest safe cut behind `first` and not behind `stop`, as a position; -1 where there is none.

    Args:
        text: uint8, with padding.
        first: Where the known text begins.
        stop: The last place to look at, at most `end` - 1.
        end: Where the known text ends.
        classes: uint8, the class of each code point.
    """
    for i in range(min(stop, end - 1), first, -1):
        if character_start(text, first, i, end) == i and _is_cut(text, first, i, end, classes):
            return np.int64(i)
    return np.int64(-1)


@compiled_loop
def first_cut(text, first, stop, end, classes):
    """The smallest safe cut behind `first` and not behind `stop`; -1 where there is none."""
    for i in range(first + 1, min(stop, end - 1) + 1):
        if character_start(text, first, i, end) == i and _is_cut(text, first, i, end, classes):
            return np.int64(i)
    return np.int64(-1)


@compiled_loop
def valid_utf8(text, first, end):
    """The position of the first byte in text[first:end] that is part of no well-formed character, or -1."""
    i = np.int64(first)
    while i < end:
        if i + _BLOCK <= end and mask_below(text, i, 128, 128) == np.uint64(0):
            i += _BLOCK
            continue
        stop = min(i + _BLOCK, np.int64(end))
        while i < stop:
            code, length = code_point_at(text, i, end)
            if code < 0:
                return i
            i += length
    return np.int64(-1)
