r"""Vectors in, vectors of root mean square 1 times a gain out: RMSNorm for GPUs, alone or behind an addition.

    rms_norm(x, w)              reads x, writes y
    add_rms_norm(x, branch, w)  reads x and branch, writes x + branch and its y, in one launch

In a pre-norm transformer the residual path goes through an addition before each norm. Alone, the addition
would write the sum for the norm to read again, and behind them two gradients of the sum would be added in a
pass of their own: for a path in float32 and branches in bfloat16 16 bytes a number instead of 12 forward, 24
instead of 16 backward. The kernels: rms_norm_kernels.py.

Source: the formulas as in kernels/rms_norm.py.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.rms_norm_kernels import (
    BACKWARD_WARP,
    FORWARD_WARP,
    PROGRAMS,
    STAGES,
    WHOLE,
    backward_kernel,
    forward_kernel,
    wide_backward_kernel,
    wide_forward_kernel,
)
from scratchlm.kernels.gpu.support import require
from scratchlm.kernels.rms_norm import Normed, add_rms_norm_reference, rms_norm_reference


def rms_norm(
    x: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Return x / sqrt(mean(x^2) + eps) * weight; arguments as in kernels/rms_norm.py.

    Rows may stand apart in memory (a slice of a wider tensor); others than those are copied first. The
    kernels compute in float32: float64 is left to tensor operations.

    Raises:
        ValueError: The gain has another length than the rows, or the kernel cannot run where x is.
    """
    _check("rms_norm", x, weight)
    if torch.float64 in (x.dtype, dtype):
        return rms_norm_reference(x, weight, eps=eps, dtype=dtype)
    return _rms_norm(x, weight, eps, dtype)[0]


