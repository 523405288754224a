r"""Rules that cl100k and o200k share, on masks: contractions, punctuation, numbers, White_Space.

     ?[^\s\p{L}\p{N}]+[\r\n]*    a ! ! n n _ b _ ( c ( d
                                   x               x        `opening`: starts a piece, no blank before
                                       x x                  `absorbed`: newlines that it takes
    \p{N}{1,3}                   1 2 3 4 5 6 7
                                 x . . x . . x              starts at every third number of a run
    \s*[\r\n]+                   n _ _ n _ _ _ a            a run up to its last newline is a piece; what is
    \s+(?!\S)                    x . . . x . x .            left loses its last blank, which opens a word

(n a newline, _ a blank.) A bit is a place in the block, see `block_classes`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.block_classes import BLOCK, flooded, following, whole
from scratchlm.tokenizer.compiled.characters import class_of
from scratchlm.tokenizer.compiled.scan_scalar import contraction_end
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.unicode_classes import SPACE
from scratchlm.tokenizer.compiled.vector import (
    NONE,
    ONE,
    bits_between,
    highest_bit,
    load,
    lowest_bit,
    mask_equal,
)

_LAST = np.uint64(63)
_NEWLINE, _RETURN = 10, 13
_TWO, _THREE = np.uint64(2), np.uint64(3)
_IGNORE_CASE = np.int64(0x20)
"""The bit in which an ASCII capital differs from its small letter."""


class SignCarries(NamedTuple):
    """Is the last character of a block one of these? 0 or 1."""

    other: np.uint64
    opening: np.uint64
    absorbed: np.uint64
    space: np.uint64
    """U+0020."""


class BlankCarries(NamedTuple):
    """Is the last character of a block one of these? 0 or 1."""

    blank: np.uint64
    newline: np.uint64
    """A newline that no punctuation absorbs."""


class Signs(NamedTuple):
    """Where punctuation starts pieces."""

    opening: np.uint64
    """Starts a piece."""
    after_opening: np.uint64
    after_other: np.uint64
    absorbed: np.uint64
    """What of `tail` belongs to the punctuation before it."""
    carries: SignCarries


@uncounted_part
def signs(text, base, block, other, tail, carries):
    r"""Split at punctuation.

    Args:
        text: As of `block_at`.
        base: The block's first byte.
        block: Its classes.
        other: Characters of [^\s\p{L}\p{N}].
        tail: What may follow them: newlines, in o200k also slashes.
        carries: Of the block before.
    """
    space = mask_equal(text, base, 32) & block.valid
    after_other, other_carry = following(other, block.continuation, carries.other)
    absorbed = flooded(tail, (block.newline & after_other) | (tail & carries.absorbed))
    after_other &= ~((absorbed << ONE) | carries.absorbed)
    opening = other & ~(absorbed | after_other | (space << ONE) | carries.space)
    after_opening, opening_carry = following(opening, block.continuation, carries.opening)
    next_carries = SignCarries(other_carry, opening_carry, absorbed >> _LAST, space >> _LAST)
    return Signs(opening, after_opening, after_other, absorbed, next_carries)


@uncounted_loop
def contractions(text, base, end, apostrophes, inside, distance):
    """The bytes of (?i:'s|'t|'re|'ve|'m|'ll|'d) in this block, and those in the next.

    Args:
        text: As of `block_at`.
        base: The block's first byte.
        end: Where the text ends.
        apostrophes: Where contractions may start.
        inside: Bytes of one that started in the block before.
        distance: 1 where a contraction may not stand right behind another; 0 where it may.
    """
    inside_next = NONE
    while apostrophes != NONE:
        bit = lowest_bit(apostrophes)
        behind = contraction_end(text, base + bit, end, _IGNORE_CASE) - base
        inside |= bits_between(bit, behind)
        inside_next |= bits_between(bit - BLOCK, behind - BLOCK)
        taken = bits_between(bit, max(behind + distance, bit + 1)) if behind > bit else ONE << np.uint64(bit)
        apostrophes &= ~taken
    return inside, inside_next


@uncounted_part
def threes(number, continuation, phase):
    """Starts at every third number of each run.

    Args:
        number: The numbers.
        continuation: As in `Block`.
        phase: Whether the block before ends with a number, and with which of its piece: 0 (no), 1, 2 or 3.

    Returns:
        The starts and the phase for the next block.
    """
    starts, carried = NONE, NONE
    if number == NONE:
        return starts, carried
    after_number, _ = following(number, continuation, np.uint64(phase != NONE))
    first = number & ~after_number
    while first | phase != NONE:
        starts |= first
        second, from_first = following(first, continuation, np.uint64(phase == ONE))
        third, from_second = following(second & number, continuation, np.uint64(phase == _TWO))
        fourth, from_third = following(third & number, continuation, np.uint64(phase == _THREE))
        carried |= from_first | (from_second << ONE) | (from_third * _THREE)
        first = fourth & number
        phase = NONE
    return starts, carried


@uncounted_loop
def _newline_behind_blanks(text, i, end, classes):
    """Does a newline end the blanks that start at text[i]?"""
    while i < end:
        byte = load(text, i)
        if byte in (_NEWLINE, _RETURN):
            return True
        kind, length = class_of(text, i, end, classes)
        if kind != SPACE:
            return False
        i += length
    return False


@uncounted_part
def _tails(text, base, end, classes, block, carry, after_newline):
    """Starts at the blanks behind the last newline of a run of White_Space.

    Only a run that goes on behind the block is looked at byte by byte, once.
    """
    candidates = block.blank & after_newline
    if candidates == NONE:
        return NONE
    blank = whole(block.blank, block.continuation, carry)
    behind = blank + candidates  # a bit behind each run of blanks that a candidate opens
    if behind < blank:
        last = highest_bit(candidates)
        if _newline_behind_blanks(text, base + last, end, classes):
            candidates &= ~(ONE << np.uint64(last))
    refuted = behind & block.newline
    while refuted != NONE:
        below = (refuted & (NONE - refuted)) - ONE
        candidates &= ~(ONE << np.uint64(highest_bit(candidates & below)))
        refuted &= refuted - ONE
    return candidates


@uncounted_part
def blanks(text, base, end, classes, block, absorbed, carries):
    """Split at White_Space.

    Args:
        text: As of `block_at`.
        base: The block's first byte.
        end: Where the text ends.
        classes: The class of each code point.
        block: The block's classes.
        absorbed: See `Signs`.
        carries: Of the block before.

    Returns:
        The starts, what follows a blank, and the carries for the next block.
    """
    newline = block.newline & ~absorbed
    after_newline = (newline << ONE) | carries.newline
    after_blank, blank_carry = following(block.blank, block.continuation, carries.blank)
    starts = (newline | block.blank) & ~(after_newline | after_blank)
    starts |= block.blank_before_text | _tails(text, base, end, classes, block, carries.blank, after_newline)
    return starts, after_blank, BlankCarries(blank_carry, newline >> _LAST)
