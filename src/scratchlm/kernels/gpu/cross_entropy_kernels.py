# ruff: noqa: ANN001, ANN201, ANN202  (arguments of device functions are Triton's, without Python types)
r"""Logits and targets in, each target's loss out, and the logits' gradient, if allowed in the logits' place.

    lse   = logsumexp(z)                                             z logits, or c tanh(logits / c)
    loss  = lse - (1 - s) z[target] - s mean(z) + w lse^2            s label_smoothing, w z_loss
    d loss / d z[i] = exp(z[i] - lse) (1 + 2 w lse) - s / V - (1 - s) [i = target]

One program per row of V logits:

    row      | block 0 | block 1 | ... | block n-1 | tail |     pass 1, left to right: lse
             | block 0 | block 1 | ... | block n-1 | tail |     pass 2, right to left: the gradient
    block    GROUPS pieces of LANES = 16 bytes: one piece is one load of one thread

Pass 1 is the online softmax. Every piece keeps its own largest logit m and its own sum of exp(z - m); when m
grows, the sum is multiplied by exp(m_old - m_new). A piece never leaves its thread, so the loop has no
barrier and loads run ahead; the threads meet once, after the loop, to merge their m and sums. The price is
one exponential more per piece: 1/8 more in bfloat16.

With OVERWRITE both passes run in one kernel: when pass 2 comes back, most of the row of 100 kB (V 50,304) is
still in a cache (3 rows a processor beside a first level of 256 kB; 40 MB of rows in all beside a second of
50 MB). Memory is then read once and written once, where a forward and a backward kernel of their own read it
twice: for 65,536 rows at 4.3 TB/s (an H200's copy) 3.1 ms instead of 4.6 (computed). The chunked loss takes
it: there the gradient that comes from above is one number, and can be multiplied in later.

Source: online softmax: Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, algorithm 3. The
gradient in the logits' place: Hsu et al. 2024 (Liger Kernel), https://arxiv.org/abs/2410.10989, section 3.2.
"""

import triton
import triton.language as tl

from scratchlm.kernels.cross_entropy import IGNORE

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-1.0e38)  # finite, also times log2(e): -inf less -inf would be NaN
_IGNORE = tl.constexpr(IGNORE)


@triton.jit
def _exp(x):
    return tl.exp2(x * _LOG2_E)


@triton.jit
def _tanh(x):
    """By an exponential; near 0, where 1 - e cancels, by the series: 1e-8 of tanh(x) off at 0.25."""
    e = _exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    y = x * x
    near = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(y < 0.0625, near, tl.where(x < 0, -far, far))


