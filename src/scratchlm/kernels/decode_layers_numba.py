# ruff: noqa: ANN001, ANN202  (compiled functions: their arguments are arrays and numbers)
r"""Vectors of some slots' new tokens in, the same after all layers of a transformer out: one compiled call.

    for every layer:    x += W_o attend(W_q n, W_k n, W_v n)        n = norm1(x), rows of rows_numba.multiply
                        x += W_2 act(W_1 n [, W_3 n])               n = norm2(x)

A row is a token: its slot, its position. Rows are computed side by side but never meet, save that keys and
values are stored row after row before the next one looks: so several rows of one slot, in order, are a chunk
of its text, and a chunk's numbers have the bits that one token at a time would give them.

Each tensor operation costs microseconds before it computes anything: a token of a small model is a hundred of
them. Here everything is one function over addresses:

    table     a row for each layer, a column for each of FIELDS: where the weight lies, 0 if there is none
    numbers   a row for each layer: NUMBERS

The widths must be whole, as `decode_layers` says; what else a block may be (norms, placements, activations)
is written out in tensor operations in generate/layers.py, which this must equal up to rounding.

Source: model/block.py, model/feedforward.py, whose formulas these are.
"""

import numba
import numpy as np

from scratchlm.kernels.attention_decode_numba import FAST_MATH, attend_slots, exp_negative
from scratchlm.kernels.numba_lists import compiled, floats_at
from scratchlm.kernels.rows_numba import multiply

FIELDS = (
    "norm1", "q", "k", "v", "q_bias", "k_bias", "v_bias", "output", "output_bias", "norm2", "w1", "w1_bias",
    "w3", "w3_bias", "w2", "w2_bias", "q_gain", "k_gain", "keys", "values",
)  # fmt: skip
"""The table's columns; the two norms, the biases, w3 and the gains may be absent."""

NUMBERS = ("norm1_eps", "norm2_eps", "qk_eps", "scale")
"""What else is each layer's own."""

ACTIVATIONS = ("silu", "relu2")
"""What may stand between w1 and w2, by number; with w3 its product with w3's values."""

(
    _NORM1, _Q, _K, _V, _Q_BIAS, _K_BIAS, _V_BIAS, _OUTPUT, _OUTPUT_BIAS, _NORM2, _W1, _W1_BIAS, _W3,
    _W3_BIAS, _W2, _W2_BIAS, _Q_GAIN, _K_GAIN, _KEYS, _VALUES,
) = range(len(FIELDS))  # fmt: skip
_NORM1_EPS, _NORM2_EPS, _QK_EPS, _SCALE = range(len(NUMBERS))
_SILU = ACTIVATIONS.index("silu")


@compiled(fastmath=FAST_MATH)
def normalize(x, gain, eps, out) -> None:
    """Write each row of x with root mean square 1, times the gain at an address, into `out`."""
    width = x.shape[1]
    for row in range(x.shape[0]):
        total = np.float32(0.0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            out[row, i] = x[row, i] * factor
        if gain:
            gains = floats_at(gain)
            for i in range(width):
                out[row, i] *= gains[i]


@compiled()
def _product(x, weight, bias, out):
    """Write x W^T + b into `out`, W and b at their addresses."""
    multiply(x, numba.carray(floats_at(weight), (out.shape[1], x.shape[1])), out)
    if bias:
        offsets = floats_at(bias)
        for row in range(out.shape[0]):
            for i in range(out.shape[1]):
                out[row, i] += offsets[i]


@compiled()
def _add(x, branch):
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] += branch[row, i]


@compiled(fastmath=FAST_MATH)
def _activate(activation, gate):
    """Apply the activation in place."""
    for row in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            z = gate[row, i]
            if activation == _SILU:
                e = exp_negative(-abs(z))
                gate[row, i] = z * (np.float32(1.0) if z >= 0 else e) / (np.float32(1.0) + e)
            else:
                z = max(z, np.float32(0.0))
                gate[row, i] = z * z


@compiled(fastmath=FAST_MATH)
def _scale_by(x, values):
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] *= values[row, i]


@compiled()
def _gains(address, width):
    return numba.carray(floats_at(address), (width if address else 0,))


@compiled()
def decode_layers(
    x, table, numbers, slots, positions, cache_shape, num_heads, d_ff, activation, window, softcap, slopes,
    cos, sin,
) -> None:  # fmt: skip
    """Take the tokens' vectors x through all layers, in place; their keys and values are stored.

    x (rows, d_model), slots and positions (rows): whose token, and where it stands; the rows of one slot are
    neighbours in order. cache_shape (slots, kv_heads, capacity, d_head) of every layer's keys and values.
    slopes (heads) for ALiBi, cos and sin (positions, pairs) for RoPE, else empty; window and softcap: 0 for
    none.
    """
    rows = x.shape[0]
    _, groups, capacity, d_head = cache_shape
    normed, branch = np.empty_like(x), np.empty_like(x)
    q = np.empty((rows, num_heads * d_head), np.float32)
    k, v = np.empty((rows, groups * d_head), np.float32), np.empty((rows, groups * d_head), np.float32)
    gathered = np.empty((rows, num_heads, d_head), np.float32)
    gate, value = np.empty((rows, d_ff), np.float32), np.empty((rows, d_ff), np.float32)
    repeats = num_heads // groups
    scores, turned = np.empty((repeats, capacity), np.float32), np.empty((repeats, d_head), np.float32)
    for layer in range(table.shape[0]):
        at, number = table[layer], numbers[layer]
        normalize(x, at[_NORM1], number[_NORM1_EPS], normed)
        _product(normed, at[_Q], at[_Q_BIAS], q)
        _product(normed, at[_K], at[_K_BIAS], k)
        _product(normed, at[_V], at[_V_BIAS], v)
        attend_slots(
            q.reshape(rows, num_heads, d_head), k.reshape(rows, groups, d_head),
            v.reshape(rows, groups, d_head), numba.carray(floats_at(at[_KEYS]), cache_shape),
            numba.carray(floats_at(at[_VALUES]), cache_shape), slots, positions, gathered, scores, turned,
            number[_SCALE], window, softcap, slopes, cos, sin, _gains(at[_Q_GAIN], d_head),
            _gains(at[_K_GAIN], d_head), number[_QK_EPS],
        )  # fmt: skip
        _product(gathered.reshape(rows, num_heads * d_head), at[_OUTPUT], at[_OUTPUT_BIAS], branch)
        _add(x, branch)
        normalize(x, at[_NORM2], number[_NORM2_EPS], normed)
        _product(normed, at[_W1], at[_W1_BIAS], gate)
        _activate(activation, gate)
        if at[_W3]:
            _product(normed, at[_W3], at[_W3_BIAS], value)
            _scale_by(gate, value)
        _product(gate, at[_W2], at[_W2_BIAS], branch)
        _add(x, branch)
