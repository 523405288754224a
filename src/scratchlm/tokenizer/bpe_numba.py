"""The compiled loops of splitting, counting, encoding: flat arrays of bytes in, of counts or ids out.

    split_gpt2      bytes                -> the end of every piece
    count_pieces    bytes, ends          -> each distinct piece once, with its count (open addressing)
    encode_pieces   bytes, ends, merges  -> ids; a distinct piece is merged once, then copied from the table

A table of pieces is five arrays. `slots` (its size a power of two) holds the number of an entry + 1, 0
where free. Entry e has `records[e]` = hash, start of its bytes in `arena`, length, value. `used` =
[entries, bytes of the arena, ids]. Kernels never allocate: where an array is too small they return early
and the caller grows it.

The plain twins are `pretokenize`, `collections.Counter` and `bpe_reference.encode_piece_reference`.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

log = logging.getLogger("scratchlm")

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3
"""Classes of characters."""

HASH, START, LENGTH, VALUE = 0, 1, 2, 3
"""Columns of a table's records."""

CACHED_BYTES = 64
"""Longer pieces are not cached: they rarely come back (words of 16 bytes and more are 0.1 % of English)."""

SHORT_BYTES = 48
"""Up to here the best pair is found by looking at all pairs; beyond, with a heap."""

MISSING = np.int64(2**63 - 1)
_LOW = np.int64(2**32 - 1)
_BASIS, _PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive keys
_SHIFT = np.uint64(32)


def compiled_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with Numba, without the GIL; the machine code is cached on disk where possible."""
    plain = inspect.unwrap(function)  # a shape-checking hook may have wrapped it
    try:
        return numba.njit(cache=True, nogil=True)(plain)
    except RuntimeError as error:
        log.warning("compiled code cannot be cached, each process compiles anew (seconds): %s", error)
        return numba.njit(nogil=True)(plain)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` into its callers: a call would count references to every array."""
    return numba.njit(nogil=True, forceinline=True)(inspect.unwrap(function))


# splitting


