r"""Up to 63 bytes -> ids: all pairs of neighbours side by side in vector registers.

    lanes     t h     h e     e  \0   ...     rank of the pair that starts at each byte, NO_RANK for none
    smallest          x                        one instruction finds the smallest rank and its place
    alive     1 1 1   ->   1 1 0               the place that was merged away loses its bit

A symbol is a byte (0 to 255) or what a merge makes. A lane holds rank << 6 | place, so the smallest lane is
the merge that was learnt first, the leftmost on a tie. After a merge only its two neighbours are looked up
again. It is `bpe_reference.encode_piece_reference` without moving anything.

`pairs` holds left << 42 | right << 21 | rank, all ones where it is free, in buckets of eight: a bucket is one
cache line and one comparison, and a full one goes on in the next.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np
from jaxtyping import UInt64
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from scratchlm.tokenizer.compiled.pages import zeroed_table
from scratchlm.tokenizer.compiled.uncounted import uncounted_loop, uncounted_part
from scratchlm.tokenizer.compiled.vector import (
    ALL,
    NONE,
    ONE,
    highest_bit,
    load,
    lowest_bit,
    store,
)

SYMBOL_BITS = 21
"""Two symbols and a rank share 64 bits: two million symbols, ten times the largest vocabulary in use."""

NO_RANK = (1 << SYMBOL_BITS) - 1
"""In place of a rank: the two do not merge."""

LONGEST_IN_LANES = 63
"""Longest piece that fits: one bit for each byte in `alive`, and one behind the last."""

NO_SYMBOL = np.int32(NO_RANK)
"""Stands before the first and behind the last symbol; no merge has it."""

BUCKET = 8
"""Pairs in a cache line of 64 bytes, which are compared at once."""

NO_PAIR = np.int32(NO_RANK << 6)
"""The lane of a pair that does not merge."""

_TWO = np.uint64(2)
_SYMBOL_SHIFT, _RANK_MASK = np.uint64(SYMBOL_BITS), np.uint64(NO_RANK)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive keys
_HALF = np.uint64(32)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Lanes(types.Type):
    """Numba's name for a vector of int32 that lives in registers."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Lanes({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_I32, fe_type.count))


