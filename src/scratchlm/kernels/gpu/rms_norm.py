# ruff: noqa: ANN001, ANN201  (arguments of kernels are Triton's, without Python types)
r"""Vectors in, vectors of root mean square 1 times a gain out, forward and backward: RMSNorm for GPUs.

    forward   program (some rows)     r = 1 / sqrt(mean(x^2) + eps);  y = x * r * w;  keeps r
    backward  program p of P          rows p, p + P, ...:
                                      dx = r * (w * dy) - x * r^3 / n * sum(w * dy * x)
                                      dw += r * dy * x      in registers, written once: P partial sums

There are no matrix products: the time is that of the memory. Forward reads x and writes y, backward reads x
and dy and writes dx, each once: a row waits in registers between its sum and its result. P is a fixed number
per processor, so dw is the sum of about a thousand rows instead of one atomic addition per vector, and comes
out the same every time. A program of the backward pass asks for its next rows while it computes (STAGES).
Rows wider than WHOLE are walked through in pieces and read twice, the second time mostly from the cache.

Source: the formulas as in kernels/rms_norm.py.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.support import require

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


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    r_ptr,
    num_rows,
    stride_x,
    eps,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
):
    """Normalise ROWS rows of at most COLUMNS numbers: one read, one write."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    places = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + places * stride_x + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    y = x * r[:, None]
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + places * WIDTH + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(r_ptr + rows, r, mask=rows < num_rows)


