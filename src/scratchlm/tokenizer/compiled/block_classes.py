r"""64 bytes -> where their characters start, a mask for each class of character.

    text           a   b  [D0  B6] [E4  B8  AD]  1       ("abж中1")
    continuation   .   .   .   x    .   x   x    .
    lower          x   x   x   .    .   .   .    .
    caseless       .   .   .   .    x   .   .    .       one bit for a character: at its first byte

ASCII needs only compares. The letters of large scripts stand together in UTF-8 and are told by compares as
well; every other character is decoded on its own. A character may reach over the block's end: `spilled`
hands its continuation bytes on to the next block.

"The character before this one is a letter" is a shift for ASCII; `following` makes it a shift and an addition
that carries through continuation bytes:

    letter         .   .   x   .    .        shifted + continuation = a bit behind the character
    continuation   .   .   .   x    .
    following      .   .   .   .    x

Source: carries through runs as in Cameron et al. 2014, "Bitwise Data Parallelism in Regular Expression
Matching", https://doi.org/10.1145/2628071.2628079, section 3 (MatchStar).
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.characters import class_of
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import CASELESS, LOWER, MARK, NUMBER, SPACE, UPPER
from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    ONE,
    bits_between,
    load,
    lowest_bit,
    mask_below,
    mask_equal,
)

BLOCK = 64
"""Bytes a step."""

_LAST = np.uint64(63)
_LONGEST = 4
"""Bytes of the longest character."""


class Block(NamedTuple):
    """What stands in 64 bytes; uint64 masks, all bits behind the text's end are clear."""

    valid: np.uint64
    """The bytes before the end."""
    continuation: np.uint64
    """Every byte of a well-formed character but its first."""
    upper: np.uint64
    lower: np.uint64
    caseless: np.uint64
    mark: np.uint64
    number: np.uint64
    newline: np.uint64
    """Line feed and carriage return."""
    blank: np.uint64
    """White_Space but newlines."""
    blank_before_text: np.uint64
    """Blanks with a character behind them that is not White_Space."""
    spilled: np.uint64
    """Continuation bytes at the start of the next block."""


class Wide(NamedTuple):
    """The characters of a block that are not ASCII; as in `Block`."""

    continuation: np.uint64
    upper: np.uint64
    lower: np.uint64
    caseless: np.uint64
    mark: np.uint64
    number: np.uint64
    blank: np.uint64
    blank_before_text: np.uint64
    spilled: np.uint64


@uncounted_part
def following(mask, continuation, carry):
    """The characters whose predecessor is in `mask`, and the carry into the next block (0 or 1)."""
    shifted = (mask << ONE) | carry
    total = shifted + continuation
    return total & ~continuation, (mask >> _LAST) | np.uint64(total < shifted)


@uncounted_part
def whole(mask, continuation, carry):
    """All bytes of the characters in `mask`; the carry is that of `following`."""
    return mask | (continuation & ~(((mask << ONE) | carry) + continuation))


@uncounted_part
def flooded(run, sources):
    """Each bit of `sources`, a part of `run`, and all bits of its run above it.

    Adding carries from the lowest source to the end of its run; a source above that stays set in the sum.
    """
    return run & (~(run + sources) | sources)


@uncounted_part
def _pairs(text, base, lead, first, count):
    """Characters of two bytes, `lead` and one of the `count` values from `first` on."""
    return mask_equal(text, base, lead) & mask_below(text, base + 1, first, count)


@uncounted_part
def _cased(text, base):
    """Upper and lower case: Latin U+00C0 to U+00FF, Greek U+0391 to U+03CE, Cyrillic U+0400 to U+045F."""
    if mask_below(text, base, 0xC3, 0x0F) == NONE:
        return NONE, NONE
    upper = _pairs(text, base, 0xC3, 0x80, 0x17) | _pairs(text, base, 0xC3, 0x98, 0x07)
    upper |= _pairs(text, base, 0xCE, 0x91, 0x11) | _pairs(text, base, 0xCE, 0xA3, 0x09)
    upper |= _pairs(text, base, 0xD0, 0x80, 0x30)
    lower = _pairs(text, base, 0xC3, 0x9F, 0x18) | _pairs(text, base, 0xC3, 0xB8, 0x08)
    lower |= _pairs(text, base, 0xCE, 0xAC, 0x14) | _pairs(text, base, 0xCF, 0x80, 0x0F)
    lower |= _pairs(text, base, 0xD0, 0xB0, 0x10) | _pairs(text, base, 0xD1, 0x80, 0x20)
    return upper, lower


@uncounted_part
def _semitic(text, base):
    """Hebrew U+05D0 to U+05EA, Arabic U+0620 to U+064A and U+0680 to U+06D3 without marks."""
    if mask_below(text, base, 0xD7, 0x05) == NONE:
        return NONE
    caseless = _pairs(text, base, 0xD7, 0x90, 0x1B) | _pairs(text, base, 0xD8, 0xA0, 0x20)
    caseless |= _pairs(text, base, 0xD9, 0x80, 0x0B) | _pairs(text, base, 0xDA, 0x80, 0x40)
    return caseless | _pairs(text, base, 0xDB, 0x80, 0x14)


