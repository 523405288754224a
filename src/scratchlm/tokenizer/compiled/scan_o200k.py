r"""Bytes -> starts of the pieces of o200k, whose words end where a new capital begins.

    W = P?[CB]*[SB]+(?i:'s|'t|'re|'ve|'m|'ll|'d)? | P?[CB]+[SB]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
    W | \p{N}{1,3} | ?[^\s\p{L}\p{N}]+[\r\n/]* | \s*[\r\n]+ | \s+(?!\S) | \s+

with P = [^\r\n\p{L}\p{N}], capitals C, small letters S, and B for both: letters without case, and marks.

    text     G e t H T T P ' s _ I D         B B C C _       S B B C S B C C _
    starts   x . . x . . . . . x . .         x . x . x       x . . x . . x . x

64 bytes at a time, as in `scan_cl100k`; read that first. A capital starts a piece behind a small letter, and
behind B that follows a small letter. Behind any other B, only capitals that end the word do: the greedy
[CB]* takes them and must give them back. A mark behind punctuation belongs to it, unless that is a single
character that starts a piece: then it may stand before a word, which the mark begins.

Source: the pattern, see `pretokenize`; the masks are our own.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.block_classes import BLOCK, block_at, flooded, following, whole
from scratchlm.tokenizer.compiled.block_rules import (
    BlankCarries,
    SignCarries,
    blanks,
    contractions,
    signs,
    threes,
)
from scratchlm.tokenizer.compiled.characters import class_of
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import CASELESS, LOWER, MARK, UPPER
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    lowest_bit,
    mask_equal,
    store,
    write_bit_numbers,
)


class WordCarries(NamedTuple):
    """What the words of a block hand on; 0 or 1, but for the last."""

    word: np.uint64
    """The last character is a letter or a mark of a word."""
    lower: np.uint64
    both: np.uint64
    """It has no case, or is a mark."""
    small: np.uint64
    """So it is, and so are those before it back to a small letter."""
    inside: np.uint64
    """Bytes of a contraction in the next block."""


class Carries(NamedTuple):
    """What a block hands on to the next."""

    words: WordCarries
    signs: SignCarries
    blanks: BlankCarries
    phase: np.uint64
    """Of the numbers, see `threes`."""
    spilled: np.uint64
    """See `Block`."""


@uncounted_part
def _nothing_before():
    """The carries where a text starts."""
    words = WordCarries(NONE, NONE, NONE, NONE, NONE)
    return Carries(words, SignCarries(NONE, NONE, NONE, NONE), BlankCarries(NONE, NONE), NONE, NONE)


@uncounted_loop
def _capitals_end_word(text, i, end, classes):
    """Do only capitals stand from text[i] on to the end of the word?"""
    while i < end:
        kind, length = class_of(text, i, end, classes)
        if kind != UPPER:
            return kind not in (LOWER, CASELESS, MARK)
        i += length
    return True


@uncounted_part
def _capitals(text, base, end, classes, continuation, upper, lower, both, carries):
    """Capitals that start a piece inside of a word, and the carries `lower`, `both` and `small`."""
    after_lower, lower_carry = following(lower, continuation, carries.lower)
    starts = upper & after_lower
    after_both, both_carry = following(both, continuation, carries.both)
    small_carry = NONE
    if both | carries.both != NONE:
        run = whole(both, continuation, carries.both)
        behind_small = run + ((both & after_lower) | carries.small)
        small_carry = np.uint64(behind_small < run)
        starts |= upper & behind_small & ~run
        doubtful = upper & after_both & ~starts
        while doubtful != NONE:
            bit = lowest_bit(doubtful)
            doubtful &= doubtful - ONE
            starts |= np.uint64(_capitals_end_word(text, base + bit, end, classes)) << np.uint64(bit)
    return starts, lower_carry, both_carry, small_carry


@uncounted_part
def _words(text, base, end, classes, block, mark, carries):
    """Split words; `mark`: those that belong to words.

    Returns:
        All characters of words; those that start a piece inside of a word; what follows a character of a
        word; the bytes of contractions; the carries.
    """
    inside, inside_next = carries.inside, NONE
    both = block.caseless | mark
    word = (block.upper | block.lower | both) & ~inside
    after_word, word_carry = following(word, block.continuation, carries.word)
    apostrophes = mask_equal(text, base, 39) & block.valid & after_word
    if apostrophes != NONE:
        inside, inside_next = contractions(text, base, end, apostrophes, inside, np.int64(1))
        word &= ~inside
        after_word, word_carry = following(word, block.continuation, carries.word)
    capitals, lower, both, small = _capitals(
        text,
        base,
        end,
        classes,
        block.continuation,
        block.upper & ~inside,
        block.lower & ~inside,
        both,
        carries,
    )
    next_carries = WordCarries(word_carry, lower, both, small, inside_next)
    return word, capitals, after_word, inside, next_carries


@uncounted_part
def _signs_and_marks(text, base, block, carries):
    """Split at punctuation; also the marks that belong to words, not to it."""
    mark = block.mark
    known = block.upper | block.lower | block.caseless | block.number | block.newline | block.blank
    tail = block.newline | (mask_equal(text, base, 47) & block.valid)
    while True:
        other = block.valid & ~(known | mark | block.continuation)
        sign = signs(text, base, block, other, tail, carries)
        doubtful = mark & sign.after_other & ~sign.after_opening
        if doubtful == NONE:
            return sign, mark
        # What lies below the first such mark is settled: it and the marks behind it are punctuation.
        first = doubtful & (NONE - doubtful)
        mark &= ~flooded(whole(mark, block.continuation, NONE), first)


@uncounted_part
def _starts_of_block(text, base, end, classes, carries):
    """The starts in text[base : base + 64] and the carries for the next block."""
    block = block_at(text, base, end, classes, carries.spilled)
    sign, mark = _signs_and_marks(text, base, block, carries.signs)
    word, capitals, after_word, inside, word_carries = _words(
        text, base, end, classes, block, mark, carries.words
    )
    starts, after_blank, blank_carries = blanks(
        text, base, end, classes, block, sign.absorbed, carries.blanks
    )
    starts |= word & ~(after_word | after_blank | sign.after_opening)
    starts |= capitals | (sign.opening & ~inside)
    numbers, phase = threes(block.number, block.continuation, carries.phase)
    starts |= numbers
    return starts, Carries(word_carries, sign.carries, blank_carries, phase, block.spilled)


@uncounted_loop
def scan_o200k(text, firsts, stops, ends, classes, starts, bounds):
    """Find the pieces of each segment; the arguments and the result are those of `scan_cl100k`."""
    count = np.int64(0)
    for segment in range(len(firsts)):
        bounds[segment] = count
        base, stop, end = np.int64(firsts[segment]), np.int64(stops[segment]), np.int64(ends[segment])
        carries = _nothing_before()
        while base < stop:
            found, carries = _starts_of_block(text, base, end, classes, carries)
            if base + BLOCK > stop:
                found &= bits_between(np.int64(0), stop - base)
            count += write_bit_numbers(starts, count, base, found)
            base += BLOCK
        store(starts, count, np.int32(stops[segment]))
        count += 1
    bounds[len(firsts)] = count
    return count
