r"""Which pair goes next: the most frequent one; among equals the one that the tie rule prefers.

    buckets  count 1: pair 7 -> pair 12 -> pair 3     a linked list (field NEXT) for each count < 16,384
             count 2: pair 9 ...
    heap     the pairs of the present level, and all whose count is 16,384 or more

A pair's count only falls, so a pair that waits in the heap or a bucket may have lost count since; it is
moved when its turn comes. Counts are thus never searched and the rule for ties, the costly comparison, is
asked only within one level: when a level starts, its bucket becomes the heap.

Source: the buckets are those of YouTokenToMe, https://github.com/VKCOM/YouTokenToMe; the lazy heap is that
of Hugging Face's tokenizers. Here both, with an exact rule for ties.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

from typing import NamedTuple

import numpy as np

from scratchlm.tokenizer.compiled.pair_table import (
    COUNT,
    FIELDS,
    KEY,
    NEXT,
    pair_parts,
)
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import load

HEAP_COUNT = 1 << 14
"""From this count on pairs wait in the heap: they are few (counts fall as 1/rank), buckets would be many."""

HEAP_SIZE, LEVEL, THRESHOLD, TIE = 4, 5, 6, 7
"""Places in `state`: entries of the heap; the count from which on pairs are in it; the least count that a
pair must have to wait at all; the rule for ties."""

TIE_GREATEST_BYTES, TIE_SMALLEST_BYTES, TIE_ORDER = 1, -1, 0
"""Values of state[TIE]; with TIE_ORDER the tokens' heads alone decide."""


class Queue(NamedTuple):
    """Pairs that wait.

    Attributes:
        buckets: int32 [HEAP_COUNT + 1]: the first pair of each count + 1, or 0; the last bucket is for
            all counts from HEAP_COUNT on, which go to the heap when the round starts.
        heap: int64: the count at which a pair entered, its number; the next entry ...
    """

    buckets: np.ndarray
    heap: np.ndarray


class Tokens(NamedTuple):
    """What the symbols stand for.

    Attributes:
        arena: uint8; the bytes of symbol s are arena[starts[s] : starts[s + 1]].
        starts: int64.
        heads: uint64; of two symbols the one with the greater head goes first. With ties by bytes the
            first eight bytes, big-endian (all bits inverted if the smallest goes first); equal heads leave
            it to the rest of the bytes. With ties by order, a number that falls with the order.
        shapes: int64, which words the symbol touches; see `superwords`.
    """

    arena: np.ndarray
    starts: np.ndarray
    heads: np.ndarray
    shapes: np.ndarray


@uncounted_part
def _compare_symbols(x, y, tokens, tie):
    """Positive if symbol x goes before y, negative if after it, 0 if they are the same."""
    if x == y:
        return np.int64(0)
    head_x, head_y = load(tokens.heads, x), load(tokens.heads, y)
    if head_x != head_y:
        return np.int64(1) if head_x > head_y else np.int64(-1)
    start_x, start_y = tokens.starts[x], tokens.starts[y]
    size_x, size_y = tokens.starts[x + 1] - start_x, tokens.starts[y + 1] - start_y
    for i in range(min(size_x, size_y)):
        difference = np.int64(tokens.arena[start_x + i]) - np.int64(tokens.arena[start_y + i])
        if difference != 0:
            return tie * difference
    return tie * (size_x - size_y)


@uncounted_part
def _goes_before(count_1, pair_1, count_2, pair_2, records, tokens, tie):
    """Whether pair 1 goes before pair 2: the larger count, then the rule for the left and right symbols."""
    if count_1 != count_2:
        return count_1 > count_2
    left_1, right_1 = pair_parts(load(records, FIELDS * pair_1 + KEY))
    left_2, right_2 = pair_parts(load(records, FIELDS * pair_2 + KEY))
    x, y = (right_1, right_2) if left_1 == left_2 else (left_1, left_2)
    return _compare_symbols(x, y, tokens, tie) > 0