@triton.jit
def _read(pointers, mask, softcap, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """Logits in float32, bounded; -inf, which adds nothing to any sum of exponentials, where masked."""
    z = (tl.load(pointers, mask=mask, other=-float("inf")) if MASKED else tl.load(pointers)).to(tl.float32)
    if CAPPED:
        z = softcap * _tanh(z * (1 / softcap))
        if MASKED:
            z = tl.where(mask, z, -float("inf"))
    return z


@triton.jit
def _block(GROUPS: tl.constexpr, LANES: tl.constexpr):
    """The columns of a block: GROUPS pieces of LANES neighbours."""
    return tl.arange(0, GROUPS)[:, None] * LANES + tl.arange(0, LANES)[None, :]


@triton.jit
def _statistics(
    row_pointer, softcap,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, VOCABULARY: tl.constexpr,
    GROUPS: tl.constexpr, TAIL_GROUPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass 1: a row's largest logit, the sum of exp(z - largest), and that of z (0 unless SMOOTHED)."""
    BLOCK: tl.constexpr = GROUPS * LANES
    FULL: tl.constexpr = VOCABULARY // BLOCK * BLOCK
    largest = tl.full([GROUPS], _LOWEST, tl.float32)
    sums = tl.zeros([GROUPS], tl.float32)
    totals = tl.zeros([GROUPS], tl.float32)
    for start in tl.range(0, FULL, BLOCK):
        z = _read(row_pointer + start + _block(GROUPS, LANES), None, softcap, CAPPED, False)
        new = tl.maximum(largest, tl.max(z, axis=1))
        sums = sums * _exp(largest - new) + tl.sum(_exp(z - new[:, None]), axis=1)
        largest = new
        if SMOOTHED:
            totals += tl.sum(z, axis=1)
    top = tl.max(largest)
    if FULL < VOCABULARY:
        columns = FULL + _block(TAIL_GROUPS, LANES)
        rest = _read(row_pointer + columns, columns < VOCABULARY, softcap, CAPPED, True)
        top = tl.maximum(top, tl.max(rest))
    sum_exp = tl.sum(sums * _exp(largest - top))
    total = tl.sum(totals)
    if FULL < VOCABULARY:
        sum_exp += tl.sum(_exp(rest - top))
        if SMOOTHED:
            total += tl.sum(tl.where(columns < VOCABULARY, rest, 0.0))
    return top, sum_exp, total


@triton.jit
def _bend(z, softcap):
    """The derivative of z = c tanh(x / c) by x."""
    tanh = z * (1 / softcap)
    return 1 - tanh * tanh


@triton.jit
def _slope(z, top, factor, offset, softcap, CAPPED: tl.constexpr):
    slope = _exp(z - top) * factor - offset
    if CAPPED:
        slope *= _bend(z, softcap)
    return slope


@triton.jit
def _write_block(
    row_pointer, gradient_pointer, columns, top, factor, offset, softcap,
    CAPPED: tl.constexpr, MASKED: tl.constexpr, VOCABULARY: tl.constexpr,
):  # fmt: skip
    mask = columns < VOCABULARY if MASKED else None
    z = _read(row_pointer + columns, mask, softcap, CAPPED, MASKED)
    slope = _slope(z, top, factor, offset, softcap, CAPPED)
    tl.store(gradient_pointer + columns, slope.to(gradient_pointer.dtype.element_ty), mask=mask)


@triton.jit
def _write_gradient(
    row_pointer, gradient_pointer, target, top, sum_exp, upstream, z_loss, label_smoothing, softcap,
    CAPPED: tl.constexpr, VOCABULARY: tl.constexpr, GROUPS: tl.constexpr, TAIL_GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Pass 2: upstream times the derivative of a row's loss; gradient_pointer may be row_pointer."""
    BLOCK: tl.constexpr = GROUPS * LANES
    FULL: tl.constexpr = VOCABULARY // BLOCK * BLOCK
    # exp(z - top) / sum_exp is more exact than exp(z - lse), where lse has been rounded, and costs the same
    factor = upstream * (1 + 2 * z_loss * (top + tl.log(sum_exp))) / sum_exp
    offset = upstream * label_smoothing / VOCABULARY
    chosen = _read(row_pointer + target, None, softcap, CAPPED, False)
    tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
    if FULL < VOCABULARY:
        tail = FULL + _block(TAIL_GROUPS, LANES)
        _write_block(
            row_pointer, gradient_pointer, tail, top, factor, offset, softcap, CAPPED, True, VOCABULARY
        )
    for start in tl.range(0, FULL, BLOCK):  # from the end: what pass 1 read last is still near
        place = FULL - BLOCK - start + _block(GROUPS, LANES)
        _write_block(
            row_pointer, gradient_pointer, place, top, factor, offset, softcap, CAPPED, False, VOCABULARY
        )
    # the target's own element is put right afterwards: cheaper than a comparison for every column
    hit = (1 - label_smoothing) * upstream
    if CAPPED:
        hit *= _bend(chosen, softcap)
    slope = _slope(chosen, top, factor, offset, softcap, CAPPED) - hit
    tl.debug_barrier()
    tl.store(gradient_pointer + target, slope.to(gradient_pointer.dtype.element_ty))


@triton.jit
def _write_zeros(gradient_pointer, VOCABULARY: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr):
    zeros = tl.zeros([GROUPS, LANES], gradient_pointer.dtype.element_ty)
    for start in tl.range(0, VOCABULARY, GROUPS * LANES):
        columns = start + _block(GROUPS, LANES)
        tl.store(gradient_pointer + columns, zeros, mask=columns < VOCABULARY)


@triton.jit
def losses_kernel(
    logits_pointer, targets_pointer, losses_pointer, tops_pointer, sums_pointer,
    stride_outer, stride_inner, num_inner, z_loss, label_smoothing, softcap,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, OVERWRITE: tl.constexpr, VOCABULARY: tl.constexpr,
    GROUPS: tl.constexpr, TAIL_GROUPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One row's loss, largest logit and sum of exponentials; if OVERWRITE, the logits become the gradient."""
    row = tl.program_id(0).to(tl.int64)  # 65,536 rows of 50,304 pass 2^31
    row_pointer = logits_pointer + row // num_inner * stride_outer + row % num_inner * stride_inner
    target = tl.load(targets_pointer + row)
    if target == _IGNORE:
        tl.store(losses_pointer + row, 0.0)
        tl.store(tops_pointer + row, 0.0)
        tl.store(sums_pointer + row, 1.0)
        if OVERWRITE:
            _write_zeros(row_pointer, VOCABULARY, GROUPS, LANES)
    else:
        top, sum_exp, total = _statistics(
            row_pointer, softcap, CAPPED, SMOOTHED, VOCABULARY, GROUPS, TAIL_GROUPS, LANES
        )
        known = (target >= 0) & (target < VOCABULARY)
        safe = tl.where(known, target, 0)
        chosen = _read(row_pointer + safe, None, softcap, CAPPED, False)
        if SMOOTHED:
            chosen += label_smoothing * (total / VOCABULARY - chosen)
        # no such token: NaN is seen, a number from some other place in memory is not
        sum_exp = tl.where(known, sum_exp, float("nan"))
        log_sum = top + tl.log(sum_exp)
        tl.store(losses_pointer + row, log_sum - chosen + z_loss * log_sum * log_sum)
        tl.store(tops_pointer + row, top)
        tl.store(sums_pointer + row, sum_exp)
        if OVERWRITE:
            _write_gradient(
                row_pointer, row_pointer, safe, top, sum_exp, 1.0, z_loss, label_smoothing, softcap,
                CAPPED, VOCABULARY, GROUPS, TAIL_GROUPS, LANES,
            )  # fmt: skip


@triton.jit
def gradient_kernel(
    logits_pointer, targets_pointer, tops_pointer, sums_pointer, upstream_pointer, gradient_pointer,
    stride_outer, stride_inner, stride_gradient_outer, stride_gradient_inner, num_inner,
    z_loss, label_smoothing,
    VOCABULARY: tl.constexpr, GROUPS: tl.constexpr, TAIL_GROUPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One row's gradient from its logits and what pass 1 found, times the number that comes from above."""
    row = tl.program_id(0).to(tl.int64)
    outer, inner = row // num_inner, row % num_inner
    row_pointer = logits_pointer + outer * stride_outer + inner * stride_inner
    gradient_pointer += outer * stride_gradient_outer + inner * stride_gradient_inner
    target = tl.load(targets_pointer + row)
    if target == _IGNORE:
        _write_zeros(gradient_pointer, VOCABULARY, GROUPS, LANES)
    else:
        top = tl.load(tops_pointer + row)
        sum_exp = tl.load(sums_pointer + row)
        upstream = tl.load(upstream_pointer + row)
        safe = tl.where((target >= 0) & (target < VOCABULARY), target, 0)
        _write_gradient(
            row_pointer, gradient_pointer, safe, top, sum_exp, upstream, z_loss, label_smoothing, 1.0,
            False, VOCABULARY, GROUPS, TAIL_GROUPS, LANES,
        )  # fmt: skip