def add_rms_norm(
    x: Float[Tensor, "*batch d_model"],
    branch: Float[Tensor, "*batch d_model"],
    weight: Float[Tensor, " d_model"] | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Normed:
    """Return x + branch and its norm; arguments as in kernels/rms_norm.py, memory and errors as `rms_norm`.

    The sum has the wider number format of the two. Rows wider than WHOLE are added in a pass of their own.
    """
    _check("add_rms_norm", x, weight, branch)
    if torch.float64 in (x.dtype, branch.dtype, dtype):
        return add_rms_norm_reference(x, branch, weight, eps=eps, dtype=dtype)
    if x.shape[-1] > WHOLE:
        total = x + branch
        return Normed(total, _rms_norm(total, weight, eps, dtype)[0])
    return Normed(*_add_rms_norm(x, branch, weight, eps, dtype)[:2])


def _check(operation: str, x: Tensor, weight: Tensor | None, branch: Tensor | None = None) -> None:
    if not torch.compiler.is_compiling():
        require(operation, x, weight, branch)
    if x.ndim == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        gain = None if weight is None else tuple(weight.shape)
        raise ValueError(
            f"{operation}: x {tuple(x.shape)}, gain {gain}; the gain has a number for each column."
        )
    if not x.is_floating_point() or (branch is not None and not branch.is_floating_point()):
        raise ValueError(f"{operation}: x is {x.dtype}; give floating-point numbers.")
    if branch is not None and branch.shape != x.shape:
        raise ValueError(
            f"{operation}: x {tuple(x.shape)}, branch {tuple(branch.shape)}; both need one shape."
        )


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


def stages_of(tile: Tile) -> int:
    """Return how many rows of a backward program are under way or computed.

    The rows of three tensors in float32 that wait, and room for the sums, must fit into the 99 KB of shared
    memory that the smallest GPUs from compute capability 8.0 on have for a program.
    """
    return max(1, min(STAGES, WHOLE // tile.columns))


@torch.library.custom_op("scratchlm::rms_norm", mutates_args=())
def _rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The result and r = 1 / sqrt(mean(x^2) + eps) of each row."""
    y, r = _results(x, dtype or x.dtype)
    _forward(x, None, weight, None, y, r, eps)
    return y, r


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    return _results(x, dtype or x.dtype)


@torch.library.custom_op("scratchlm::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, its norm, and r of each row."""
    wide = torch.promote_types(x.dtype, branch.dtype)
    y, r = _results(x, dtype or wide)
    total = torch.empty(x.shape, dtype=wide, device=x.device)
    _forward(x, branch, weight, total, y, r, eps)
    return total, y, r


@_add_rms_norm.register_fake
def _(
    x: Tensor, branch: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, branch.dtype)
    return torch.empty(x.shape, dtype=wide, device=x.device), *_results(x, dtype or wide)


def _results(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for y and r."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    return y, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


def _forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor | None,
    total: Tensor | None,
    y: Tensor,
    r: Tensor,
    eps: float,
) -> None:
    if x.numel() == 0:
        return
    rows, branch_rows = _rows(x), None if branch is None else _rows(branch)
    num_rows, width = rows.shape
    tile = tile_of(width, FORWARD_WARP)
    settings = {"WIDTH": width, "COLUMNS": tile.columns, "HAS_WEIGHT": weight is not None}
    settings["num_warps"] = tile.warps
    strides = (rows.stride(0), 0 if branch_rows is None else branch_rows.stride(0))
    with torch.cuda.device_of(x):
        if width > WHOLE:
            wide_forward_kernel[(num_rows,)](rows, weight, y, r, rows.stride(0), eps, **settings)
            return
        forward_kernel[(triton.cdiv(num_rows, tile.rows),)](
            *(rows, branch_rows, weight, total, y, r, num_rows),
            *strides,
            eps,
            ROWS=tile.rows,
            HAS_BRANCH=branch is not None,
            **settings,
        )


@torch.library.custom_op("scratchlm::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    r: Tensor,
    other: Tensor | None,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the gain in float32 (empty without one), and of the branch.

    Args:
        dy: The gradient of the norm.
        x: What was normalised.
        weight: The gain.
        r: What the forward pass kept of each row.
        other: The gradient that x has from elsewhere; it is added.
        branch_dtype: In which number format the gradient of x is wanted once more; None: it is not (empty).
    """
    dx, dw, d_branch = _gradients(x, weight, r, branch_dtype)
    if x.numel() == 0:
        return dx, dw.zero_(), d_branch
    rows, dy_rows, other_rows = _rows(x), _rows(dy), None if other is None else _rows(other)
    num_rows, width = rows.shape
    tile = tile_of(width, BACKWARD_WARP)
    per_processor = min(PROGRAMS, 32 // tile.warps)
    num_programs = min(triton.cdiv(num_rows, tile.rows), per_processor * _processors(x.device))
    make = torch.empty if width <= WHOLE else torch.zeros
    partial = make((num_programs, dw.numel()), dtype=torch.float32, device=x.device)
    settings = {"WIDTH": width, "COLUMNS": tile.columns, "HAS_WEIGHT": weight is not None}
    settings["num_warps"] = tile.warps
    strides, grid = (rows.stride(0), dy_rows.stride(0)), (num_programs,)
    with torch.cuda.device_of(x):
        if width > WHOLE:
            assert other is None, width
            wide_backward_kernel[grid](rows, weight, dy_rows, r, dx, partial, num_rows, *strides, **settings)
            return dx, partial.sum(dim=0), d_branch
        narrow = d_branch if branch_dtype else None
        backward_kernel[grid](
            *(rows, weight, dy_rows, r, other_rows, dx, narrow, partial, num_rows),
            *strides,
            0 if other_rows is None else other_rows.stride(0),
            ROWS=tile.rows,
            STAGES=stages_of(tile),
            HAS_OTHER=other is not None,
            HAS_BRANCH=branch_dtype is not None,
            **settings,
        )
    return dx, partial.sum(dim=0), d_branch


@_rms_norm_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    r: Tensor,
    other: Tensor | None,
    branch_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, weight, r, branch_dtype)


def _gradients(
    x: Tensor, weight: Tensor | None, r: Tensor, branch_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of x, of the gain and of the branch."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dw = r.new_empty(0 if weight is None else x.shape[-1])
    return dx, dw, torch.empty(x.shape if branch_dtype else 0, dtype=branch_dtype or x.dtype, device=x.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight, r = ctx.saved_tensors
    if dy is None:
        return None, None, None, None
    dx, dw, _ = _rms_norm_backward(dy, x, weight, r, None, None)
    return dx, None if weight is None else dw.to(weight.dtype), None, None


_rms_norm.register_autograd(_differentiate, setup_context=_remember)


def _remember_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, branch, weight, _, _ = inputs
    total, _, r = output
    ctx.dtypes = x.dtype, branch.dtype
    ctx.save_for_backward(total, weight, r)
    ctx.mark_non_differentiable(r)
    ctx.set_materialize_grads(False)


def _differentiate_sum(
    ctx: Any, d_total: Tensor | None, dy: Tensor | None, _: None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    total, weight, r = ctx.saved_tensors
    x_dtype, branch_dtype = ctx.dtypes
    if dy is None:
        found = (None if d_total is None else d_total.to(dtype) for dtype in ctx.dtypes)
        return *found, None, None, None
    narrow = branch_dtype if branch_dtype != total.dtype else None
    dx, dw, d_branch = _rms_norm_backward(dy, total, weight, r, d_total, narrow)
    dw = None if weight is None else dw.to(weight.dtype)
    return dx.to(x_dtype), dx if narrow is None else d_branch, dw, None, None


_add_rms_norm.register_autograd(_differentiate_sum, setup_context=_remember_sum)


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
    for width in (64, 768, 2048, 4096, 8192, 16384):
        for kind, has_weight in (("fp32", True), ("bf16", True), ("bf16", False)):
            found += _configurations_of(width, kind, has_weight)
        if width <= WHOLE:
            found += _configurations_of(width, "fp32", True, branch="bf16")
            found += _configurations_of(width, "bf16", True, branch="bf16")
            found += _configurations_of(width, "fp32", True, branch="fp32")
    return found


def _configurations_of(
    width: int, kind: str, has_weight: bool, *, branch: str | None = None
) -> list[Configuration]:
    wide = width > WHOLE
    constants: dict[str, Any] = {"WIDTH": width, "HAS_WEIGHT": has_weight}
    types = {"x_ptr": f"*{kind}", "r_ptr": "*fp32", "stride_x": "i32", "weight_ptr": "*fp32"}
    forward = types | {"y_ptr": "*bf16", "eps": "fp32"}
    backward = types | {
        "dy_ptr": f"*{branch or 'bf16'}",
        "dx_ptr": f"*{kind}",
        "partial_ptr": "*fp32",
        "stride_dy": "i32",
    }
    backward["num_rows"] = "i32"
    if not wide:
        forward |= {
            "branch_ptr": f"*{branch}",
            "sum_ptr": f"*{kind}",
            "stride_branch": "i32",
            "num_rows": "i32",
        }
        backward |= {"other_ptr": f"*{kind}", "d_branch_ptr": f"*{branch}", "stride_other": "i32"}
    kernels = (wide_forward_kernel, wide_backward_kernel) if wide else (forward_kernel, backward_kernel)
    name = f"{'add_' if branch else ''}rms_norm-{{}}-{width}-{kind}{'' if has_weight else '-no_gain'}"
    name += "-wide_branch" if branch == "fp32" else ""
    found = []
    for number, (direction, types) in enumerate({"forward": forward, "backward": backward}.items()):
        tile = tile_of(width, (FORWARD_WARP, BACKWARD_WARP)[number])
        sizes = constants | {"COLUMNS": tile.columns}
        if not wide:
            sizes |= {"ROWS": tile.rows, "HAS_BRANCH": branch is not None}
            sizes |= {"STAGES": stages_of(tile), "HAS_OTHER": branch is not None} if number else {}
        absent = [] if has_weight else ["weight_ptr"]
        absent += [] if branch else ["branch_ptr", "sum_ptr", "other_ptr", "d_branch_ptr"]
        given = {key: value for key, value in types.items() if key not in absent}
        sizes |= {key: None for key in absent if key in types}
        found.append(
            Configuration(name.format(direction), kernels[number], given, sizes, tile.warps, matrix=False)
        )
    return found
