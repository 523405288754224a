r"""Tensors and a factor on a GPU come in; only a factor below 1 makes the kernel touch them.

    program      reads the factor; 1 or more: done, nothing is read and nothing written
                 else looks up its piece (tables.py):   x = x * factor

Clipping multiplies gradients by min(1, max_norm / norm). Multiplying 124 million float32 gradients by 1 moves
1 GB, 0.23 ms at 4.3 TB/s (computed for an H200); finding out that there is nothing to do takes a launch of
programs that end at once. The CPU never waits for the factor.

Source: ours; one table for all tensors in tables.py.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels import scale as plain
from scratchlm.kernels.gpu import support
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.tables import KINDS, NUM_WARPS, PIECE, make_table, on, pointer_at, sort_by_kind


def scale_(tensors: Sequence[Tensor], factor: Float[Tensor, ""]) -> None:
    """Multiply all tensors by a factor below 1; not a number makes all of them so.

    Tensors that are not contiguous, and float64, are multiplied by torch.

    Args:
        tensors: float32, bfloat16 or float16.
        factor: At most 1: what is larger counts as 1.

    Raises:
        ValueError: Triton cannot run on the tensors' device, or the factor is on another.
    """
    if torch.compiler.is_compiling():
        _scale_compiled([*tensors], factor)
        return
    _scale(tensors, factor)
    # the kernel works behind torch's back: say so, or a backward pass through old values would not notice
    torch.autograd.graph.increment_version(tensors)


@torch.library.custom_op("scratchlm::scale", mutates_args={"tensors"})
def _scale_compiled(tensors: list[Tensor], factor: Tensor) -> None:
    """The operation as torch.compile sees it: a call that changes its arguments."""
    _scale(tensors, factor)


@_scale_compiled.register_fake
def _(*arguments: object) -> None:
    """Nothing comes out."""


def _scale(tensors: Sequence[Tensor], factor: Tensor) -> None:
    for kind, [alike] in sort_by_kind("scale", [tensors]):
        support.require("scale", alike[0], factor)
        if not kind.whole or kind.formats[0] not in KINDS:
            plain.scale_(alike, factor.clamp(max=1.0))
            continue
        table = make_table(alike)
        if len(table.pieces):
            with on(alike[0].device):
                scale_kernel[(len(table.pieces),)](
                    factor,
                    table.pieces,
                    table.addresses,
                    KIND=KINDS[alike[0].dtype],
                    ALIGNED=table.aligned,
                    PIECE=PIECE,
                    num_warps=NUM_WARPS,
                )


@triton.jit
def _scale_piece(x_at, inside, factor):  # noqa: ANN001, ANN202
    x = tl.load(x_at, mask=inside).to(tl.float32) * factor
    tl.store(x_at, x.to(x_at.dtype.element_ty), mask=inside)


@triton.jit
def scale_kernel(  # noqa: ANN201
    factor, pieces, addresses,  # noqa: ANN001
    KIND: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Multiply one piece of one tensor, if there is anything to do.

    Args:
        factor: One number.
        pieces: This program's line of `addresses` and the number of its piece.
        addresses: Lines of x and the number of coordinates.
        KIND: Number format of x.
        ALIGNED: Whether every tensor begins at a multiple of 16 bytes.
        PIECE: Coordinates of a piece.
    """
    by = tl.load(factor).to(tl.float32)
    if not (by >= 1.0):  # not a number, too
        program = tl.program_id(0)
        line = addresses + tl.load(pieces + 2 * program).to(tl.int64) * 2
        begin = tl.load(pieces + 2 * program + 1).to(tl.int64) * PIECE
        here = begin + tl.arange(0, PIECE)
        x_at = pointer_at(line, KIND, ALIGNED) + here
        size = tl.load(line + 1)
        if begin + PIECE <= size:
            _scale_piece(x_at, None, by)
        else:
            _scale_piece(x_at, here < size, by)


def configurations() -> list[Configuration]:
    """What is compiled ahead: gradients as training has them."""
    return [
        Configuration(
            name=f"scale {kind}",
            kernel=scale_kernel,
            signature={"factor": "*fp32", "pieces": "*i32", "addresses": "*i64"},
            constants={"KIND": kind, "ALIGNED": True, "PIECE": PIECE},
            num_warps=NUM_WARPS,
            matrix=False,
        )
        for kind in (tl.float32, tl.bfloat16)
    ]
