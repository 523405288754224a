"""The characters above ASCII in a block of 64 bytes: which bytes are letters, numbers, blanks?

Whole scripts are settled by a few compares: every character that starts with one of these bytes is a letter.

    C3 (but not C3 97, C3 B7)   Latin letters with accents          D0 D1   Cyrillic
    E3 81..83 (but a few)       Hiragana, Katakana                  EB EC   Hangul
    E4 B8..BF, E5..E9           CJK ideographs

What is left, punctuation mostly, is decoded character by character and looked up in the table of classes.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.characters import class_at
from scratchlm.tokenizer.compiled.unicode_classes import LETTERS, NUMBER, SPACE
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    compiled_loop,
    count_bits,
    inlined,
    load,
    lowest_bit,
    mask_below,
    mask_equal,
)

BLOCK = 64
_FEW = 6  # so many bytes or fewer are faster one by one
_1, _2 = np.uint64(1), np.uint64(2)


@inlined
def _two_byte_letters(text, i):
    """Bits of the first bytes of well-formed two-byte letters."""
    second = mask_below(text, i + 1, 0x80, 64)
    accents = mask_equal(text, i, 0xC3) & ~(mask_equal(text, i + 1, 0x97) | mask_equal(text, i + 1, 0xB7))
    return (mask_below(text, i, 0xD0, 2) | accents) & second


@inlined
def _three_byte_letters(text, i):
    """Bits of the first bytes of well-formed three-byte letters."""
    second, third = mask_below(text, i + 1, 0x80, 64), mask_below(text, i + 2, 0x80, 64)
    letters = mask_below(text, i, 0xE5, 5) | mask_below(text, i, 0xEB, 2)
    letters |= mask_equal(text, i, 0xE4) & mask_below(text, i + 1, 0xB8, 8)
    kana = mask_equal(text, i + 1, 0x81) & mask_below(text, i + 2, 0x81, 63)
    kana |= mask_equal(text, i + 1, 0x82) & (
        mask_below(text, i + 2, 0x80, 23) | mask_below(text, i + 2, 0xA1, 31)
    )
    kana |= mask_equal(text, i + 1, 0x83) & ~mask_equal(text, i + 2, 0xBB)
    letters |= mask_equal(text, i, 0xE3) & kana
    return letters & second & third


@compiled_loop
def wide_characters(text, base, end, wide, carried, classes):
    """Classes of the bytes above ASCII in text[base : base + 64].

    Args:
        text: uint8, with padding.
        base: Where the block begins.
        end: Where the segment's text ends.
        wide: Bits of the bytes above ASCII before `end`.
        carried: Of the character that reaches over from the block before: 4 * class + bytes in this block; 0
            for none.
        classes: uint8, the class of each code point.

    Returns:
        Bits of bytes that belong to letters, numbers, blanks; of bytes inside of blanks, where no piece can
        start; of the first bytes of blanks that something else follows; what is carried to the next block.
    """
    letters, numbers, blanks, inside, last = NONE, NONE, NONE, NONE, NONE
    bits, kind = bits_between(np.int64(0), carried & 3), carried >> 2
    if kind >= LETTERS:
        letters = bits
    elif kind == NUMBER:
        numbers = bits
    elif kind == SPACE:
        blanks, inside = bits, bits
    wide &= ~bits
    carried = np.int64(0)
    if count_bits(wide) > _FEW:
        before_end = bits_between(np.int64(0), end - base)  # whole characters in this block only
        two, three = _two_byte_letters(text, base), _three_byte_letters(text, base)
        two, three = two & (before_end >> _1), three & (before_end >> _2)
        bits = two | (two << _1) | three | (three << _1) | (three << _2)
        letters |= bits
        wide &= ~bits
    while wide != NONE:
        bit = lowest_bit(wide)
        kind, length = class_at(text, base + bit, end, classes)
        bits = bits_between(bit, bit + length)
        if kind >= LETTERS:
            letters |= bits
        elif kind == NUMBER:
            numbers |= bits
        elif kind == SPACE:
            blanks |= bits
            inside |= bits & (bits << _1)
            behind = base + bit + length
            if behind < end and not is_blank(text, behind, end, classes):
                last |= ONE << np.uint64(bit)
        wide &= ~bits
        if bit + length > BLOCK:
            carried = 4 * kind + bit + length - BLOCK
    return letters, numbers, blanks, inside, last, carried


@compiled_loop
def _is_wide_blank(text, i, end, classes):
    kind, _ = class_at(text, i, end, classes)
    return kind == SPACE


@inlined
def is_blank(text, i, end, classes):
    """Is the character at text[i] a blank? i < end."""
    byte = load(text, i)
    if byte < 0x80:
        return byte == 32 or 9 <= byte < 14
    if byte == 0xC2 or 0xE1 <= byte <= 0xE3:  # U+0085, U+00A0, U+1680, U+2000 .. U+3000
        return _is_wide_blank(text, i, end, classes)
    return False
