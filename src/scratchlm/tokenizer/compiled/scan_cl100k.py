r"""Bytes -> starts of the pieces of cl100k, llama3 (numbers in threes) and qwen2 (numbers one by one).

    (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | ?[^\s\p{L}\p{N}]+[\r\n]*
    | \s*[\r\n]+ | \s+(?!\S) | \s+

    text     I t ' s   ( o k )   -   _ _ n _ _ 1 2 3 4
    letter   x x . x . . x x . . . . . . . . . . . . .
    other    . . x . . x . . x . x . . . . . . . . . .
    starts   x . x . x . x . x x . x . . . x x x . . x

64 bytes at a time, and no branch but for what is rare. What a piece starts with depends on a character and
the one before it: a letter starts a piece unless a letter, a blank, or a single punctuation mark that itself
starts one comes before. Carries bring the last character of a block to the next.

Source: the pattern, see `pretokenize`; the masks are our own.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.block_classes import BLOCK, block_at, flooded, following
from scratchlm.tokenizer.compiled.block_rules import contraction_length, tails, threes
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    compiled_loop,
    inlined,
    lowest_bit,
    mask_equal,
    store,
    write_bit_numbers,
)

_LAST = np.uint64(63)


class Carries(NamedTuple):
    """What a block hands on: is the last character of this class? 0 or 1, but for the last three."""

    letter: np.uint64
    other: np.uint64
    opening: np.uint64
    """Punctuation that starts a piece."""
    space: np.uint64
    """U+0020, which punctuation takes in."""
    blank: np.uint64
    absorbed: np.uint64
    """A newline that belongs to the punctuation before it."""
    newline: np.uint64
    """Any other newline."""
    phase: np.uint64
    """Of the numbers, see `threes`."""
    spilled: np.uint64
    """See `Block`."""
    starts: np.uint64
    """Starts behind contractions, as bits of the next block."""


@inlined
def _split_contractions(text, base, end, apostrophes):
    """Starts behind contractions, in this block and the next; `apostrophes` start pieces."""
    here, next_block = NONE, NONE
    while apostrophes != NONE:
        bit = lowest_bit(apostrophes)
        apostrophes &= apostrophes - ONE
        length = contraction_length(text, base + bit, end)
        if length > 0:
            here |= bits_between(bit + length, bit + length + 1)
            next_block |= bits_between(bit + length - BLOCK, bit + length - BLOCK + 1)
    return here, next_block


@inlined
def _starts_of_block(text, base, end, classes, digits, carries):
    """The starts in text[base : base + 64] and the carries for the next block."""
    block = block_at(text, base, end, classes, carries.spilled)
    continuation = block.continuation
    letter = block.upper | block.lower | block.caseless
    other = block.valid & ~(letter | block.number | block.newline | block.blank | continuation)
    space = mask_equal(text, base, 32) & block.valid

    after_letter, letter_carry = following(letter, continuation, carries.letter)
    after_other, other_carry = following(other, continuation, carries.other)
    after_blank, blank_carry = following(block.blank, continuation, carries.blank)
    opening = other & ~after_other & ~((space << ONE) | carries.space)
    after_opening, opening_carry = following(opening, continuation, carries.opening)

    absorbed = flooded(block.newline, block.newline & (after_other | carries.absorbed))
    newline = block.newline & ~absorbed
    after_newline = (newline << ONE) | carries.newline

    starts = opening | block.blank_before_text | carries.starts
    starts |= letter & ~(after_letter | after_blank | after_opening)
    starts |= (newline | block.blank) & ~(after_newline | after_blank)
    starts |= tails(text, base, end, classes, block, carries.blank, after_newline)
    phase = NONE
    if digits == 1:
        starts |= block.number
    else:
        numbers, phase = threes(block.number, continuation, carries.phase)
        starts |= numbers
    starts_behind = NONE
    apostrophes = opening & mask_equal(text, base, 39)
    if apostrophes != NONE:
        here, starts_behind = _split_contractions(text, base, end, apostrophes)
        starts |= here
    return starts, Carries(
        letter_carry,
        other_carry,
        opening_carry,
        space >> _LAST,
        blank_carry,
        absorbed >> _LAST,
        newline >> _LAST,
        phase,
        block.spilled,
        starts_behind,
    )


@compiled_loop
def scan_cl100k(text, firsts, stops, ends, classes, starts, bounds, digits):
    """Find the pieces of each segment.

    Args:
        text: uint8, with padding.
        firsts: int32; where each segment starts.
        stops: int32; where it stops: no piece starts there or behind.
        ends: int32; where its text ends as far as it is known.
        classes: uint8, the class of each code point.
        starts: int32; takes the start of each piece and, behind each segment's, its stop.
        bounds: int32; takes the index in `starts` of each segment's first piece, and the number of all.
        digits: Numbers of a piece: 3 or 1.

    Returns:
        The number of starts.
    """
    count = np.int64(0)
    for segment in range(len(firsts)):
        bounds[segment] = count
        base, stop, end = np.int64(firsts[segment]), np.int64(stops[segment]), np.int64(ends[segment])
        carries = Carries(NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE)
        while base < stop:
            found, carries = _starts_of_block(text, base, end, classes, digits, carries)
            if base + BLOCK > stop:
                found &= bits_between(np.int64(0), stop - base)
            count += write_bit_numbers(starts, count, base, found)
            base += BLOCK
        store(starts, count, np.int32(stops[segment]))
        count += 1
    bounds[len(firsts)] = count
    return count
