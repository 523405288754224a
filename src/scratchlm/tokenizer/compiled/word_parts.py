r"""Words -> the parts that given merges work in, each distinct part once; merged parts -> words again.

    word    |the cat, the mat|        no given token holds "e ", "t,", ", ": it ends before such a place
    parts   |the| cat|,| the| mat|    one occurrence each
    merge   the -> 1 symbol, " cat" -> 2 symbols, ...       every distinct part once
    join    |the| ca t|,| the| ma t|

Two bytes that no given merge ever joined are never inside one token, so what lies between such places is
merged on its own. Where words are whole lines or pages this makes of many millions of bytes some hundred
thousand short parts, which are merged like the words of ordinary training.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import load, store

NUM_PARTS, NUM_OCCURRENCES, AT_WORD, AT_PLACE = 0, 1, 2, 3
"""Places in `progress`: distinct parts, occurrences of parts, where cutting goes on."""

_PRIME = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_HIGH = np.uint64(32)


@uncounted_part
def _part_end(symbols, place, stop, joins):
    """Where the part that starts at `place` ends, and its hash."""
    symbol = np.int64(load(symbols, place))
    mixed = np.uint64(symbol) * _PRIME
    place += 1
    while place < stop:
        following = np.int64(load(symbols, place))
        if load(joins, symbol << 8 | following) == 0:
            break
        symbol = following
        mixed = (mixed ^ (mixed >> _HIGH) ^ np.uint64(symbol)) * _PRIME
        place += 1
    return place, np.int64(mixed >> _HIGH)


@uncounted_part
def _equal(symbols, place, part_symbols, start, size):
    i = np.int64(0)
    while i < size and load(part_symbols, start + i) == load(symbols, place + i):
        i += 1
    return i == size


@uncounted_part
def _find_slot(symbols, place, size, slot, slots, part_symbols, part_starts):
    """The slot of this part, from `slot` on, or a free one."""
    mask = np.int64(len(slots) - 1)
    slot &= mask
    while True:
        number = np.int64(slots[slot]) - 1
        if number < 0:
            return slot
        start = part_starts[number]
        if part_starts[number + 1] - start == size and _equal(symbols, place, part_symbols, start, size):
            return slot
        slot = (slot + 1) & mask


@uncounted_loop
def cut_words(symbols, starts, joins, slots, part_symbols, part_starts, occurrences, bounds, progress):
    """Cut every word into parts.

    Args:
        symbols: int32, the bytes of all words.
        starts: int64, where each word starts; one more at the end.
        joins: uint8[65536], 1 for two bytes that a given merge joins: the first << 8 | the second.
        slots: int32, a power of two: number of a part + 1, or 0.
        part_symbols: int32, receives the distinct parts.
        part_starts: int64, where each of them starts, and the end; room for half as many as slots.
        occurrences: int32, receives the number of each part of each word.
        bounds: int64, receives each word's first occurrence; one more at the end.
        progress: int64[4], where the last call stopped; at first all 0.

    Returns:
        Whether all is cut; if not, make slots and part_starts larger and call again.
    """
    num_parts, num_occurrences = progress[NUM_PARTS], progress[NUM_OCCURRENCES]
    skip = progress[AT_PLACE]
    for word in range(progress[AT_WORD], len(starts) - 1):
        if skip == 0:
            bounds[word] = num_occurrences
        place, stop = starts[word] + skip, starts[word + 1]
        while place < stop:
            end, mixed = _part_end(symbols, place, stop, joins)
            slot = _find_slot(symbols, place, end - place, mixed, slots, part_symbols, part_starts)
            number = np.int64(slots[slot]) - 1
            if number < 0:
                if 2 * num_parts + 2 > len(slots):
                    progress[NUM_PARTS], progress[NUM_OCCURRENCES] = num_parts, num_occurrences
                    progress[AT_WORD], progress[AT_PLACE] = word, place - starts[word]
                    return False
                number = num_parts
                num_parts += 1
                slots[slot] = num_parts
                _copy(symbols, place, end, part_symbols, part_starts[number])
                part_starts[num_parts] = part_starts[number] + end - place
            occurrences[num_occurrences] = number
            num_occurrences += 1
            place = end
        skip = np.int64(0)
    bounds[len(starts) - 1] = num_occurrences
    progress[NUM_PARTS], progress[NUM_OCCURRENCES] = num_parts, num_occurrences
    return True


@uncounted_part
def _copy(source, start, stop, target, place):
    for i in range(stop - start):
        store(target, place + i, load(source, start + i))


@uncounted_loop
def enter_parts(slots, part_symbols, part_starts, num_parts):
    """Enter the parts into larger slots, which are all 0."""
    mask = np.int64(len(slots) - 1)
    for number in range(num_parts):
        mixed = np.uint64(0)
        for i in range(part_starts[number], part_starts[number + 1]):
            mixed = (mixed ^ (mixed >> _HIGH) ^ np.uint64(part_symbols[i])) * _PRIME
        slot = np.int64(mixed >> _HIGH) & mask
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = number + 1


@uncounted_loop
def join_parts(symbols, starts, bounds, occurrences, part_symbols, part_starts, part_lengths):
    """Write each word as its merged parts, the words one behind the other; they are never longer than before.

    Args:
        symbols: int32, receives the words.
        starts: int64, receives where each of them starts; one more at the end.
        bounds: int64, each word's first occurrence.
        occurrences: int32, the number of each part.
        part_symbols: int32, the merged parts.
        part_starts: int64, where they start.
        part_lengths: int32, how many symbols they have.
    """
    written = np.int64(0)
    for word in range(len(starts) - 1):
        starts[word] = written
        for i in range(bounds[word], bounds[word + 1]):
            number = np.int64(load(occurrences, i))
            first = load(part_starts, number)
            length = np.int64(load(part_lengths, number))
            _copy(part_symbols, first, first + length, symbols, written)
            written += length
    starts[len(starts) - 1] = written
