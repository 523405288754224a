r"""Bytes -> starts of pieces, split as GPT-2 does, 64 bytes at a time.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    text      it' s  a   c a t   . . .      (without the blanks between)
    letters   11  1  1   1 1 1              each class of character is a mask of 64 bits
    starts    1 1    1   1       1          where the class changes

A character that is no blank starts a piece where its class differs from the one before, unless a space stands
before it, which then is the piece's start. In a run of blanks the first starts a piece, and so does the last
when something follows: it goes with that (a space), or stands alone. A contraction opens with an apostrophe
that starts a piece; its letters start none, and what follows it starts the next.

The plain twin is `scan_scalar`, the oracle the expression itself. Source of the masks: Langdale and Lemire
2019, "Parsing Gigabytes of JSON per Second", https://arxiv.org/abs/1902.08318, section 3.1.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    bits_between,
    mask_below,
    mask_equal,
    mask_letters,
    store,
    write_bit_numbers,
)
from scratchlm.tokenizer.compiled.wide_characters import BLOCK, Tail, is_blank, wide_characters

_1, _2, _3, _61, _62, _63 = (np.uint64(number) for number in (1, 2, 3, 61, 62, 63))
_SPACE, _APOSTROPHE, _ZERO = 32, 39, 48
_D, _E, _L, _M, _R, _S, _T, _V = (ord(letter) for letter in "delmrstv")


class Carries(NamedTuple):
    """What a block hands on to the next, as masks (uint64); the first five are its last byte's, 0 or 1."""

    letter: np.uint64
    number: np.uint64
    sign: np.uint64
    space: np.uint64
    """U+0020, which the next piece takes in."""
    blank: np.uint64
    to_set: np.uint64
    """Starts behind contractions."""
    to_clear: np.uint64
    """Letters of contractions, which start nothing."""
    tail: Tail


@uncounted_part
def _contractions(text, base, end, apostrophes):
    """Apostrophes that open contractions of two and of three bytes; `apostrophes` start pieces."""
    two = mask_equal(text, base + 1, _S) | mask_equal(text, base + 1, _D)
    two |= mask_equal(text, base + 1, _M) | mask_equal(text, base + 1, _T)
    three = mask_equal(text, base + 1, _V) | mask_equal(text, base + 1, _R)
    three &= mask_equal(text, base + 2, _E)
    three |= mask_equal(text, base + 1, _L) & mask_equal(text, base + 2, _L)
    two &= apostrophes & bits_between(np.int64(0), end - base - 1)
    three &= apostrophes & bits_between(np.int64(0), end - base - 2)
    return two, three


@uncounted_part
def _blank_follows(text, i, end, classes):
    """Is the character at text[i] a blank, or the text's end?"""
    return i >= end or is_blank(text, i, end, classes)


@uncounted_part
def _starts_of_block(text, first, base, end, classes, before):
    """The starts in text[base : base + 64] and the carries for the next block."""
    known = ALL if base + BLOCK <= end else bits_between(np.int64(0), end - base)
    letters, numbers = mask_letters(text, base), mask_below(text, base, _ZERO, 10)
    spaces = mask_equal(text, base, _SPACE)
    blanks = narrow_blanks = spaces | mask_below(text, base, 9, 5)
    wide = mask_below(text, base, 0x80, 0x80) & known
    inside, last, tail = NONE, NONE, Tail(NONE, NONE)
    if wide != NONE:
        found = wide_characters(text, first, base, end, wide, before.tail, classes)
        letters |= found.letters
        numbers |= found.numbers
        blanks |= found.blanks
        inside, last, tail = found.inside, found.last, found.tail
    text_follows = np.uint64(not _blank_follows(text, base + BLOCK, end, classes))
    followed = ((~blanks & known) >> _1) | (narrow_blanks & (text_follows << _63))
    signs = ~(letters | numbers | blanks)
    same = (letters & ((letters << _1) | before.letter)) | (numbers & ((numbers << _1) | before.number))
    same |= signs & ((signs << _1) | before.sign)
    starts = ~(blanks | same | (spaces << _1) | before.space)
    starts |= blanks & (followed | ~((blanks << _1) | before.blank))
    starts = ((starts & ~inside) | last | before.to_set) & ~before.to_clear
    to_set, to_clear = NONE, NONE
    apostrophes = mask_equal(text, base, _APOSTROPHE) & starts
    if apostrophes != NONE:
        two, three = _contractions(text, base, end, apostrophes)
        starts = (starts | (two << _2) | (three << _3)) & ~((two | three) << _1)
        to_set, to_clear = (two >> _62) | (three >> _61), (two | three) >> _63
    ends = letters >> _63, numbers >> _63, signs >> _63, spaces >> _63, blanks >> _63
    return starts, Carries(*ends, to_set, to_clear, tail)


@uncounted_loop
def scan_gpt2(text, firsts, stops, ends, classes, starts, bounds):
    """Write the starts of all pieces, and after each segment's its stop; return how many.

    Args:
        text: uint8, with padding.
        firsts: int32 [segments]; where each segment begins.
        stops: int32 [segments]; where to stop: the segment's end, or a safe cut before it.
        ends: int32 [segments]; where the segment's text ends.
        classes: uint8; the class of each code point.
        starts: int32; receives the starts; as long as the text, and 64 + the number of segments.
        bounds: int32 [segments + 1]; receives the index in `starts` of each segment's first entry.
    """
    count = np.int64(0)
    for segment in range(len(firsts)):
        store(bounds, segment, np.int32(count))
        first, stop, end = np.int64(firsts[segment]), np.int64(stops[segment]), np.int64(ends[segment])
        carries = Carries(NONE, NONE, NONE, NONE, NONE, NONE, NONE, Tail(NONE, NONE))
        base = first
        while base < stop:
            found, carries = _starts_of_block(text, first, base, end, classes, carries)
            if base + BLOCK > stop:
                found &= bits_between(np.int64(0), stop - base)
            count += write_bit_numbers(starts, count, base, found)
            base += BLOCK
        store(starts, count, np.int32(stop))
        count += 1
    store(bounds, len(firsts), np.int32(count))
    return count
