r"""Up to 64 bytes -> symbols: all pairs of neighbours side by side in vector registers.

    lanes     t h     h e     e  \0   ...     rank of the pair that starts at each byte, NO_RANK for none
    smallest          x                        one instruction finds the smallest rank and its place
    alive     1 1 1   ->   1 1 0               the place that was merged away loses its bit

A symbol is a byte (0 to 255) or what a merge makes. A lane holds rank << 6 | place, so the smallest lane is
the merge that was learnt first, the leftmost on a tie. After a merge only its two neighbours are looked up
again. It is `bpe_reference.encode_piece_reference` without moving anything.

`pairs` holds left << 42 | right << 21 | rank in open addressing, all ones where it is free.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

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

LANES = 64
"""Longest piece that fits: one bit for each byte in `alive`."""

NO_PAIR = np.int32(NO_RANK << 6)
"""The lane of a pair that does not merge."""

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
    undefined = ir.Constant(ir.VectorType(_I32, count), ir.Undefined)
    lanes = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.shuffle_vector(builder.insert_element(undefined, value, _I32(0)), undefined, lanes)


def _loader(count):
    lanes = Lanes(count)

    def typed(typing_context, array):
        def code(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            pointer = builder.bitcast(data, ir.VectorType(_I32, count).as_pointer())
            loaded = builder.load(pointer)
            loaded.align = 4
            return loaded

        return lanes(array), code

    return typed


load_lanes_16 = intrinsic(_loader(16))
load_lanes_64 = intrinsic(_loader(64))


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


@intrinsic
def smallest(typing_context, lanes):
    """The smallest lane (all are >= 0)."""

    def code(context, builder, signature, arguments):
        count = signature.args[0].count
        name = f"llvm.vector.reduce.umin.v{count}i32"
        function_type = ir.FunctionType(_I32, [ir.VectorType(_I32, count)])
        function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
        return builder.zext(builder.call(function, arguments), _I64)

    return types.int64(lanes), code


@uncounted_part
def find_rank(pairs, left, right):
    """Rank of the merge of two symbols (int64), or NO_RANK."""
    mask = np.uint64(len(pairs) - 1)
    key = (np.uint64(left) << _SYMBOL_SHIFT) | np.uint64(right)
    slot = np.int64(((key * _GOLDEN) >> _HALF) & mask)
    while True:
        entry = load(pairs, slot)
        if entry >> _SYMBOL_SHIFT == key:
            return np.int64(entry & _RANK_MASK)
        if entry == ALL:
            return np.int64(NO_RANK)
        slot = np.int64(np.uint64(slot + 1) & mask)


@uncounted_loop
def fill_pairs(pairs, lefts, rights):
    """Enter the merges in order of rank; of equal pairs the first counts. `pairs` starts as all ones."""
    mask = np.uint64(len(pairs) - 1)
    for rank in range(len(lefts)):
        key = (np.uint64(lefts[rank]) << _SYMBOL_SHIFT) | np.uint64(rights[rank])
        slot = np.int64(((key * _GOLDEN) >> _HALF) & mask)
        while pairs[slot] != ALL and pairs[slot] >> _SYMBOL_SHIFT != key:
            slot = np.int64(np.uint64(slot + 1) & mask)
        if pairs[slot] == ALL:
            pairs[slot] = (key << _SYMBOL_SHIFT) | np.uint64(rank)


@uncounted_part
def read_bytes(text, start, num_bytes, num_lanes, byte_pairs, symbols, ranks):
    """Symbols of the bytes of a piece, and the lane of every pair of neighbours."""
    for i in range(num_lanes):
        store(ranks, i, NO_PAIR)
    left = np.int64(load(text, start))
    store(symbols, np.int64(0), np.int32(left))
    for i in range(1, num_bytes):
        right = np.int64(load(text, start + i))
        store(symbols, np.int64(i), np.int32(right))
        rank = np.int64(load(byte_pairs, (left << 8) | right))
        store(ranks, np.int64(i - 1), np.int32((rank << 6) | (i - 1)))
        left = right


@uncounted_part
def merge_lanes(lanes, num_bytes, symbols, pairs, products):
    """Merge until no pair has a rank; return the places that are left, as bits.

    Args:
        lanes: rank << 6 | place of each pair.
        num_bytes: 1 to 64.
        symbols: int32, the symbol at each place; changed.
        pairs: The table of pairs.
        products: int32, rank -> symbol.
    """
    alive = ALL >> np.uint64(64 - num_bytes)
    while True:
        best = smallest(lanes)
        if best >= NO_PAIR:
            return alive
        place = best & 63
        gone = place + 1 + lowest_bit(alive >> np.uint64(place + 1))
        alive ^= ONE << np.uint64(gone)
        symbol = np.int64(load(products, best >> 6))
        store(symbols, place, np.int32(symbol))
        lanes = with_lane(lanes, gone, NO_PAIR)
        lane = NO_PAIR
        behind = alive >> np.uint64(gone)
        if behind != NONE:
            right = np.int64(load(symbols, gone + lowest_bit(behind)))
            lane = np.int32((find_rank(pairs, symbol, right) << 6) | place)
        lanes = with_lane(lanes, place, lane)
        before = highest_bit(alive & ((ONE << np.uint64(place)) - ONE))
        if before >= 0:
            left = np.int64(load(symbols, before))
            lanes = with_lane(lanes, before, np.int32((find_rank(pairs, left, symbol) << 6) | before))
