r"""Windows of pieces -> ids by byte-pair encoding that passes merges over at random.

    heap       rank << 32 | place of every pair that may merge, the smallest on top
    skipped    those passed over in this step; a merge ends the step and puts them back

The symbols of a piece are a linked list of places, and each place knows the rank of the pair that begins
there. An entry of the heap is stale when that is another rank by now; stale entries draw no random number,
so the numbers are used up exactly as in the plain twin, `bpe_dropout.encode_piece_with_dropout_reference`.

A step considers 1 / (1 - probability) entries on average, at most all of them.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np

from scratchlm.tokenizer.compiled.encode_short import NO_RANK, find_rank
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part

ENTRIES_PER_BYTE = 3
"""Entries that one byte of a piece can cause in the heap: its first pair, and two for each merge."""

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, made odd: the step of SplitMix64's counter."""

MIX_SHIFTS = (30, 27, 31)
MIX_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Steele et al. 2014 after David Stafford's variant 13 of MurmurHash3's finalizer."""

RANDOM_BITS = 53
"""Bits of a random number that are compared: what a float of 64 bits resolves between 0 and 1."""

_STEP, _FACTOR_1, _FACTOR_2 = np.uint64(GOLDEN), np.uint64(MIX_FACTORS[0]), np.uint64(MIX_FACTORS[1])
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(MIX_SHIFTS[0]), np.uint64(MIX_SHIFTS[1]), np.uint64(MIX_SHIFTS[2])
_UNUSED_BITS = np.uint64(64 - RANDOM_BITS)
_PLACE = np.int64(2**32 - 1)


@uncounted_part
def _mix(number):
    number = (number ^ (number >> _SHIFT_1)) * _FACTOR_1
    number = (number ^ (number >> _SHIFT_2)) * _FACTOR_2
    return number ^ (number >> _SHIFT_3)


@uncounted_part
def _push(heap, size, entry):
    i = size
    while i > 0 and heap[(i - 1) >> 1] > entry:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = entry


@uncounted_part
def _drop_top(heap, size):
    """Take the top out of a heap of `size` entries."""
    last = heap[size - 1]
    i, child = np.int64(0), np.int64(1)
    while child < size - 1:
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = last


@uncounted_part
def _look_up(place, symbols, after, size, ranks, pairs, heap, waiting):
    """Note the rank of the pair that begins at `place` and put it into the heap; return the heap's size."""
    if place < 0:
        return waiting
    rank = np.int64(NO_RANK)
    if after[place] < size:
        rank = find_rank(pairs, np.int64(symbols[place]), np.int64(symbols[after[place]]))
    ranks[place] = rank
    if rank == NO_RANK:
        return waiting
    _push(heap, waiting, (rank << 32) | place)
    return waiting + 1


@uncounted_part
def _merge_at(place, symbol, symbols, before, after, size, ranks):
    """Put `symbol` in place of the one at `place` and the next."""
    gone = after[place]
    symbols[place], symbols[gone] = symbol, -1
    ranks[gone] = NO_RANK
    after[place] = after[gone]
    if after[gone] < size:
        before[after[gone]] = place


@uncounted_part
def _merge_piece(size, stream, threshold, pairs, products, work):
    """Merge the symbols of one piece; places whose symbol is -1 are gone."""
    symbols, before, after, ranks, heap, skipped = work
    waiting, num_skipped, counter = np.int64(0), np.int64(0), stream
    for i in range(size):
        before[i], after[i] = i - 1, i + 1
        waiting = _look_up(np.int64(i), symbols, after, size, ranks, pairs, heap, waiting)
    while waiting > 0:
        entry = heap[0]
        _drop_top(heap, waiting)
        waiting -= 1
        place, rank = entry & _PLACE, entry >> 32
        if ranks[place] != rank:
            continue
        counter += _STEP
        if _mix(counter) >> _UNUSED_BITS < threshold:
            skipped[num_skipped] = entry
            num_skipped += 1
            continue
        _merge_at(place, products[rank], symbols, before, after, size, ranks)
        for side in range(2):
            changed = place if side else np.int64(before[place])
            waiting = _look_up(changed, symbols, after, size, ranks, pairs, heap, waiting)
        for i in range(num_skipped):
            _push(heap, waiting, skipped[i])
            waiting += 1
        num_skipped = np.int64(0)


@uncounted_loop
def encode_window_with_dropout(
    text, starts, bounds, position, seed, threshold, pairs, products, ids, work, output
):
    """Write the ids of all pieces of a window to `output` and return their number.

    Args:
        text: uint8, a window's bytes.
        starts: int32, where its pieces begin, and where each segment stops.
        bounds: int32, where each segment's part of `starts` begins.
        position: int64, where text[0] stands in the whole text.
        seed: uint64.
        threshold: uint64, probability * 2^RANDOM_BITS.
        pairs: uint64, the merges as `encode_short.fill_pairs` enters them.
        products: int32, the symbol that each merge makes.
        ids: int32, the id of each symbol.
        work: symbols, before, after, ranks (int32, as long as the longest piece); heap, skipped (int64,
            ENTRIES_PER_BYTE times as long).
        output: int32, as long as the window.
    """
    count = np.int64(0)
    for segment in range(len(bounds) - 1):
        for j in range(bounds[segment], bounds[segment + 1] - 1):
            first, size = np.int64(starts[j]), np.int64(starts[j + 1] - starts[j])
            for i in range(size):
                work[0][i] = text[first + i]
            stream = _mix(seed + _STEP * np.uint64(position + first + 1))
            _merge_piece(size, stream, threshold, pairs, products, work)
            for i in range(size):
                if work[0][i] >= 0:
                    output[count] = ids[work[0][i]]
                    count += 1
    return count
