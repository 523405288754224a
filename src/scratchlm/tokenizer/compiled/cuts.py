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
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import LETTERS, NUMBER, OTHER, SPACE
from scratchlm.tokenizer.compiled.vector import NONE, load, mask_below, mask_equal

_NEWLINE, _BLANK, _APOSTROPHE, _SLASH = 10, 32, 39, 47
_BLOCK = 64
_LONGEST = 4  # bytes of a character
_1, _2, _3, _61, _62, _63 = (np.uint64(number) for number in (1, 2, 3, 61, 62, 63))


@uncounted_part
def _is_cut(text, first, i, end, classes):
    """May the text be cut before text[i]? first < i < end, and text[i] starts a character."""
    after, length = class_of(text, i, end, classes)
    if length == 1 and load(text, i) >= 0x80 and i + _LONGEST > end:
        return False  # more bytes may make it another character
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


@uncounted_loop
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


@uncounted_loop
def first_cut(text, first, stop, end, classes):
    """The smallest safe cut behind `first` and not behind `stop`; -1 where there is none."""
    for i in range(first + 1, min(stop, end - 1) + 1):
        if character_start(text, first, i, end) == i and _is_cut(text, first, i, end, classes):
            return np.int64(i)
    return np.int64(-1)


@uncounted_part
def _ill_formed(text, i, expected):
    """Is something in the 64 bytes at text[i] ill-formed? `expected`: continuation bytes as of before.

    Every byte above ASCII is a lead byte or a continuation byte, these where leads ask for them; then four
    leads allow a part of the second bytes only. Returns the answer and what the next block may expect.
    """
    continuation = mask_below(text, i, 0x80, 0x40)
    two, three = mask_below(text, i, 0xC2, 30), mask_below(text, i, 0xE0, 16)
    four = mask_below(text, i, 0xF0, 5)
    longer = three | four
    leads = two | longer
    wrong = mask_below(text, i, 0x80, 0x80) ^ (continuation | leads)
    wrong |= continuation ^ (expected | (leads << _1) | (longer << _2) | (four << _3))
    if longer != NONE:
        wrong |= mask_equal(text, i, 0xE0) & mask_below(text, i + 1, 0x80, 0x20)  # overlong
        wrong |= mask_equal(text, i, 0xED) & mask_below(text, i + 1, 0xA0, 0x20)  # surrogates
        wrong |= mask_equal(text, i, 0xF0) & mask_below(text, i + 1, 0x80, 0x10)  # overlong
        wrong |= mask_equal(text, i, 0xF4) & mask_below(text, i + 1, 0x90, 0x30)  # above U+10FFFF
    return wrong != NONE, (leads >> _63) | (longer >> _62) | (four >> _61)


@uncounted_loop
def valid_utf8(text, first, end):
    """The position of the first byte in text[first:end] that is part of no well-formed character, or -1.

    Whole blocks are only asked whether something is wrong; where it is, and the last block, bytewise.
    """
    i, expected = np.int64(first), NONE
    while i + _BLOCK < end:  # the byte behind the block is read as well
        if expected != NONE or mask_below(text, i, 0x80, 0x80) != NONE:
            wrong, expected = _ill_formed(text, i, expected)
            if wrong:
                break
        i += _BLOCK
    # The blocks before are well-formed but for the last character, which may start up to 3 bytes back.
    if i < end:
        i = character_start(text, first, max(first, i - 3), end)
    while i < end:
        code, length = code_point_at(text, i, end)
        if code < 0:
            return i
        i += length
    return np.int64(-1)
