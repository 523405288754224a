r"""A piece of any length -> ids, and where ids of pieces of 16 to 256 bytes are remembered.

    rank of the pair at each place      7 . 3 9 . . 3 1 | 5 . . 8 ...      level 0
    smallest of each 16                 1                 5       ...      level 1, and so on up to one 16

Beyond 63 bytes the ranks of all pairs lie in a tree in which every node is the smallest of its 16 children,
one vector instruction. The best pair is found from the top down, the leftmost where several are equal; a
merge changes three leaves and, as far as their minimum changes, the nodes above them. Which places are left
is a bit each, so neighbours are found by shifts. So n bytes take O(n log n), with log to the base 16: five
levels for a million bytes.

Source: the idea of a tree of winners is Knuth, The Art of Computer Programming 3, section 5.4.1.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from scratchlm.tokenizer.compiled.encode_short import (
    LONGEST_IN_LANES,
    NO_RANK,
    find_rank,
    merge_to_63,
)
from scratchlm.tokenizer.compiled.uncounted import uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    ONE,
    highest_bit,
    load,
    load_8_bytes,
    lowest_bit,
    store,
)

LONGEST_CACHED = 256
"""Longer pieces are not remembered: they hardly ever come back."""

LONG_USED, BYTES_USED, IDS_USED = 1, 2, 3
"""Places in `used`: entries of the long table, bytes in its arena, ids in the arena of ids."""

_GOLDEN, _OTHER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd numbers without pattern
_MIX, _HALF, _SLOT_SHIFT = np.uint64(29), np.uint64(32), np.uint64(28)
_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_WORDS_16 = ir.VectorType(_I32, 16)


def _load_16(context, builder, array_type, array, i):
    data = context.make_array(array_type)(context, builder, array).data
    loaded = builder.load(builder.bitcast(builder.gep(data, [i]), _WORDS_16.as_pointer()))
    loaded.align = 4
    return loaded


@intrinsic
def smallest_of_16_at(typing_context, array, i):
    """The smallest of array[i] to array[i + 15] (int32 >= 0)."""

    def code(context, builder, signature, arguments):
        loaded = _load_16(context, builder, signature.args[0], *arguments)
        name = "llvm.vector.reduce.umin.v16i32"
        function_type = ir.FunctionType(_I32, [_WORDS_16])
        return builder.call(
            builder.module.globals.get(name) or ir.Function(builder.module, function_type, name), [loaded]
        )

    return types.int32(array, types.int64), code


@intrinsic
def equal_of_16_at(typing_context, array, i, value):
    """Bit k of the result: array[i + k] == value, for 16 int32."""

    def code(context, builder, signature, arguments):
        loaded = _load_16(context, builder, signature.args[0], *arguments[:2])
        undefined = ir.Constant(_WORDS_16, ir.Undefined)
        lanes = ir.Constant(_WORDS_16, [0] * 16)
        wanted = builder.shuffle_vector(
            builder.insert_element(undefined, arguments[2], _I32(0)), undefined, lanes
        )
        equal = builder.icmp_unsigned("==", loaded, wanted)
        return builder.zext(builder.bitcast(equal, ir.IntType(16)), _I64)

    return types.uint64(array, types.int64, types.int32), code


@intrinsic
def copy_entries(typing_context, target, i, source, j, count):
    """target[i : i + count] = source[j : j + count], arrays of the same type."""

    def code(context, builder, signature, arguments):
        target, i, source, j, count = arguments
        kinds = signature.args[0], signature.args[2]
        to, of = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [place])
            for kind, array, place in ((kinds[0], target, i), (kinds[1], source, j))
        )
        cgutils.raw_memcpy(builder, to, of, count, kinds[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), code


# merging


@uncounted_part
def _plant(ranks, levels, num_places):
    """Lay the levels out behind each other, fill what no place uses, compute the nodes. Return the top."""
    level, start, count = np.int64(0), np.int64(0), np.int64(num_places)
    while True:
        store(levels, level, start)
        padded = (count + 15) & ~np.int64(15)
        for i in range(count, padded):
            store(ranks, start + i, np.int32(NO_RANK))
        if padded <= 16:
            return level
        for node in range(padded >> 4):
            store(ranks, start + padded + node, smallest_of_16_at(ranks, start + 16 * node))
        level, start, count = level + 1, start + padded, padded >> 4


@uncounted_part
def _set_rank(ranks, levels, top, place, rank):
    """Change one leaf and the nodes above it."""
    store(ranks, place, np.int32(rank))
    node = place
    for level in range(top):
        least = smallest_of_16_at(ranks, load(levels, np.int64(level)) + (node & ~np.int64(15)))
        node >>= 4
        parent = load(levels, np.int64(level + 1)) + node
        if load(ranks, parent) == least:
            break
        store(ranks, parent, least)


@uncounted_part
def _best_place(ranks, levels, top, rank):
    """The leftmost place whose pair has this rank, the smallest of all."""
    node = np.int64(0)
    for level in range(top, -1, -1):
        node *= 16
        node += lowest_bit(equal_of_16_at(ranks, load(levels, np.int64(level)) + node, rank))
    return node


@uncounted_part
def _place_behind(alive, place):
    """The next place that is left; one is set behind the last."""
    word = (place + 1) >> 6
    bits = load(alive, word) & (ALL << np.uint64((place + 1) & 63))
    while bits == NONE:
        word += 1
        bits = load(alive, word)
    return (word << 6) + lowest_bit(bits)


@uncounted_part
def _place_before(alive, place):
    """The place before that is left, -1 before the first."""
    if place == 0:
        return np.int64(-1)
    word = place >> 6
    bits = load(alive, word) & ((ONE << np.uint64(place & 63)) - ONE)
    while bits == NONE:
        word -= 1
        bits = load(alive, word)
    return (word << 6) + highest_bit(bits)


@uncounted_part
def _read_tree(text, start, num_bytes, byte_pairs, work):
    """Every byte a symbol, every pair of neighbours a leaf; return the tree's top level."""
    symbols, ranks, alive, levels = work
    for i in range(num_bytes):
        value = np.int64(load(text, start + i))
        store(symbols, np.int64(i), np.int32(value))
        store(ranks, np.int64(i), load(byte_pairs, (value << 8) | np.int64(load(text, start + i + 1))))
    store(ranks, np.int64(num_bytes - 1), np.int32(NO_RANK))
    for word in range(num_bytes // 64 + 1):
        store(alive, np.int64(word), ALL)
    return _plant(ranks, levels, num_bytes)


@uncounted_part
def _merge_tree(text, start, num_bytes, merges, work):
    """Merge a piece of any length; `alive` has the places that are left, and one behind them."""
    byte_pairs, pairs, products, _ = merges
    symbols, ranks, alive, levels = work
    top = _read_tree(text, start, num_bytes, byte_pairs, work)
    while True:
        rank = smallest_of_16_at(ranks, load(levels, top))
        if rank == NO_RANK:
            return
        place = _best_place(ranks, levels, top, rank)
        gone = _place_behind(alive, place)
        store(alive, gone >> 6, load(alive, gone >> 6) & ~(ONE << np.uint64(gone & 63)))
        symbol = np.int64(load(products, np.int64(rank)))
        store(symbols, place, np.int32(symbol))
        _set_rank(ranks, levels, top, gone, np.int64(NO_RANK))
        right, new_rank = _place_behind(alive, gone), np.int64(NO_RANK)
        if right < num_bytes:
            new_rank = find_rank(pairs, symbol, np.int64(load(symbols, right)))
        _set_rank(ranks, levels, top, place, new_rank)
        left = _place_before(alive, place)
        if left >= 0:
            new_rank = find_rank(pairs, np.int64(load(symbols, left)), symbol)
            _set_rank(ranks, levels, top, left, new_rank)


@uncounted_part
def _merge_long(text, start, num_bytes, output, written, merges, work):
    """Merge a piece of more than 15 bytes and write its ids; return where they end."""
    symbols, _, alive, _ = work
    ids = merges[3]
    if num_bytes <= LONGEST_IN_LANES:
        return merge_to_63(text, start, num_bytes, output, written, merges, symbols)
    _merge_tree(text, start, num_bytes, merges, work)
    place = np.int64(0)
    while place < num_bytes:
        store(output, written, load(ids, np.int64(load(symbols, place))))
        written += 1
        place = _place_behind(alive, place)
    return written


# remembering


@uncounted_part
def slot_of(low, high, mask):
    """Where in a table the search for a key of two uint64 starts."""
    mixed = (low * _GOLDEN) ^ (high * _OTHER)
    mixed = (mixed ^ (mixed >> _HALF)) * _GOLDEN
    return np.int64((mixed >> _SLOT_SHIFT) & mask)


@uncounted_part
def hash_long(text, start, num_bytes):
    """A number that is never 0; 8 bytes a step, the last step overlaps the one before."""
    mixed = np.uint64(num_bytes) * _GOLDEN
    for i in range(0, num_bytes - 8, 8):
        mixed = (mixed ^ load_8_bytes(text, start + i)) * _GOLDEN
        mixed ^= mixed >> _MIX
    mixed = (mixed ^ load_8_bytes(text, start + num_bytes - 8)) * _GOLDEN
    return (mixed ^ (mixed >> _MIX)) | ONE


@uncounted_part
def _equal(text, start, long_bytes, place, num_bytes):
    last = num_bytes - 8
    if load_8_bytes(text, start + last) != load_8_bytes(long_bytes, place + last):
        return False
    for i in range(0, last, 8):
        if load_8_bytes(text, start + i) != load_8_bytes(long_bytes, place + i):
            return False
    return True


@uncounted_part
def find_long(text, start, num_bytes, hashed, long_slots, long_bytes):
    """Where in `long_slots` a piece of at least 16 bytes is, or the free slot where it belongs."""
    mask = np.uint64(len(long_slots) - 4)
    slot = slot_of(hashed, NONE, mask)
    while load(long_slots, slot) != NONE:
        if load(long_slots, slot) == hashed and np.int64(load(long_slots, slot + 1)) >> 32 == num_bytes:
            place = np.int64(load(long_slots, slot + 2))
            if _equal(text, start, long_bytes, place, num_bytes):
                break
        slot = np.int64(np.uint64(slot + 4) & mask)
    return slot


@uncounted_part
def remember_long(text, start, num_bytes, hashed, slot, output, first, count, cache, used):
    """Enter a piece whose ids are output[first : first + count], if there is room."""
    _, long_slots, long_bytes, more_ids = cache
    bytes_used, ids_used = used[BYTES_USED], used[IDS_USED]
    if 2 * 4 * used[LONG_USED] >= len(long_slots):
        return
    if bytes_used + num_bytes + 8 > len(long_bytes) or ids_used + count > len(more_ids):
        return
    copy_entries(long_bytes, bytes_used, text, start, num_bytes)
    copy_entries(more_ids, ids_used, output, first, count)
    store(long_slots, slot, hashed)
    store(long_slots, slot + 1, np.uint64((num_bytes << 32) | count))
    store(long_slots, slot + 2, np.uint64(bytes_used))
    store(long_slots, slot + 3, np.uint64(ids_used))
    used[LONG_USED] += 1
    used[BYTES_USED] = bytes_used + num_bytes
    used[IDS_USED] = ids_used + count


@uncounted_part
def encode_long(text, start, num_bytes, longest_cached, output, written, merges, cache, used, work):
    """Write the ids of a piece of more than 15 bytes; return where they end."""
    _, long_slots, long_bytes, more_ids = cache
    hashed, slot = NONE, np.int64(0)
    if num_bytes <= longest_cached:
        hashed = hash_long(text, start, num_bytes)
        slot = find_long(text, start, num_bytes, hashed, long_slots, long_bytes)
        if load(long_slots, slot) != NONE:
            count = np.int64(load(long_slots, slot + 1)) & 0xFFFFFFFF
            copy_entries(output, written, more_ids, np.int64(load(long_slots, slot + 3)), count)
            return written + count
    end = _merge_long(text, start, num_bytes, output, written, merges, work)
    if num_bytes <= longest_cached:
        remember_long(text, start, num_bytes, hashed, slot, output, written, end - written, cache, used)
    return end