def _repeated(builder, value, count):
    """A vector with `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    lanes = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.shuffle_vector(builder.insert_element(undefined, value, _I32(0)), undefined, lanes)


def _byte_loader(count):
    def typed(typing_context, text, i):
        def code(context, builder, signature, arguments):
            vector_type = ir.VectorType(ir.IntType(8), count)
            pointer = _pointer(context, builder, signature.args[0], *arguments, vector_type)
            loaded = builder.load(pointer)
            loaded.align = 1
            return builder.zext(loaded, ir.VectorType(_I32, count))

        return Lanes(count)(text, types.int64), code

    return typed


load_bytes_16 = intrinsic(_byte_loader(16))
load_bytes_64 = intrinsic(_byte_loader(64))


def _pointer(context, builder, array_type, array, i, pointee):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [i]), pointee.as_pointer())


@intrinsic
def store_lanes(typing_context, array, i, lanes):
    """Write all lanes from array[i] (int32) on."""

    def code(context, builder, signature, arguments):
        array, i, lanes = arguments
        pointer = _pointer(context, builder, signature.args[0], array, i, lanes.type)
        builder.store(lanes, pointer).align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), code


@intrinsic
def pair_lanes(typing_context, byte_pairs, lefts, rights, num_pairs):
    """byte_pairs[left << 8 | right] << 6 | lane in the first `num_pairs` lanes, NO_PAIR in the others."""

    def code(context, builder, signature, arguments):
        byte_pairs, lefts, rights, num_pairs = arguments
        count = signature.args[1].count
        vector_type = ir.VectorType(_I32, count)
        numbers = ir.Constant(vector_type, list(range(count)))
        used = builder.icmp_unsigned("<", numbers, _repeated(builder, builder.trunc(num_pairs, _I32), count))
        places = builder.or_(builder.shl(lefts, ir.Constant(vector_type, [8] * count)), rights)
        data = context.make_array(signature.args[0])(context, builder, byte_pairs).data
        ranks = ir.Constant(vector_type, [NO_RANK] * count)
        for lane in range(count):
            place = builder.zext(builder.extract_element(places, _I32(lane)), _I64)
            rank = builder.load(builder.gep(data, [place]))
            ranks = builder.insert_element(ranks, rank, _I32(lane))
        found = builder.or_(builder.shl(ranks, ir.Constant(vector_type, [6] * count)), numbers)
        return builder.select(used, found, ir.Constant(vector_type, [int(NO_PAIR)] * count))

    return lefts(byte_pairs, lefts, rights, types.int64), code


@intrinsic
def with_lane(typing_context, lanes, i, value):
    """The same lanes, but lane i is `value` (int32)."""

    def code(context, builder, signature, arguments):
        lanes, i, value = arguments
        count = signature.args[0].count
        numbers = ir.Constant(ir.VectorType(_I32, count), list(range(count)))
        chosen = builder.icmp_unsigned("==", numbers, _repeated(builder, builder.trunc(i, _I32), count))
        return builder.select(chosen, _repeated(builder, value, count), lanes)

    return lanes(lanes, types.int64, types.int32), code


def _smallest(builder, vector):
    """The smallest lane, all of which are >= 0."""
    name = f"llvm.vector.reduce.umin.v{vector.type.count}i{vector.type.element.width}"
    function_type = ir.FunctionType(vector.type.element, [vector.type])
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    return builder.call(function, [vector])


@intrinsic
def smallest(typing_context, lanes):
    """The smallest lane (all are >= 0)."""

    def code(context, builder, signature, arguments):
        return builder.zext(_smallest(builder, arguments[0]), _I64)

    return types.int64(lanes), code


@intrinsic
def _match_bucket(typing_context, pairs, i, key):
    """Bit k of the result: pairs[i + k] is this pair of symbols, for the entries of a bucket."""

    def code(context, builder, signature, arguments):
        pairs, i, key = arguments
        vector_type = ir.VectorType(_I64, BUCKET)
        loaded = builder.load(_pointer(context, builder, signature.args[0], pairs, i, vector_type))
        loaded.align = 8
        found = builder.lshr(loaded, ir.Constant(vector_type, [SYMBOL_BITS] * BUCKET))
        equal = builder.icmp_unsigned("==", found, _repeated(builder, key, BUCKET))
        return builder.zext(builder.bitcast(equal, ir.IntType(BUCKET)), _I64)

    return types.uint64(pairs, types.int64, types.uint64), code


@uncounted_part
def _bucket_of(pairs, key):
    return np.int64(((key * _GOLDEN) >> _HALF) & np.uint64(len(pairs) - BUCKET))


@uncounted_part
def find_rank(pairs, left, right):
    """Rank of the merge of two symbols (int64), or NO_RANK."""
    key = (np.uint64(left) << _SYMBOL_SHIFT) | np.uint64(right)
    bucket = _bucket_of(pairs, key)
    while True:
        found = _match_bucket(pairs, bucket, key)
        if found != NONE:
            return np.int64(load(pairs, bucket + lowest_bit(found)) & _RANK_MASK)
        if load(pairs, bucket + BUCKET - 1) == ALL:  # not full: the pair is nowhere else
            return np.int64(NO_RANK)
        bucket = (bucket + BUCKET) & (len(pairs) - 1)


def empty_pairs(num_merges: int) -> UInt64[np.ndarray, " entries"]:
    """A table of pairs for `fill_pairs`, at most half full."""
    pairs = zeroed_table(max(2 * BUCKET, 1 << (2 * num_merges).bit_length()))
    pairs.fill(2**64 - 1)
    return pairs


@uncounted_loop
def fill_pairs(pairs, lefts, rights):
    """Enter the merges in order of rank; of equal pairs the first counts. `pairs` is from `empty_pairs`."""
    for rank in range(len(lefts)):
        left, right = np.int64(lefts[rank]), np.int64(rights[rank])
        if find_rank(pairs, left, right) == NO_RANK:
            key = (np.uint64(left) << _SYMBOL_SHIFT) | np.uint64(right)
            slot = _bucket_of(pairs, key)
            while pairs[slot] != ALL:
                slot = (slot + 1) & (len(pairs) - 1)
            pairs[slot] = (key << _SYMBOL_SHIFT) | np.uint64(rank)


@uncounted_part
def merge_lanes(lanes, num_bytes, symbols, pairs, products):
    """Merge until no pair has a rank; return the places that are left, as bits.

    Before the first and behind the last symbol stands NO_SYMBOL, which merges with nothing, so both
    neighbours are looked up without asking whether there are any.

    Args:
        lanes: rank << 6 | place of each pair.
        num_bytes: 1 to 63.
        symbols: int32, the symbol of place i at i + 1; changed.
        pairs: The table of pairs.
        products: int32, rank -> symbol.
    """
    store(symbols, np.int64(0), NO_SYMBOL)
    store(symbols, num_bytes + 1, NO_SYMBOL)
    alive = ALL >> np.uint64(63 - num_bytes)
    while True:
        best = smallest(lanes)
        if best >= NO_PAIR:
            return alive ^ (ONE << np.uint64(num_bytes))
        place = best & 63
        behind = alive & ~((_TWO << np.uint64(place)) - ONE)
        gone, right = lowest_bit(behind), lowest_bit(behind & (behind - ONE))
        alive ^= ONE << np.uint64(gone)
        left = highest_bit(alive & ((ONE << np.uint64(place)) - ONE))
        symbol = np.int64(load(products, best >> 6))
        store(symbols, place + 1, np.int32(symbol))
        rank_right = find_rank(pairs, symbol, np.int64(load(symbols, right + 1)))
        rank_left = find_rank(pairs, np.int64(load(symbols, left + 1)), symbol)
        lanes = with_lane(lanes, gone, NO_PAIR)
        lanes = with_lane(lanes, place, np.int32((rank_right << 6) | place))
        lanes = with_lane(lanes, left, np.int32((rank_left << 6) | (left & 63)))


@uncounted_part
def write_alive(alive, symbols, ids, output, written):
    """Write the ids of the places that are left; return where they end."""
    while alive != NONE:
        store(output, written, load(ids, np.int64(load(symbols, lowest_bit(alive) + 1))))
        alive &= alive - ONE
        written += 1
    return written


@uncounted_part
def merge_to_15(text, start, num_bytes, output, written, merges, symbols):
    """Merge a piece of at most 15 bytes and write its ids; return where they end."""
    byte_pairs, pairs, products, ids = merges
    lefts, rights = load_bytes_16(text, start), load_bytes_16(text, start + 1)
    store_lanes(symbols, np.int64(1), lefts)
    lanes = pair_lanes(byte_pairs, lefts, rights, num_bytes - 1)
    alive = merge_lanes(lanes, num_bytes, symbols, pairs, products)
    return write_alive(alive, symbols, ids, output, written)


@uncounted_part
def merge_to_63(text, start, num_bytes, output, written, merges, symbols):
    """Merge a piece of at most 63 bytes and write its ids; return where they end."""
    byte_pairs, pairs, products, ids = merges
    lefts, rights = load_bytes_64(text, start), load_bytes_64(text, start + 1)
    store_lanes(symbols, np.int64(1), lefts)
    lanes = pair_lanes(byte_pairs, lefts, rights, num_bytes - 1)
    alive = merge_lanes(lanes, num_bytes, symbols, pairs, products)
    return write_alive(alive, symbols, ids, output, written)
