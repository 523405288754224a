# ruff: noqa: ANN001, ANN202  (compiled functions: their arguments are arrays and numbers)
r"""The same as attention_decode.attend_slots_reference on a CPU: one compiled call for all slots of a layer.

    for every slot, key head g and query head of g:
        score_s = scale q . key_s                          one pass over the keys
        p_s     = exp(score_s - largest)                   e^x as 2^n 2^f: n moved into the exponent's bits,
        out     = sum over s of p_s value_s / sum of p_s   2^f a polynomial, so that many run at once

Tensor operations take microseconds to start and each slot has a past of its own length; here a slot costs
what its own keys and values cost to read. The order of every sum depends on the slot's own length alone.

2^f for |f| <= 1/2 by its Taylor series to f^7: the rest is below (ln(2) / 2)^8 / 8! = 5e-9 of it, less than
float32 can tell.

Source: the two passes are those of attention_reference; e^x: Cody and Waite 1980, Software Manual for the
Elementary Functions, chapter 6.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from scratchlm.kernels.numba_lists import compiled
from scratchlm.kernels.rows_numba import columns, mix

FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in the order that fills the processor's vectors; infinities and NaN stay what they are."""

_LOG2E = np.float32(math.log2(math.e))
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(math.log(2) ** power / math.factorial(power)) for power in range(1, 8)
)
_LOWEST = np.float32(-126.0)
"""The smallest exponent of a float32 that is not denormal: what is less becomes 2^-126, as good as 0."""


@intrinsic
def _float_of_bits(typing_context, bits):
    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@compiled(fastmath=FAST_MATH)
def exp_negative(x):  # noqa: ANN201 - a number
    """e^x for x <= 0."""
    y = max(x * _LOG2E, _LOWEST)
    n = np.int32(y - np.float32(0.5))  # truncation towards 0 of a negative number: the nearest whole one
    f = y - np.float32(n)
    power = _C7
    power = power * f + _C6
    power = power * f + _C5
    power = power * f + _C4
    power = power * f + _C3
    power = power * f + _C2
    power = power * f + _C1
    power = power * f + np.float32(1.0)
    return power * _float_of_bits((n + np.int32(127)) << np.int32(23))


@compiled(fastmath=FAST_MATH)
def _prepare(x, out, gain, eps, cos, sin):
    """Normalise (if there is a gain) and turn (if there are angles) one head's vector."""
    width = x.shape[0]
    factor = np.float32(1.0)
    if gain.shape[0]:
        total = np.float32(0.0)
        for i in range(width):
            total += x[i] * x[i]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)
    for i in range(width):
        out[i] = x[i] * factor * (gain[i] if gain.shape[0] else np.float32(1.0))
    for pair in range(cos.shape[0]):
        a, b = out[2 * pair], out[2 * pair + 1]
        out[2 * pair] = a * cos[pair] - b * sin[pair]
        out[2 * pair + 1] = a * sin[pair] + b * cos[pair]


@compiled(fastmath=FAST_MATH)
def _to_weights(scores, scale, softcap, slope):
    """Turn products of a query with its keys into e^(score - largest), in place; return their sum."""
    last = scores.shape[0] - 1
    for s in range(scores.shape[0]):
        scores[s] *= scale
    if softcap > 0:
        for s in range(scores.shape[0]):
            scores[s] = softcap * np.tanh(scores[s] / softcap)
    if slope != 0:
        for s in range(scores.shape[0]):
            scores[s] -= slope * np.float32(last - s)
    largest = scores[0]
    for s in range(scores.shape[0]):
        largest = max(largest, scores[s])
    for s in range(scores.shape[0]):
        scores[s] = exp_negative(scores[s] - largest)
    sum_ = np.float32(0.0)
    for s in range(scores.shape[0]):
        sum_ += scores[s]
    return sum_


@compiled(fastmath=FAST_MATH)
def _attend(queries, keys, values, first, last, scores, out, scale, softcap, slopes):
    """The query heads of one key head over the keys first ... last."""
    columns(queries, keys, scores, first, last + 1)
    for h in range(queries.shape[0]):
        slope = slopes[h] if slopes.shape[0] else np.float32(0.0)
        sum_ = _to_weights(scores[h, first : last + 1], scale, softcap, slope)
        mix(scores[h], values, out[h], first, last + 1)
        for i in range(out.shape[1]):
            out[h, i] /= sum_


@compiled(fastmath=FAST_MATH)
def attend_slots(
    q, k, v, keys, values, slots, positions, out, scores, turned, scale, window, softcap, slopes, cos, sin,
    q_gain, k_gain, eps,
) -> None:  # fmt: skip
    """Do what attend_slots_reference does, on arrays, into `out`; absent settings are empty or 0.

    Row r of q, k and v belongs to slot slots[r]; rows of one slot, in order, see each other's keys.
    `scores` (repeats, capacity) and `turned` (repeats, d_head) are room for the heads of one key head.
    """
    num_heads, num_groups = q.shape[1], k.shape[1]
    repeats = num_heads // num_groups
    for row in range(positions.shape[0]):
        slot, last = slots[row], positions[row]
        if last < 0:
            out[row] = 0
            continue
        first = 0 if window == 0 else max(0, last + 1 - window)
        angle = last if cos.shape[0] else 0
        cos_row, sin_row = cos[angle : angle + 1].ravel(), sin[angle : angle + 1].ravel()
        for g in range(num_groups):
            _prepare(k[row, g], keys[slot, g, last], k_gain, eps, cos_row, sin_row)
            values[slot, g, last] = v[row, g]
            heads = slice(g * repeats, (g + 1) * repeats)
            for h in range(repeats):
                _prepare(q[row, g * repeats + h], turned[h], q_gain, eps, cos_row, sin_row)
            _attend(
                turned, keys[slot, g], values[slot, g], first, last, scores, out[row, heads], scale, softcap,
                slopes[heads],
            )  # fmt: skip
