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

from scratchlm.tokenizer.compiled.block_classes import BLOCK, block_at, following
from scratchlm.tokenizer.compiled.block_rules import (
    BlankCarries,
    SignCarries,
    blanks,
    contractions,
    signs,
    threes,
)
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import NONE, bits_between, mask_equal, store, write_bit_numbers


class Carries(NamedTuple):
    """What a block hands on to the next."""

    letter: np.uint64
    """1 if the last character is a letter."""
    signs: SignCarries
    blanks: BlankCarries
    phase: np.uint64
    """Of the numbers, see `threes`."""
    inside: np.uint64
    """Bytes of a contraction."""
    spilled: np.uint64
    """See `Block`."""


@uncounted_part
def _nothing_before():
    """The carries where a text starts."""
    before = SignCarries(NONE, NONE, NONE, NONE)
    return Carries(NONE, before, BlankCarries(NONE, NONE), NONE, NONE, NONE)


@uncounted_part
def _starts_of_block(text, base, end, classes, digits, carries):
    """The starts in text[base : base + 64] and the carries for the next block."""
    block = block_at(text, base, end, classes, carries.spilled)
    letter = block.upper | block.lower | block.caseless
    other = block.valid & ~(letter | block.number | block.newline | block.blank | block.continuation)
    sign = signs(text, base, block, other, block.newline, carries.signs)
    inside, inside_next = carries.inside, NONE
    apostrophes = sign.opening & mask_equal(text, base, 39)
    if apostrophes != NONE:
        inside, inside_next = contractions(text, base, end, apostrophes, inside, np.int64(0))
    letter &= ~inside
    after_letter, letter_carry = following(letter, block.continuation, carries.letter)
    starts, after_blank, blank_carries = blanks(
        text, base, end, classes, block, sign.absorbed, carries.blanks
    )
    starts |= sign.opening | (letter & ~(after_letter | after_blank | sign.after_opening))
    phase = NONE
    if digits == 1:
        starts |= block.number
    else:
        numbers, phase = threes(block.number, block.continuation, carries.phase)
        starts |= numbers
    return starts, Carries(letter_carry, sign.carries, blank_carries, phase, inside_next, block.spilled)


@uncounted_loop
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
        carries = _nothing_before()
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
