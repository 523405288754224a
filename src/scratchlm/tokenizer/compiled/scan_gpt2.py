r"""Bytes -> starts of pieces, split as GPT-2 does, 64 bytes at a time.

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    text      it' s  a   c a t   . . .      (without the blanks between)
    letters   11  1  1   1 1 1              each class of character is a mask of 64 bits
    starts    1 1    1   1       1          where the class changes

A character that is no blank starts a piece where its class differs from the one before, unless a space stands
before it, which then is the piece's start. In a run of blanks the first starts a piece, and so does the last
when something follows: it goes with that (a space), or stands alone. Contractions are settled one by one, at
apostrophes that start a piece: what follows them starts the next.

The plain twin is `scan_scalar`, the oracle the expression itself.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    ONE,
    bits_between,
    compiled_loop,
    inlined,
    load,
    lowest_bit,
    mask_below,
    mask_equal,
    mask_letters,
    write_bit_numbers,
)
from scratchlm.tokenizer.compiled.wide_characters import BLOCK, is_blank, wide_characters

_LAST = np.uint64(63)


@inlined
def _contraction(text, i, end):
    """Length of the contraction at the apostrophe text[i], 0 for none."""
    if i + 1 >= end:
        return 0
    one = load(text, i + 1)
    if one == 115 or one == 100 or one == 109 or one == 116:  # s d m t
        return 2
    if i + 2 >= end:
        return 0
    two = load(text, i + 2)
    if (one == 108 and two == 108) or (one == 118 and two == 101) or (one == 114 and two == 101):  # ll ve re
        return 3
    return 0


@compiled_loop
def _contractions(text, base, end, apostrophes):
    """Contractions at these bits: bits to set and to clear in this block's starts, and in the next one's."""
    set_here, set_next, clear_here, clear_next = NONE, NONE, NONE, NONE
    while apostrophes != NONE:
        bit = lowest_bit(apostrophes)
        apostrophes &= apostrophes - ONE
        length = _contraction(text, base + bit, end)
        if length > 0:
            if bit + 1 < BLOCK:
                clear_here |= ONE << np.uint64(bit + 1)
            else:
                clear_next |= ONE
            if bit + length < BLOCK:
                set_here |= ONE << np.uint64(bit + length)
            else:
                set_next |= ONE << np.uint64(bit + length - BLOCK)
    return set_here, set_next, clear_here, clear_next


@inlined
def _scan_segment(text, first, stop, end, classes, starts, count):
    """Write the starts in text[first:stop]; return the new count."""
    last_letter, last_number, last_other, last_space, last_blank = NONE, NONE, NONE, NONE, NONE
    to_set, to_clear, carried = NONE, NONE, np.int64(0)
    base = first
    while base < stop:
        letters, numbers = mask_letters(text, base), mask_below(text, base, 48, 10)
        spaces = mask_equal(text, base, 32)
        blanks = spaces | mask_below(text, base, 9, 5)
        wide = mask_below(text, base, 128, 128)
        known = ALL if base + BLOCK <= end else bits_between(np.int64(0), end - base)
        inside, last = NONE, NONE
        if (wide & known) != NONE:
            more_letters, more_numbers, more_blanks, inside, last, carried = wide_characters(
                text, base, end, wide & known, carried, classes
            )
            letters |= more_letters
            numbers |= more_numbers
            blanks |= more_blanks
        followed = (~blanks & known) >> ONE
        if carried == 0 and base + BLOCK < end and not is_blank(text, base + BLOCK, end, classes):
            followed |= ONE << _LAST
        others = ~(letters | numbers | blanks)
        same = (letters & ((letters << ONE) | last_letter)) | (numbers & ((numbers << ONE) | last_number))
        same |= others & ((others << ONE) | last_other)
        found = ~blanks & ~same & ~((spaces << ONE) | last_space)
        found |= blanks & (followed | ~((blanks << ONE) | last_blank))
        found = (found & ~inside) | last
        found = (found | to_set) & ~to_clear
        to_set, to_clear = NONE, NONE
        apostrophes = mask_equal(text, base, 39) & found
        if apostrophes != NONE:
            set_here, to_set, clear_here, to_clear = _contractions(text, base, end, apostrophes)
            found = (found | set_here) & ~clear_here
        if base + BLOCK > stop:
            found &= bits_between(np.int64(0), stop - base)
        count += write_bit_numbers(starts, count, base, found)
        last_letter, last_number, last_other = letters >> _LAST, numbers >> _LAST, others >> _LAST
        last_space, last_blank = spaces >> _LAST, blanks >> _LAST
        base += BLOCK
    return count


@compiled_loop
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
    for number in range(len(firsts)):
        bounds[number] = count
        first, stop = np.int64(firsts[number]), np.int64(stops[number])
        count = _scan_segment(text, first, stop, np.int64(ends[number]), classes, starts, count)
        starts[count] = stop
        count += 1
    bounds[len(firsts)] = count
    return count
