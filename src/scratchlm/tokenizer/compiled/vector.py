r"""What Numba lacks, as LLVM instructions: 64-byte compares, unchecked loads and stores, prefetch.

    mask_equal(text, i, 32)         bit k of the result: is text[i + k] a blank?      (k = 0 .. 63)
    mask_below(text, i, 48, 10)     bit k: is text[i + k] one of the 10 values from 48 on (a digit)?

A set of characters in 64 bytes is then one uint64, and questions about neighbours are shifts. On a CPU with
AVX-512 each compare is one instruction; LLVM writes other CPUs' own (two AVX2 or four NEON compares).

None of these checks bounds: what an index may be is said where they are used. Positions are int64, bits
uint64; Numba turns a sum of the two into float64, so constants beside bits are wrapped: `np.uint64(1)`.

Source of the idea: Langdale and Lemire 2019, "Parsing Gigabytes of JSON per Second",
https://arxiv.org/abs/1902.08318, section 3.1.
"""

# ruff: noqa: ANN001, ANN002, ANN201, ANN202 - Numba infers the types; the docstrings name them

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from scratchlm.tokenizer.compiled.uncounted import uncounted_part

PADDING = 128
"""Bytes that must be readable behind the end of every text that a compiled loop sees."""

_I1, _I8, _I32, _I64 = (ir.IntType(width) for width in (1, 8, 32, 64))
_BYTES_16, _BYTES_64 = ir.VectorType(_I8, 16), ir.VectorType(_I8, 64)
_WORDS_16 = ir.VectorType(_I32, 16)
_MASK_64 = ir.VectorType(_I1, 64)

ONE, NONE, ALL = np.uint64(1), np.uint64(0), np.uint64(2**64 - 1)
"""Masks: the first bit, no bit, every bit."""


def _address(context, builder, array_type, array, index, pointer_type):
    """Pointer to array[index]; the index counts elements and is not checked."""
    start = builder.ptrtoint(context.make_array(array_type)(context, builder, array).data, _I64)
    offset = builder.mul(index, _I64(array_type.dtype.bitwidth // 8))
    return builder.inttoptr(builder.add(start, offset), pointer_type)


def _load(context, builder, array_type, array, index, vector_type):
    value = builder.load(_address(context, builder, array_type, array, index, vector_type.as_pointer()))
    value.align = 1
    return value


def _repeat(builder, value, vector_type):
    """A vector with `value` in every lane."""
    undefined = ir.Constant(vector_type, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(_I32, vector_type.count), [0] * vector_type.count)
    return builder.shuffle_vector(builder.insert_element(undefined, value, _I32(0)), undefined, lanes)


def _call(builder, name, result_type, *arguments):
    """Call one of LLVM's own functions."""
    signature = ir.FunctionType(result_type, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


@intrinsic
def mask_equal(typing_context, array, i, value):
    """Bit k of the result: array[i + k] == value, for 64 bytes."""

    def code(context, builder, signature, arguments):
        array, i, value = arguments
        loaded = _load(context, builder, signature.args[0], array, i, _BYTES_64)
        wanted = _repeat(builder, builder.trunc(value, _I8), _BYTES_64)
        return builder.bitcast(builder.icmp_unsigned("==", loaded, wanted), _I64)

    return types.uint64(array, types.int64, types.int64), code


@intrinsic
def mask_below(typing_context, array, i, first, count):
    """Bit k of the result: first <= array[i + k] < first + count, for 64 bytes."""

    def code(context, builder, signature, arguments):
        array, i, first, count = arguments
        loaded = _load(context, builder, signature.args[0], array, i, _BYTES_64)
        shifted = builder.sub(loaded, _repeat(builder, builder.trunc(first, _I8), _BYTES_64))
        limit = _repeat(builder, builder.trunc(count, _I8), _BYTES_64)
        return builder.bitcast(builder.icmp_unsigned("<", shifted, limit), _I64)

    return types.uint64(array, types.int64, types.int64, types.int64), code


@intrinsic
def mask_letters(typing_context, array, i):
    """Bit k of the result: array[i + k] is an ASCII letter, for 64 bytes."""

    def code(context, builder, signature, arguments):
        loaded = _load(context, builder, signature.args[0], arguments[0], arguments[1], _BYTES_64)
        small = builder.or_(loaded, _repeat(builder, _I8(0x20), _BYTES_64))
        shifted = builder.sub(small, _repeat(builder, _I8(ord("a")), _BYTES_64))
        return builder.bitcast(
            builder.icmp_unsigned("<", shifted, _repeat(builder, _I8(26), _BYTES_64)), _I64
        )

    return types.uint64(array, types.int64), code


@intrinsic
def write_bit_numbers(typing_context, output, k, base, mask):
    """Write base + (number of bit) to output[k:] (int32) for every set bit; return how many.

    Up to 64 entries behind output[k] are overwritten whatever the mask holds.
    """

    def code(context, builder, signature, arguments):
        output, k, base, mask = arguments
        numbers = ir.Constant(_BYTES_64, list(range(64)))
        chosen = builder.bitcast(mask, _MASK_64)
        packed = _call(
            builder,
            "llvm.experimental.vector.compress.v64i8",
            _BYTES_64,
            numbers,
            chosen,
            ir.Constant(_BYTES_64, [0] * 64),
        )
        count = _call(builder, "llvm.ctpop.i64", _I64, mask)
        start = _repeat(builder, builder.trunc(base, _I32), _WORDS_16)

        def write(quarter):
            lanes = ir.Constant(_WORDS_16, list(range(16 * quarter, 16 * quarter + 16)))
            part = builder.shuffle_vector(packed, ir.Constant(_BYTES_64, ir.Undefined), lanes)
            place = builder.add(k, _I64(16 * quarter))
            pointer = _address(context, builder, signature.args[0], output, place, _WORDS_16.as_pointer())
            builder.store(builder.add(builder.zext(part, _WORDS_16), start), pointer).align = 1

        write(0)
        with builder.if_then(builder.icmp_unsigned(">", count, _I64(16))):
            write(1)
            with builder.if_then(builder.icmp_unsigned(">", count, _I64(32))):
                write(2)
                write(3)
        return count

    return types.int64(output, types.int64, types.int64, types.uint64), code


@intrinsic
def pack_key(typing_context, array, i, length):
    """The `length` <= 15 bytes from array[i] on as two uint64, the length in the highest byte.

    Equal keys are equal pieces. Sixteen bytes from array[i] on are read.
    """

    def code(context, builder, signature, arguments):
        array, i, length = arguments
        loaded = _load(context, builder, signature.args[0], array, i, _BYTES_16)
        narrow = builder.trunc(length, _I8)
        inside = builder.icmp_unsigned(
            "<", ir.Constant(_BYTES_16, list(range(16))), _repeat(builder, narrow, _BYTES_16)
        )
        kept = builder.select(inside, loaded, ir.Constant(_BYTES_16, [0] * 16))
        halves = builder.bitcast(builder.insert_element(kept, narrow, _I32(15)), ir.VectorType(_I64, 2))
        parts = [builder.extract_element(halves, _I32(half)) for half in (0, 1)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.uint64, 2)(array, types.int64, types.int64), code


@intrinsic
def load(typing_context, array, i):
    """array[i] without a check and without counting from the end; any integer array."""

    def code(context, builder, signature, arguments):
        kind = ir.IntType(signature.args[0].dtype.bitwidth)
        value = builder.load(_address(context, builder, signature.args[0], *arguments, kind.as_pointer()))
        value.align = signature.args[0].dtype.bitwidth // 8
        return value

    return array.dtype(array, types.int64), code


@intrinsic
def store(typing_context, array, i, value):
    """array[i] = value without a check; the value has the array's type."""

    def code(context, builder, signature, arguments):
        array, i, value = arguments
        kind = ir.IntType(signature.args[0].dtype.bitwidth)
        pointer = _address(context, builder, signature.args[0], array, i, kind.as_pointer())
        builder.store(value, pointer).align = signature.args[0].dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), code


@intrinsic
def load_8_bytes(typing_context, array, i):
    """The uint64 whose low byte is at array[i]; the index counts elements, 8 bytes are read."""

    def code(context, builder, signature, arguments):
        return _load(context, builder, signature.args[0], *arguments, _I64)

    return types.uint64(array, types.int64), code


@intrinsic
def store_8_bytes(typing_context, array, i, value):
    """Write a uint64 from array[i] on; the index counts elements, 8 bytes are written."""

    def code(context, builder, signature, arguments):
        array, i, value = arguments
        pointer = _address(context, builder, signature.args[0], array, i, _I64.as_pointer())
        builder.store(value, pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), code


@intrinsic
def prefetch(typing_context, array, i):
    """Ask for the cache line of array[i]; never fails."""

    def code(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments, _I8.as_pointer())
        signature_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, signature_type, "llvm.prefetch.p0")
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), code