@uncounted_part
def _east_asian(text, base):
    """Kana U+3041 to U+30FF but a few, Han U+4E00 to U+9FFF, Hangul U+AC00 to U+D77F: lead bytes E3 to ED."""
    leads = mask_below(text, base, 0xE3, 0x0B)
    if leads == NONE:
        return NONE
    third = mask_below(text, base + 2, 0x80, 0x40)
    kana = mask_equal(text, base + 1, 0x81) & mask_below(text, base + 2, 0x81, 0x3F)
    kana |= mask_equal(text, base + 1, 0x82) & (
        mask_below(text, base + 2, 0x80, 0x17) | mask_below(text, base + 2, 0xA1, 0x1F)
    )
    kana |= mask_equal(text, base + 1, 0x83) & third & ~mask_equal(text, base + 2, 0xBB)
    han = mask_equal(text, base, 0xE4) & mask_below(text, base + 1, 0xB8, 0x08)
    han |= mask_below(text, base, 0xE5, 5) & mask_below(text, base + 1, 0x80, 0x40)
    hangul = mask_equal(text, base, 0xEA) & mask_below(text, base + 1, 0xB0, 0x10)
    hangul |= mask_below(text, base, 0xEB, 2) & mask_below(text, base + 1, 0x80, 0x40)
    hangul |= mask_equal(text, base, 0xED) & mask_below(text, base + 1, 0x80, 0x1E)
    return third & ((mask_equal(text, base, 0xE3) & kana) | han | hangul)


@uncounted_part
def _other_wide(text, base, end, classes, leads, known):
    """Decode the characters that start at `leads`, one after the other, and add them to the `known` ones."""
    continuation, upper, lower, caseless, mark, number, blank, before_text, spilled = known
    while leads != NONE:
        bit = lowest_bit(leads)
        leads &= leads - ONE
        kind, length = class_of(text, base + bit, end, classes)
        place = np.uint64(bit)
        rest = (ONE << np.uint64(length)) - np.uint64(2)
        continuation |= rest << place
        spilled |= (rest >> ONE) >> (_LAST - place)
        upper |= np.uint64(kind == UPPER) << place
        lower |= np.uint64(kind == LOWER) << place
        caseless |= np.uint64(kind == CASELESS) << place
        mark |= np.uint64(kind == MARK) << place
        number |= np.uint64(kind == NUMBER) << place
        if kind == SPACE:
            blank |= ONE << place
            if base + bit + length < end:
                after, _ = class_of(text, base + bit + length, end, classes)
                before_text |= np.uint64(after != SPACE) << place
    return Wide(continuation, upper, lower, caseless, mark, number, blank, before_text, spilled)


@uncounted_loop
def _wide(text, base, end, classes, high):
    """Classify what is not ASCII, of which `high` are the bytes."""
    upper, lower = _cased(text, base)
    caseless = _semitic(text, base)
    three = _east_asian(text, base)
    if base + BLOCK + _LONGEST > end:  # the next bytes may be behind the end
        upper &= bits_between(np.int64(0), end - 1 - base)
        lower &= bits_between(np.int64(0), end - 1 - base)
        caseless &= bits_between(np.int64(0), end - 1 - base)
        three &= bits_between(np.int64(0), end - 2 - base)
    two = upper | lower | caseless
    continuation = ((two | three) << ONE) | (three << np.uint64(2))
    spilled = (two >> _LAST) | (three >> _LAST) | (three >> np.uint64(62))
    known = Wide(continuation, upper, lower, caseless | three, NONE, NONE, NONE, NONE, spilled)
    leads = high & mask_below(text, base, 0xC2, 0x33) & ~(two | three)
    return _other_wide(text, base, end, classes, leads, known)


@uncounted_part
def _text_behind(text, base, end, classes):
    """Bit 63 if a character follows the block that is not White_Space; for a block that ends with ASCII."""
    place = base + BLOCK
    if place >= end:
        return NONE
    byte = load(text, place)
    if byte >= 128:
        kind, _ = class_of(text, place, end, classes)
        return np.uint64(kind != SPACE) << _LAST
    return np.uint64(not (byte == 32 or 9 <= byte < 14)) << _LAST


@uncounted_part
def block_at(text, base, end, classes, spilled):
    """Classify the characters of text[base : base + 64].

    Args:
        text: uint8, readable to base + 68.
        base: The block's first byte; a character starts there but for `spilled`.
        end: Where the text ends; a character that reaches over it is ill-formed.
        classes: uint8, the class of each code point.
        spilled: Of the block before, or NONE where a text starts.
    """
    valid = ALL
    if base + BLOCK > end:
        valid = bits_between(np.int64(0), end - base)
    high = mask_below(text, base, 128, 128) & valid & ~spilled
    wide = Wide(NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE)
    if high != NONE:
        wide = _wide(text, base, end, classes, high)
    newline = (mask_equal(text, base, 10) | mask_equal(text, base, 13)) & valid
    blank = (mask_equal(text, base, 32) | mask_below(text, base, 9, 5)) & valid & ~newline
    continuation = wide.continuation | spilled
    rest = valid & ~(blank | newline | wide.blank | continuation)
    before_text = blank & ((rest >> ONE) | _text_behind(text, base, end, classes))
    return Block(
        valid,
        continuation,
        (mask_below(text, base, 65, 26) & valid) | wide.upper,
        (mask_below(text, base, 97, 26) & valid) | wide.lower,
        wide.caseless,
        wide.mark,
        (mask_below(text, base, 48, 10) & valid) | wide.number,
        newline,
        blank | wide.blank,
        before_text | wide.blank_before_text,
        wide.spilled,
    )