@triton.jit
def backward_kernel(
    x_ptr,
    weight_ptr,
    dy_ptr,
    r_ptr,
    dx_ptr,
    partial_ptr,
    num_rows,
    stride_x,
    stride_dy,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows p, p + P, ... (in groups of ROWS) of dx, and this program's share of dw."""
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
        tl.store(dx_ptr + places * WIDTH + columns[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if HAS_WEIGHT:
        place = partial_ptr + tl.program_id(0).to(tl.int64) * WIDTH + columns
        tl.store(place, tl.sum(dw, axis=0), mask=columns < WIDTH)


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


@triton.jit
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


def rms_norm(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Return x / sqrt(mean(x^2) + eps) * weight; arguments as in kernels/rms_norm.py.

    Rows may stand apart in memory (a slice of a wider tensor); others than those are copied first.

    Raises:
        ValueError: The gain has another length than the rows, or the kernel cannot run where x is.
    """
    if not torch.compiler.is_compiling():
        require("rms_norm", x, weight)
    if x.ndim == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        gain = None if weight is None else tuple(weight.shape)
        raise ValueError(f"rms_norm: x {tuple(x.shape)}, gain {gain}; the gain has a number for each column.")
    return _rms_norm(x, weight, eps, dtype)[0]


class Tile(NamedTuple):
    """How many rows and columns a program takes at once, and by how many warps."""

    rows: int
    columns: int
    warps: int


def tile_of(width: int, per_warp: int) -> Tile:
    """Return the tile for rows of `width` numbers, `per_warp` for each of at least 4 warps.

    Example: (768, 512) -> 2 rows of 1,024 columns, 4 warps.
    """
    columns = min(triton.next_power_of_2(max(1, width)), WHOLE)
    rows = max(1, 4 * per_warp // columns)
    return Tile(rows, columns, rows * columns // per_warp)


@torch.library.custom_op("scratchlm::rms_norm", mutates_args=())
def _rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The result and r = 1 / sqrt(mean(x^2) + eps) of each row."""
    rows = _rows(x)
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    r = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return y, r
    num_rows, width = rows.shape
    tile = tile_of(width, FORWARD_WARP)
    arguments = (rows, weight, y, r)
    settings = {"WIDTH": width, "COLUMNS": tile.columns, "HAS_WEIGHT": weight is not None}
    if width <= WHOLE:
        grid = (triton.cdiv(num_rows, tile.rows),)
        shape = (num_rows, rows.stride(0), eps)
        forward_kernel[grid](*arguments, *shape, ROWS=tile.rows, num_warps=tile.warps, **settings)
    else:
        grid = (num_rows,)
        wide_forward_kernel[grid](*arguments, rows.stride(0), eps, num_warps=tile.warps, **settings)
    return y, r


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    return y, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


@torch.library.custom_op("scratchlm::rms_norm_backward", mutates_args=())
def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor | None, r: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and, in float32, of the gain (empty without one)."""
    rows, dy_rows = _rows(x), _rows(dy)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, width = rows.shape
    if x.numel() == 0:
        return dx, torch.zeros(0 if weight is None else width, device=x.device)
    tile = tile_of(width, BACKWARD_WARP)
    per_processor = min(PROGRAMS, 32 // tile.warps)
    num_programs = min(triton.cdiv(num_rows, tile.rows), per_processor * _processors(x.device))
    make = torch.empty if width <= WHOLE else torch.zeros
    partial = make((num_programs, 0 if weight is None else width), dtype=torch.float32, device=x.device)
    arguments = (rows, weight, dy_rows, r, dx, partial)
    shape, grid = (num_rows, rows.stride(0), dy_rows.stride(0)), (num_programs,)
    settings = {"WIDTH": width, "COLUMNS": tile.columns, "HAS_WEIGHT": weight is not None}
    if width <= WHOLE:
        settings |= {"ROWS": tile.rows, "STAGES": STAGES, "num_warps": tile.warps}
        backward_kernel[grid](*arguments, *shape, **settings)
    else:
        wide_backward_kernel[grid](*arguments, *shape, num_warps=tile.warps, **settings)
    return dx, partial.sum(dim=0)


@_rms_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor | None, r: Tensor) -> tuple[Tensor, Tensor]:
    width = 0 if weight is None else x.shape[-1]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), r.new_empty(width, dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight, r = ctx.saved_tensors
    if dy is None:
        return None, None, None, None
    dx, dw = _rms_norm_backward(dy, x, weight, r)
    return dx, None if weight is None else dw.to(weight.dtype), None, None


_rms_norm.register_autograd(_differentiate, setup_context=_remember)


def _rows(x: Tensor) -> Tensor:
    """The vectors below each other: a view where they stand at equal distances, else a copy."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(0, x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


@cache
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; the interpreter on a CPU counts as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def configurations() -> list[Configuration]:
    """Every kernel as it is launched for common widths."""
    found = []
    for width in (64, 256, 768, 1024, 2560, 4096, 8192, 16384):
        for kind, has_weight in (("fp32", True), ("bf16", True), ("bf16", False)):
            found += _configurations_of(width, kind, has_weight)
    return found


def _configurations_of(width: int, kind: str, has_weight: bool) -> list[Configuration]:
    wide = width > WHOLE
    name = f"rms_norm-{{}}-{width}-{kind}{'' if has_weight else '-no_gain'}"
    constants: dict[str, Any] = {"WIDTH": width, "HAS_WEIGHT": has_weight}
    weight = {"weight_ptr": "*fp32"}
    if not has_weight:
        weight, constants = {}, constants | {"weight_ptr": None}
    shape = {"stride_x": "i32"} | ({} if wide else {"num_rows": "i32"})
    forward = {"x_ptr": f"*{kind}", "y_ptr": "*bf16", "r_ptr": "*fp32", "eps": "fp32"}
    backward = {"x_ptr": f"*{kind}", "dy_ptr": "*bf16", "dx_ptr": f"*{kind}", "r_ptr": "*fp32"}
    backward |= {"partial_ptr": "*fp32", "num_rows": "i32", "stride_dy": "i32"}
    kernels = (wide_forward_kernel, wide_backward_kernel) if wide else (forward_kernel, backward_kernel)
    found = []
    for number, (direction, types) in enumerate({"forward": forward, "backward": backward}.items()):
        tile = tile_of(width, (FORWARD_WARP, BACKWARD_WARP)[number])
        sizes: dict[str, Any] = {"COLUMNS": tile.columns} | ({} if wide else {"ROWS": tile.rows})
        if direction == "backward" and not wide:
            sizes["STAGES"] = STAGES
        types, sizes = shape | types | weight, constants | sizes
        found.append(
            Configuration(name.format(direction), kernels[number], types, sizes, tile.warps, matrix=False)
        )
    return found