@intrinsic
def lowest_bit(typing_context, mask):
    """Number of the lowest set bit; 64 when there is none."""

    def code(context, builder, signature, arguments):
        return _call(builder, "llvm.cttz.i64", _I64, arguments[0], _I1(0))

    return types.int64(types.uint64), code


@intrinsic
def highest_bit(typing_context, mask):
    """Number of the highest set bit; -1 when there is none."""

    def code(context, builder, signature, arguments):
        return builder.sub(_I64(63), _call(builder, "llvm.ctlz.i64", _I64, arguments[0], _I1(0)))

    return types.int64(types.uint64), code


@intrinsic
def count_bits(typing_context, mask):
    """Number of set bits."""

    def code(context, builder, signature, arguments):
        return _call(builder, "llvm.ctpop.i64", _I64, arguments[0])

    return types.int64(types.uint64), code


@intrinsic
def match_pairs(typing_context, array, i, first, second):
    """Bit k of the result: array[i + k] == first and array[i + k + 1] == second, for 16 int32."""

    def code(context, builder, signature, arguments):
        array, i, first, second = arguments
        found = []
        for shift, value in ((0, first), (1, second)):
            place = builder.add(i, _I64(shift))
            loaded = _load(context, builder, signature.args[0], array, place, _WORDS_16)
            found.append(builder.icmp_unsigned("==", loaded, _repeat(builder, value, _WORDS_16)))
        return builder.zext(builder.bitcast(builder.and_(*found), ir.IntType(16)), _I64)

    return types.uint64(array, types.int64, types.int32, types.int32), code


@uncounted_part
def bits_between(low, high):
    """Bits low to high - 1, as far as they lie in 0 .. 63."""
    low, high = max(low, np.int64(0)), min(high, np.int64(64))
    if high <= low:
        return NONE
    ones = ALL if high - low == 64 else (ONE << np.uint64(high - low)) - ONE
    return ones << np.uint64(low)
