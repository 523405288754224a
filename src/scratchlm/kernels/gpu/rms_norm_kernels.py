# ruff: noqa: ANN001, ANN201  (arguments of kernels are Triton's, without Python types)
r"""RMSNorm's kernels for GPUs, forward and backward, with the addition of a branch before it or without.

    forward   program (some rows)     s = x + branch;  r = 1 / sqrt(mean(s^2) + eps);  y = s * r * w
                                      writes y, r and, with a branch, s
    backward  program p of P          rows p, p + P, ...:
                                      ds = r * (w * dy) - s * r^3 / n * sum(w * dy * s)
                                           (+ the gradient that s got elsewhere)
                                      dw += r * dy * s      in registers, written once: P partial sums

There are no matrix products: the time is that of the memory. Each number is read once and written once: a row
waits in registers between its sum and its result, and in a block of a transformer the addition that comes
before the norm, and the sum of its two gradients behind it, are done on the way. P is a fixed number per
processor, so dw is the sum of about a thousand rows instead of one atomic addition per vector, and comes out
the same every time. A program of the backward pass asks for its next rows while it computes (STAGES). Rows
wider than WHOLE are walked through in pieces and read twice, the second time mostly from the cache.

Source: the formulas as in kernels/rms_norm.py.
"""

import triton
import triton.language as tl

WHOLE = 8192
"""Numbers of a row that stay in registers: 8 of each of x, dy, w and dw in a thread of 32 warps."""
FORWARD_WARP = 512
"""Numbers per warp: 16 a thread, four loads of 16 bytes in float32; 40 registers (compiled for sm_90)."""
BACKWARD_WARP = 256
"""The same with x, dy, w and dw to hold: 63 to 66 registers; 512 takes 117."""
STAGES = 3
"""Rows of a backward program that are under way or computed: 64 KB in flight per processor at width 768, more
than twice what memory at 4.3 TB/s delivers in its latency of about 0.8 us."""
PROGRAMS = 7
"""Backward programs of 4 warps per processor: as many as have 72 registers a thread, so that none waits."""


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_ptr,
    branch_ptr,
    weight_ptr,
    sum_ptr,
    y_ptr,
    r_ptr,
    num_rows,
    stride_x,
    stride_branch,
    eps,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    """Normalise ROWS rows of at most COLUMNS numbers: one read, one write."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + places * stride_x + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + places * stride_branch + columns[None, :], mask=inside, other=0.0)
        # rounded as it is stored: what the norm reads is what others read
        total = (x + branch.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + places * WIDTH + columns[None, :], total, mask=inside)
        x = total.to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    y = x * r[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + places * WIDTH + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(r_ptr + rows, r, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    x_ptr,
    weight_ptr,
    dy_ptr,
    r_ptr,
    other_ptr,
    dx_ptr,
    d_branch_ptr,
    partial_ptr,
    num_rows,
    stride_x,
    stride_dy,
    stride_other,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    """Rows p, p + P, ... (in groups of ROWS) of dx, and this program's share of dw.

    `other` is the gradient that x got elsewhere; d_branch is dx in the branch's number format.
    """
    columns = tl.arange(0, COLUMNS)
    dw = tl.zeros((ROWS, COLUMNS), tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    for first in tl.range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
        places = rows.to(tl.int64)[:, None]
        x = tl.load(x_ptr + places * stride_x + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + places * stride_dy + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + rows, mask=rows < num_rows, other=0.0)[:, None]
        normed = x * r
        if HAS_WEIGHT:
            dw += dy * normed
            dy *= weight
        along = tl.sum(dy * normed, axis=1)[:, None] / WIDTH
        dx = r * (dy - normed * along)
        if HAS_OTHER:
            other = tl.load(other_ptr + places * stride_other + columns[None, :], mask=inside, other=0.0)
            dx += other.to(tl.float32)
        place = places * WIDTH + columns[None, :]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if HAS_BRANCH:
            tl.store(d_branch_ptr + place, dx.to(d_branch_ptr.dtype.element_ty), mask=inside)
    if HAS_WEIGHT:
        share = partial_ptr + tl.program_id(0).to(tl.int64) * WIDTH + columns
        tl.store(share, tl.sum(dw, axis=0), mask=columns < WIDTH)


@triton.jit
def wide_forward_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    r_ptr,
    stride_x,
    eps,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """One row of any width, in pieces of COLUMNS numbers: read for the sum, read again for the result."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for first in tl.range(0, WIDTH, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        x = tl.load(x_ptr + row * stride_x + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        squares += x * x
    r = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
    tl.store(r_ptr + row, r)
    for first in tl.range(0, WIDTH, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < WIDTH
        y = tl.load(x_ptr + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32) * r
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * WIDTH + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def wide_backward_kernel(
    x_ptr,
    weight_ptr,
    dy_ptr,
    r_ptr,
    dx_ptr,
    partial_ptr,
    num_rows,
    stride_x,
    stride_dy,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """As `backward_kernel` for rows of any width; the share of dw is added up in memory, from 0 on."""
    share = partial_ptr + tl.program_id(0).to(tl.int64) * WIDTH
    for place in tl.range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
        r = tl.load(r_ptr + place)
        products = tl.zeros((COLUMNS,), tl.float32)
        for first in tl.range(0, WIDTH, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            inside = columns < WIDTH
            x = tl.load(x_ptr + place * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + place * stride_dy + columns, mask=inside, other=0.0).to(tl.float32)
            if HAS_WEIGHT:
                dy *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            products += x * dy
        along = tl.sum(products, axis=0) * r / WIDTH
        for first in tl.range(0, WIDTH, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            inside = columns < WIDTH
            normed = tl.load(x_ptr + place * stride_x + columns, mask=inside, other=0.0).to(tl.float32) * r
            dy = tl.load(dy_ptr + place * stride_dy + columns, mask=inside, other=0.0).to(tl.float32)
            if HAS_WEIGHT:
                dw = tl.load(share + columns, mask=inside, other=0.0) + dy * normed
                tl.store(share + columns, dw, mask=inside)
                dy *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            dx = r * (dy - normed * along)
            tl.store(dx_ptr + place * WIDTH + columns, dx.to(dx_ptr.dtype.element_ty), mask=inside)