@uncounted_loop
def _rise(i, heap, records, tokens, tie):
    """Move entry i of the heap up to its place."""
    count, pair = heap[2 * i], heap[2 * i + 1]
    while i > 0:
        parent = (i - 1) >> 1
        if not _goes_before(count, pair, heap[2 * parent], heap[2 * parent + 1], records, tokens, tie):
            break
        heap[2 * i], heap[2 * i + 1] = heap[2 * parent], heap[2 * parent + 1]
        i = parent
    heap[2 * i], heap[2 * i + 1] = count, pair


@uncounted_part
def _sink(size, heap, records, tokens, tie):
    """Move the top of the heap to its place: down to the end of the best branch, then up."""
    count, pair = heap[0], heap[1]
    i, child = np.int64(0), np.int64(1)
    while child < size:
        if child + 1 < size and _goes_before(
            heap[2 * child + 2],
            heap[2 * child + 3],
            heap[2 * child],
            heap[2 * child + 1],
            records,
            tokens,
            tie,
        ):
            child += 1
        heap[2 * i], heap[2 * i + 1] = heap[2 * child], heap[2 * child + 1]
        i, child = child, 2 * child + 1
    heap[2 * i], heap[2 * i + 1] = count, pair
    _rise(i, heap, records, tokens, tie)


@uncounted_part
def into_bucket(pair, count, buckets, records):
    """Enter a pair that the present level does not need yet."""
    bucket = min(count, np.int64(HEAP_COUNT))
    records[FIELDS * pair + NEXT] = buckets[bucket]
    buckets[bucket] = pair + 1


@uncounted_part
def _onto_heap(pair, count, heap, records, tokens, state):
    size = state[HEAP_SIZE]
    state[HEAP_SIZE] = size + 1
    heap[2 * size], heap[2 * size + 1] = count, pair
    _rise(size, heap, records, tokens, state[TIE])


@uncounted_part
def enter_queue(pair, count, queue, records, tokens, state):
    """Enter a new pair."""
    if count >= state[LEVEL]:
        _onto_heap(pair, count, queue.heap, records, tokens, state)
    else:
        into_bucket(pair, count, queue.buckets, records)


@uncounted_part
def _open_levels(queue, records, tokens, state):
    """Go down to the next level that has pairs and make its bucket the heap; others move to their bucket."""
    while state[HEAP_SIZE] == 0 and state[LEVEL] > min(state[THRESHOLD], np.int64(HEAP_COUNT)):
        state[LEVEL] -= 1
        pair = np.int64(queue.buckets[state[LEVEL]]) - 1
        queue.buckets[state[LEVEL]] = 0
        while pair >= 0:
            following = records[FIELDS * pair + NEXT] - 1
            count = records[FIELDS * pair + COUNT]
            if count >= state[THRESHOLD]:
                enter_queue(pair, count, queue, records, tokens, state)
            pair = following


@uncounted_part
def take_best(queue, records, tokens, state):
    """Take the pair that goes next out of the queue; -1 when none reaches the threshold."""
    heap = queue.heap
    while True:
        if state[HEAP_SIZE] == 0:
            _open_levels(queue, records, tokens, state)
            if state[HEAP_SIZE] == 0:
                return np.int64(-1)
        counted, pair = heap[0], heap[1]
        count = records[FIELDS * pair + COUNT]
        if counted != count and count >= max(np.int64(HEAP_COUNT), state[THRESHOLD]):
            heap[0] = count
        else:
            state[HEAP_SIZE] -= 1
            last = state[HEAP_SIZE]
            heap[0], heap[1] = heap[2 * last], heap[2 * last + 1]
            if counted != count and count >= state[THRESHOLD]:
                into_bucket(pair, count, queue.buckets, records)
        _sink(state[HEAP_SIZE], heap, records, tokens, state[TIE])
        if counted == count:
            return pair
