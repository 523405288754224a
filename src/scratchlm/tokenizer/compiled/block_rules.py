r"""Rules that cl100k and o200k share, on masks: digits, White_Space, contractions.

    \p{N}{1,3}      1 2 3 4 5 6 7       starts at every third number of a run
                    x . . x . . x
    \s*[\r\n]+      n _ _ n _ _ _ a     a run up to its last newline (n) is a piece; what is left loses its
    \s+(?!\S)       x . . . x . x .     last blank, which opens the next word or stands alone

Each function returns the starts of pieces that its rule makes; positions are bits (see `block_classes`).
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.block_classes import following, whole
from scratchlm.tokenizer.compiled.characters import class_of
from scratchlm.tokenizer.compiled.unicode_classes import SPACE
from scratchlm.tokenizer.compiled.vector import NONE, ONE, compiled_loop, highest_bit, inlined, load

_NEWLINE, _RETURN = 10, 13
_SMALL = 0x20
"""What turns an ASCII capital into its small letter."""


@inlined
def threes(number, continuation, phase):
    """Starts at every third number of each run.

    Args:
        number: The numbers.
        continuation: As in `Block`.
        phase: Whether the block before ends with a number, and with which of its piece: 0 (no), 1, 2 or 3.

    Returns:
        The starts and the phase for the next block.
    """
    if number == NONE:
        # A number may still reach over a whole block: not with 4 bytes, so nothing is carried on.
        return NONE, NONE
    after_number, _ = following(number, continuation, np.uint64(phase != NONE))
    first = number & ~after_number
    starts, carried = NONE, NONE
    while True:
        starts |= first
        second, from_first = following(first, continuation, np.uint64(phase == ONE))
        second &= number
        third, from_second = following(second, continuation, np.uint64(phase == np.uint64(2)))
        third &= number
        fourth, from_third = following(third, continuation, np.uint64(phase == np.uint64(3)))
        carried |= from_first | (from_second << ONE) | (from_third * np.uint64(3))
        first = fourth & number
        phase = NONE
        if first == NONE:
            return starts, carried


@compiled_loop
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


@inlined
def tails(text, base, end, classes, block, blank_carry, after_newline):
    """Starts at the blanks behind the last newline of a run of White_Space.

    Only a run that goes on behind the block is looked at byte by byte, once.

    Args:
        text: As of `block_at`, like `base`, `end` and `classes`.
        base: The block's first byte.
        end: Where the text ends.
        classes: The class of each code point.
        block: Classes of the block.
        blank_carry: 1 if the last character before the block is a blank.
        after_newline: What follows a newline that is not part of a piece of punctuation.
    """
    candidates = block.blank & after_newline
    if candidates == NONE:
        return NONE
    blank = whole(block.blank, block.continuation, blank_carry)
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


@compiled_loop
def contraction_length(text, i, end):
    """Bytes of (?i:'s|'t|'re|'ve|'m|'ll|'d) at text[i], an apostrophe; 0 if there is none.

    Without regard to case U+017F (bytes C5 BF) is an s.
    """
    if i + 1 >= end:
        return np.int64(0)
    first = np.int64(load(text, i + 1)) | _SMALL
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return np.int64(2)
    if i + 2 >= end:
        return np.int64(0)
    second = np.int64(load(text, i + 2))
    if first == 0xC5 | _SMALL and load(text, i + 1) == 0xC5 and second == 0xBF:
        return np.int64(3)
    second |= _SMALL
    if (first == ord("l") and second == ord("l")) or (
        second == ord("e") and (first == ord("v") or first == ord("r"))
    ):
        return np.int64(3)
    return np.int64(0)
