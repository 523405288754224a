# ruff: noqa: ANN001, ANN202  (compiled functions: their arguments are arrays and numbers)
r"""A few rows x and a matrix W as it lies in memory in, x W^T out: the product that writing is made of.

          W   (d_out, d_in)                 a tile: `rows` rows of x meet `columns` rows of W
        .-------------.
        | n  ======== |  LANES numbers      every pair (row, column) has an accumulator of LANES numbers,
        | n' ======== |  at a time          lane l of it sums x[l] w[l] + x[l + LANES] w[l + LANES] + ...
        '-------------'
    x   m  ========                         then the lanes are folded: upper half onto lower half, until one
        m' ========                         number is left; of all accumulators at once, so that no lane idles

A library packs a matrix before it multiplies, or walks through it for one row at a time: with 8 rows both
leave most of the processor's arithmetic unused. Here W is read once, in place, and met by 8 rows from the
nearest cache: 16 sums and 10 loads a step. The order in which an element is summed depends on d_in
alone, never on the other rows, nor on the tile. One thread: a core that is used does as much as several that
wait for each other.

Other files inline these functions, and Numba's cache does not notice a change here: whoever makes one empties
the caches (`find src -name "*.nb?" -delete`).

Source: Goto and van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication,
https://doi.org/10.1145/1356052.1356053, section 4: what is reused lies in registers and the nearest cache.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from scratchlm.kernels.numba_lists import compiled

LANES = 16
"""Numbers in an accumulator: 512 bits; a processor of narrower vectors takes several for one."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)

BLOCK = 32
"""Rows of W that all rows of x meet before the next ones: 32 KB with d_in 256, within reach of all tiles."""

AHEAD, FAR = 8, 4096
"""Rows that are asked for ahead, and the most numbers: 16 KB. Products of 17 MB of matrices with 8 rows took
1.30 ms without, 0.71, 0.56, 0.78 and 0.59 ms with 4, 8, 16 and 32 rows of 1 KB."""


def _tile(rows: int, columns: int) -> Callable[..., Any]:
    """Return a compiled tile: out[i : i + rows, j : j + columns] = x[i : i + rows] W[j : j + columns]^T."""

    @intrinsic
    def tile(typing_context, x, w, out, i, j):
        def code(context, builder, signature, arguments):
            arrays = [make_array(signature.args[n])(context, builder, arguments[n]) for n in range(3)]
            x_rows = [_row(builder, arrays[0], arguments[3], r) for r in range(rows)]
            w_rows = [_row(builder, arrays[1], arguments[4], c) for c in range(columns)]
            depth = cgutils.unpack_tuple(builder, arrays[0].shape)[1]
            sums = _accumulate(builder, x_rows, w_rows, depth)
            folded = _fold(builder, sums)
            for r in range(rows):
                start = _row(builder, arrays[2], arguments[3], r)
                place = builder.gep(start, [arguments[4]])
                part = _lanes(builder, folded, folded, [*range(r * columns, (r + 1) * columns)])
                _store(builder, part, place)
            return context.get_dummy_value()

        return types.none(x, w, out, types.intp, types.intp), code

    return tile


def _row(builder, array, first, number):
    """The address of row first + number of a matrix."""
    width = cgutils.unpack_tuple(builder, array.shape)[1]
    row = builder.add(first, ir.Constant(first.type, number))
    return builder.gep(array.data, [builder.mul(row, width)])


def _load(builder, start, k):
    place = builder.bitcast(builder.gep(start, [k]), _VECTOR.as_pointer())
    return builder.load(place, align=4)


def _prefetch(builder, start, k, ahead):
    """Ask for numbers that are needed soon; what lies behind a matrix's end is not read."""
    bits = ir.IntType(32)
    place = builder.bitcast(builder.gep(builder.gep(start, [ahead]), [k]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, bits, bits, bits])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [place, bits(0), bits(3), bits(1)])  # to read, keep near, data


def _store(builder, vector, place):
    builder.store(vector, builder.bitcast(place, vector.type.as_pointer()), align=4)


def _accumulate(builder, x_rows, w_rows, depth):
    """Sum products over whole vectors; the accumulators, row by row."""
    size = depth.type
    places = _zeros(builder, len(x_rows) * len(w_rows))
    step = ir.Constant(size, LANES)
    whole = builder.sub(depth, builder.urem(depth, step))
    ahead, far = builder.mul(depth, ir.Constant(size, AHEAD)), ir.Constant(size, FAR)
    ahead = builder.select(builder.icmp_signed("<", ahead, far), ahead, far)
    with cgutils.for_range_slice(builder, ir.Constant(size, 0), whole, step, intp=size) as (k, _):
        w_parts = [_load(builder, start, k) for start in w_rows]
        for start in w_rows:
            _prefetch(builder, start, k, ahead)
        for r, start in enumerate(x_rows):
            x_part = _load(builder, start, k)
            for c, w_part in enumerate(w_parts):
                _add_product(builder, x_part, w_part, places[r * len(w_rows) + c])
    return [builder.load(place) for place in places]


