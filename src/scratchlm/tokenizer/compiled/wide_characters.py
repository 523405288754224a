r"""The characters above ASCII in a block of 64 bytes: which bytes are letters, numbers, blanks?

    text         [C3 A9] [E4 B8 AD] [E2 80 9D]       e-acute, a Han ideograph, a quotation mark
    letters        x  x    x  x  x    .  .  .        every byte of a character has its class

Letters of large scripts and frequent signs are told from the first two or three bytes by a few compares, 64
places at once, without a look at the table of classes. A character that reaches over the block's end hands
its last bytes on (`Tail`). What is left, some signs and the smaller scripts, is decoded one by one.

Source of the claims about scripts: the table of `unicode_classes`, on which the tests check each of them.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.characters import character_start, class_of
from scratchlm.tokenizer.compiled.uncounted import uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import LETTERS, NUMBER, SPACE
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    load,
    lowest_bit,
    mask_below,
)

BLOCK = 64
_1, _2, _62, _63 = (np.uint64(number) for number in (1, 2, 62, 63))


TWO_BYTE_LETTERS = (
    (0xC3, 1, 0x80, 0x17),  # Latin letters with accents, but for the signs of multiplication
    (0xC3, 1, 0x98, 0x1F),  # and division
    (0xC3, 1, 0xB8, 0x08),
    (0xC4, 7, 0x80, 0x40),  # more Latin letters
    (0xCE, 1, 0xA3, 0x1D),  # Greek
    (0xCF, 1, 0x80, 0x10),
    (0xD0, 2, 0x80, 0x40),  # Cyrillic
    (0xD7, 1, 0x90, 0x1B),  # Hebrew
    (0xD8, 1, 0xA0, 0x20),  # Arabic
    (0xD9, 1, 0x80, 0x0B),
)
"""First lead byte and how many, first second byte and how many: all these characters are letters."""

THREE_BYTE_LETTERS = (
    (0xE3, 1, 0x81, 1, 0x81, 0x3F),  # Hiragana
    (0xE3, 1, 0x82, 1, 0x80, 0x17),
    (0xE3, 1, 0x82, 1, 0xA1, 0x1F),  # Katakana
    (0xE3, 1, 0x83, 1, 0x80, 0x3B),
    (0xE3, 1, 0x83, 1, 0xBC, 0x04),
    (0xE4, 1, 0xB8, 8, 0x80, 0x40),  # Han
    (0xE5, 5, 0x80, 0x40, 0x80, 0x40),
    (0xEA, 1, 0xB0, 0x10, 0x80, 0x40),  # Hangul
    (0xEB, 2, 0x80, 0x40, 0x80, 0x40),
    (0xED, 1, 0x80, 0x1E, 0x80, 0x40),
)
"""The same with third bytes."""

WESTERN_SIGNS = ((0xE2, 1, 0x80, 1, 0x90, 0x18),)
"""U+2010 to U+2027, dashes and quotation marks: neither letters nor numbers nor blanks."""

EASTERN_SIGNS = (
    (0xE3, 1, 0x80, 1, 0x81, 2),  # comma and full stop
    (0xE3, 1, 0x80, 1, 0x88, 0x19),  # brackets
    (0xEF, 1, 0xBC, 1, 0x81, 0x0F),  # wide ASCII
    (0xEF, 1, 0xBC, 1, 0x9A, 7),
)
"""Nor are these."""


class Tail(NamedTuple):
    """Bytes of the next block that belong to a character of this one, as masks (uint64)."""

    letters: np.uint64
    signs: np.uint64


class Wide(NamedTuple):
    """What the bytes above ASCII are, as masks (uint64); what is in none of the first three is a sign."""

    letters: np.uint64
    numbers: np.uint64
    blanks: np.uint64
    inside: np.uint64
    """Bytes of blanks but the first: no piece starts there."""
    last: np.uint64
    """First bytes of blanks with something else behind them: a piece starts there."""
    tail: Tail


@uncounted_part
def _two_bytes(text, i, table):
    """Bits of the first bytes of the characters in `table`."""
    found = NONE
    for lead, num_leads, second, num_seconds in table:
        found |= mask_below(text, i, lead, num_leads) & mask_below(text, i + 1, second, num_seconds)
    return found


@uncounted_part
def _three_bytes(text, i, table):
    """Bits of the first bytes of the characters in `table`."""
    found = NONE
    for lead, num_leads, second, num_seconds, third, num_thirds in table:
        pair = mask_below(text, i, lead, num_leads) & mask_below(text, i + 1, second, num_seconds)
        found |= pair & mask_below(text, i + 2, third, num_thirds)
    return found


@uncounted_part
def _one_by_one(text, first, base, end, rest, letters, tail, classes):
    """Decode the characters whose bytes are in `rest`; everything else is settled."""
    numbers, blanks, inside, last = NONE, NONE, NONE, NONE
    while rest != NONE:
        bit = lowest_bit(rest)
        place = base + bit
        if bit == 0:
            place = character_start(text, first, place, end)
        kind, length = class_of(text, place, end, classes)
        bits = bits_between(place - base, place - base + length)
        rest &= ~bits
        if kind >= LETTERS:
            letters |= bits
        elif kind == NUMBER:
            numbers |= bits
        elif kind == SPACE:
            blanks |= bits
            inside |= bits_between(place - base + 1, place - base + length)
            behind = place + length
            if place >= base and behind < end and not is_blank(text, behind, end, classes):
                last |= ONE << np.uint64(bit)
    return Wide(letters, numbers, blanks, inside, last, tail)


@uncounted_part
def wide_characters(text, first, base, end, wide, tail, classes):
    """Classes of the bytes above ASCII in text[base : base + 64].

    Args:
        text: uint8, with padding.
        first: Where the segment begins.
        base: Where the block begins.
        end: Where the segment's text ends.
        wide: Bits of the bytes above ASCII before `end`.
        tail: Of the block before.
        classes: uint8, the class of each code point.
    """
    second = mask_below(text, base + 1, 0x80, 0x40) & bits_between(np.int64(0), end - base - 1)
    third = mask_below(text, base + 2, 0x80, 0x40) & bits_between(np.int64(0), end - base - 2) & second
    two, three = NONE, NONE
    signs = _three_bytes(text, base, WESTERN_SIGNS) & third
    rest = wide & ~(tail.letters | tail.signs | signs | (signs << _1) | (signs << _2))
    letters = tail.letters
    if rest != NONE:
        if mask_below(text, base, 0xC3, 0x1D) != NONE:
            two = _two_bytes(text, base, TWO_BYTE_LETTERS) & second
        if mask_below(text, base, 0xE3, 0x0D) != NONE:
            three = _three_bytes(text, base, THREE_BYTE_LETTERS) & third
            signs |= _three_bytes(text, base, EASTERN_SIGNS) & third
        letters |= two | (two << _1) | three | (three << _1) | (three << _2)
        rest &= ~(letters | signs | (signs << _1) | (signs << _2))
    tail = Tail((two >> _63) | (three >> _63) | (three >> _62), (signs >> _63) | (signs >> _62))
    return _one_by_one(text, first, base, end, rest, letters, tail, classes)


@uncounted_part
def is_blank(text, i, end, classes):
    """Is the character at text[i] a blank? i < end."""
    byte = load(text, i)
    if byte < 0x80:
        return byte == 32 or 9 <= byte < 14
    kind, _ = class_of(text, i, end, classes)
    return kind == SPACE