@inlined
def _class_at(buffer, i, classes):
    """Class of the character at byte i and the byte after it."""
    first = np.int64(buffer[i])
    if first < 0x80:
        return classes[first], i + 1
    second = np.int64(buffer[i + 1]) & 0x3F
    if first < 0xE0:
        return classes[((first & 0x1F) << 6) | second], i + 2
    third = np.int64(buffer[i + 2]) & 0x3F
    if first < 0xF0:
        return classes[((first & 0x0F) << 12) | (second << 6) | third], i + 3
    fourth = np.int64(buffer[i + 3]) & 0x3F
    return classes[((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth], i + 4


@compiled_loop
def _contraction(buffer, i, end):
    """Number of bytes of 's 't 'm 'd 're 've 'll at byte i (an apostrophe), or 0."""
    if i + 1 >= end:
        return 0
    first = buffer[i + 1]
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return 2
    if i + 2 >= end:
        return 0
    second = buffer[i + 2]
    if second == ord("e") and (first == ord("r") or first == ord("v")):
        return 3
    return 3 if first == ord("l") and second == ord("l") else 0


@compiled_loop
def split_gpt2(buffer, text_ends, classes, ends):
    """Split valid UTF-8 by GPT-2's pattern, each text for itself.

    Args:
        buffer: uint8, the texts one after the other.
        text_ends: int64, the end of each text.
        classes: uint8, class of every code point that occurs.
        ends: int64, as long as the buffer; receives the end of every piece.

    Returns:
        The number of pieces.
    """
    count = 0
    i = np.int64(0)
    for end in text_ends:
        while i < end:
            kind, after = _class_at(buffer, i, classes)
            size = _contraction(buffer, i, end) if buffer[i] == ord("'") else 0
            if kind == SPACE:
                next_kind = np.uint8(SPACE)
                if buffer[i] == ord(" ") and after < end:
                    next_kind, next_after = _class_at(buffer, after, classes)
                if next_kind != SPACE:  # the blank opens the run behind it
                    kind, after = next_kind, next_after
            first, last = i, i
            i = after
            while size == 0 and i < end:
                next_kind, after = _class_at(buffer, i, classes)
                if next_kind != kind:
                    break
                last, i = i, after
            if size > 0:
                i = first + size
            elif kind == SPACE and i < end and last > first:
                i = last  # \s+(?!\S): the last blank of a run is left for the next piece
            ends[count] = i
            count += 1
    return count


# a table of distinct pieces


@inlined
def _hash_piece(buffer, start, end):
    value = _BASIS
    for i in range(start, end):
        value = (value ^ np.uint64(buffer[i])) * _PRIME
    return np.int64(value ^ (value >> _SHIFT))


@compiled_loop
def _find_piece(buffer, start, end, hashed, slots, records, arena):
    """The slot that holds buffer[start:end], or the free slot where it belongs."""
    mask = len(slots) - 1
    slot = hashed & mask
    while slots[slot] != 0:
        entry = slots[slot] - 1
        if records[entry, HASH] == hashed and (records[entry, LENGTH] & _LOW) == end - start:
            offset = records[entry, START] - start
            i = start
            while i < end and arena[offset + i] == buffer[i]:
                i += 1
            if i == end:
                break
        slot = (slot + 1) & mask
    return slot


@compiled_loop
def _add_piece(buffer, start, end, hashed, slot, slots, records, arena, used):
    """Enter buffer[start:end] at a free slot and return the entry; the caller has made sure of room."""
    entry = used[0]
    slots[slot] = entry + 1
    records[entry, HASH] = hashed
    records[entry, START] = used[1]
    records[entry, LENGTH] = end - start
    for i in range(start, end):
        arena[used[1] + i - start] = buffer[i]
    used[0] += 1
    used[1] += end - start
    return entry


@compiled_loop
def count_pieces(buffer, ends, done, slots, records, arena, used):
    """Count the pieces from number `done` on; return how many are done: fewer if the table is full."""
    start = ends[done - 1] if done > 0 else 0
    for number in range(done, len(ends)):
        end = ends[number]
        hashed = _hash_piece(buffer, start, end)
        slot = _find_piece(buffer, start, end, hashed, slots, records, arena)
        if slots[slot] == 0:
            if used[0] >= len(records) or used[1] + end - start > len(arena):
                return number
            records[_add_piece(buffer, start, end, hashed, slot, slots, records, arena, used), VALUE] = 0
        records[slots[slot] - 1, VALUE] += 1
        start = end
    return len(ends)


# encoding


@inlined
def _merged(pairs, left, right):
    """What the pair of ids becomes, as rank << 32 | id, or MISSING. `pairs` holds key, value, key, value."""
    key = (np.int64(left) << 32) | np.int64(right)
    mask = len(pairs) // 2 - 1
    slot = np.int64((np.uint64(key) * _GOLDEN) >> _SHIFT) & mask
    while pairs[2 * slot] != key:
        if pairs[2 * slot] < 0:
            return MISSING
        slot = (slot + 1) & mask
    return pairs[2 * slot + 1]


@compiled_loop
def fill_pairs(pairs, lefts, rights, ids):
    """Enter the merges in order of rank; of equal pairs the first counts. `pairs` starts as all -1."""
    mask = len(pairs) // 2 - 1
    for rank in range(len(lefts)):
        key = (np.int64(lefts[rank]) << 32) | np.int64(rights[rank])
        slot = np.int64((np.uint64(key) * _GOLDEN) >> _SHIFT) & mask
        while pairs[2 * slot] >= 0 and pairs[2 * slot] != key:
            slot = (slot + 1) & mask
        if pairs[2 * slot] < 0:
            pairs[2 * slot] = key
            pairs[2 * slot + 1] = (np.int64(rank) << 32) | np.int64(ids[rank])


@compiled_loop
def _merge_short(symbols, size, pairs, values):
    """Merge symbols[:size] in place by looking at all pairs each time. Returns the new size."""
    for i in range(size - 1):
        values[i] = _merged(pairs, symbols[i], symbols[i + 1])
    while size > 1:
        best = 0
        for i in range(1, size - 1):
            if values[i] >> 32 < values[best] >> 32:
                best = i
        if values[best] == MISSING:
            break
        symbols[best] = values[best] & _LOW
        size -= 1
        for i in range(best + 1, size):
            symbols[i] = symbols[i + 1]
            values[i - 1] = values[i]
        if best > 0:
            values[best - 1] = _merged(pairs, symbols[best - 1], symbols[best])
        if best < size - 1:
            values[best] = _merged(pairs, symbols[best], symbols[best + 1])
    return size


@compiled_loop
def _sift_down(heap, size, i):
    item = heap[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item


@compiled_loop
def _push(heap, size, item):
    i = size
    while i > 0 and heap[(i - 1) // 2] > item:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = item


@compiled_loop
def _merge_long(symbols, size, pairs, heap, links):
    """Merge symbols[:size] in place in O(n log n): a linked list of places and a heap of rank << 32 | place.

    An entry of the heap is stale when the pair that now starts at its place has another rank.
    """
    before, after = links[0], links[1]
    waiting = 0
    for i in range(size):
        before[i], after[i] = i - 1, i + 1
        value = _merged(pairs, symbols[i], symbols[i + 1]) if i + 1 < size else MISSING
        if value != MISSING:
            heap[waiting] = (value >> 32 << 32) | i
            waiting += 1
    for i in range(waiting // 2 - 1, -1, -1):
        _sift_down(heap, waiting, i)
    while waiting > 0:
        place, rank = heap[0] & _LOW, heap[0] >> 32
        waiting -= 1
        heap[0] = heap[waiting]
        _sift_down(heap, waiting, np.int64(0))
        gone = after[place]
        if symbols[place] < 0 or gone >= size:
            continue
        value = _merged(pairs, symbols[place], symbols[gone])
        if value >> 32 != rank:
            continue
        symbols[place], symbols[gone] = value & _LOW, -1
        after[place] = after[gone]
        if after[gone] < size:
            before[after[gone]] = place
        for side in range(2):
            left = place if side else before[place]
            if left >= 0 and after[left] < size:
                value = _merged(pairs, symbols[left], symbols[after[left]])
                if value != MISSING:
                    _push(heap, waiting, (value >> 32 << 32) | left)
                    waiting += 1
    kept = 0
    for i in range(size):
        if symbols[i] >= 0:
            symbols[kept] = symbols[i]
            kept += 1
    return kept


@compiled_loop
def encode_pieces(
    buffer, ends, out, byte_ids, pairs, slots, records, arena, cached_ids, used, symbols, heap, links
):
    """Write the ids of all pieces to `out`, which has room for one id per byte. Returns their number.

    In the cache, LENGTH also carries the number of ids << 32, and VALUE is where they start in
    `cached_ids`. A full cache is emptied: memory stays bounded and the result never depends on it.
    `symbols`, `heap` and `links` have room for the longest piece (once, three times and twice).
    """
    count = np.int64(0)
    start = np.int64(0)
    for end in ends:
        size = end - start
        cached = size <= CACHED_BYTES
        hashed, slot = np.int64(0), np.int64(0)
        if cached:
            hashed = _hash_piece(buffer, start, end)
            slot = _find_piece(buffer, start, end, hashed, slots, records, arena)
            if slots[slot] != 0:
                entry = slots[slot] - 1
                first = records[entry, VALUE]
                for i in range(records[entry, LENGTH] >> 32):
                    out[count + i] = cached_ids[first + i]
                count += records[entry, LENGTH] >> 32
                start = end
                continue
        for i in range(size):
            symbols[i] = byte_ids[buffer[start + i]]
        if size <= SHORT_BYTES:
            num_ids = _merge_short(symbols, size, pairs, heap)
        else:
            num_ids = _merge_long(symbols, size, pairs, heap, links)
        for i in range(num_ids):
            out[count + i] = symbols[i]
        count += num_ids
        if cached:
            if used[0] >= len(records) or used[1] + size > len(arena) or used[2] + num_ids > len(cached_ids):
                for i in range(len(slots)):
                    slots[i] = 0
                used[0], used[1], used[2] = 0, 0, 0
                slot = hashed & (len(slots) - 1)
            entry = _add_piece(buffer, start, end, hashed, slot, slots, records, arena, used)
            records[entry, LENGTH] = size | (np.int64(num_ids) << 32)
            records[entry, VALUE] = used[2]
            for i in range(num_ids):
                cached_ids[used[2] + i] = symbols[i]
            used[2] += num_ids
        start = end
    return count