def _zeros(builder, number):
    """Places of accumulators, all zero; the compiler keeps them in registers."""
    places = [cgutils.alloca_once(builder, _VECTOR) for _ in range(number)]
    for place in places:
        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), place)
    return places


def _add_product(builder, a, b, place):
    """Add a b to the vector at a place, rounded once."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    builder.store(builder.call(fma, [a, b, builder.load(place)]), place)


def _repeated(builder, number):
    """A vector of one number."""
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, number, ir.IntType(32)(0))
    return _lanes(builder, one, one, [0] * LANES)


def _lanes(builder, a, b, numbers):
    """Some lanes of two vectors laid end to end."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers))


def _fold(builder, vectors):
    """Add up the lanes of each vector, upper half onto lower half; all sums in one vector, in order.

    Two vectors fold into one that holds both halves, four into two and then one, ...: a tree. What is left of
    the width when one vector is left is folded within it.
    """
    width = LANES
    while width > 1:
        pairs = [*zip(vectors[::2], vectors[1::2], strict=True)] if len(vectors) > 1 else [vectors * 2]
        lanes = LANES * 2 if len(vectors) > 1 else vectors[0].type.count
        lower = [start + lane for start in range(0, lanes, width) for lane in range(width // 2)]
        upper = [lane + width // 2 for lane in lower]
        vectors = [
            builder.fadd(_lanes(builder, *pair, lower), _lanes(builder, *pair, upper)) for pair in pairs
        ]
        width //= 2
    return vectors[0]


_8_BY_2, _4_BY_4, _1_BY_8 = _tile(8, 2), _tile(4, 4), _tile(1, 8)
_8_BY_1, _4_BY_1, _1_BY_1 = _tile(8, 1), _tile(4, 1), _tile(1, 1)


@compiled()
def columns(x, w, out, first, last) -> None:
    """All rows of x against the rows first ... last - 1 of W."""
    rows, depth = x.shape
    i = 0
    while i + 8 <= rows:
        j = first
        while j + 2 <= last:
            _8_BY_2(x, w, out, i, j)
            j += 2
        while j < last:
            _8_BY_1(x, w, out, i, j)
            j += 1
        i += 8
    while i + 4 <= rows:
        j = first
        while j + 4 <= last:
            _4_BY_4(x, w, out, i, j)
            j += 4
        while j < last:
            _4_BY_1(x, w, out, i, j)
            j += 1
        i += 4
    while i < rows:
        j = first
        while j + 8 <= last:
            _1_BY_8(x, w, out, i, j)
            j += 8
        while j < last:
            _1_BY_1(x, w, out, i, j)
            j += 1
        i += 1
    for k in range(depth - depth % LANES, depth):
        for i in range(rows):
            for j in range(first, last):
                out[i, j] += x[i, k] * w[j, k]


def _mixture(columns: int) -> Callable[..., Any]:
    """Return compiled code: out[j : j + columns LANES] = sum over first <= s < last of p[s] v[s, j : ...]."""

    @intrinsic
    def mixture(typing_context, p, v, out, first, last, j):
        def code(context, builder, signature, arguments):
            p_row, v_rows, out_row = (
                make_array(signature.args[n])(context, builder, arguments[n]) for n in range(3)
            )
            first, last, j = arguments[3:]
            places = _zeros(builder, columns)
            one = ir.Constant(first.type, 1)
            with cgutils.for_range_slice(builder, first, last, one, intp=first.type) as (s, _):
                weight = _repeated(builder, builder.load(builder.gep(p_row.data, [s])))
                start = builder.gep(_row(builder, v_rows, s, 0), [j])
                _prefetch(builder, _row(builder, v_rows, s, AHEAD), j, ir.Constant(j.type, 0))
                for n, place in enumerate(places):
                    part = _load(builder, start, ir.Constant(j.type, n * LANES))
                    _add_product(builder, weight, part, place)
            start = builder.gep(out_row.data, [j])
            for n, place in enumerate(places):
                _store(builder, builder.load(place), builder.gep(start, [ir.Constant(j.type, n * LANES)]))
            return context.get_dummy_value()

        return types.none(p, v, out, types.intp, types.intp, types.intp), code

    return mixture


_MIX_4, _MIX_2, _MIX_1 = _mixture(4), _mixture(2), _mixture(1)


@compiled()
def mix(p, v, out, first, last) -> None:
    """Write the sum of p[s] v[s] over first <= s < last into `out`, in the order of s."""
    width = out.shape[0]
    j = 0
    while j + 4 * LANES <= width:
        _MIX_4(p, v, out, first, last, j)
        j += 4 * LANES
    while j + 2 * LANES <= width:
        _MIX_2(p, v, out, first, last, j)
        j += 2 * LANES
    while j + LANES <= width:
        _MIX_1(p, v, out, first, last, j)
        j += LANES
    out[j:] = 0
    for s in range(first, last):
        for i in range(j, width):
            out[i] += p[s] * v[s, i]


@compiled()
def multiply(x, w, out) -> None:
    """Write x W^T into `out`; all float32, rows one after another in memory."""
    for first in range(0, w.shape[0], BLOCK):
        columns(x, w, out, first, min(first + BLOCK, w.shape[0]))
