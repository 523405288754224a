r"""AdamW on a GPU: lists of tensors come in and are moved in one launch, in one pass over memory.

    program      looks up its piece of a tensor (tables.py), then for the PIECE coordinates there:
                 reads  p g m v      16 bytes a coordinate in float32
                 m = m + (1 - beta1) * (g - m)
                 v = beta2 * v + (1 - beta2) * g^2
                 p = p * kept - step_size * m / (sqrt(v) + eps)
                 writes p m v        12 bytes

28 bytes and some 20 operations a coordinate: memory's speed is the limit, 0.81 ms for 124 million parameters
at 4.3 TB/s (computed for an H200). One pass reads and writes each number once; written with tensor operations
the update makes seven passes. All arithmetic is float32 whatever the tensors are, so bfloat16 parameters may
have float32 means. Nothing is a compile-time constant that changes during training: the kernel is compiled
once for each combination of number formats.

`tl.sqrt` and `/` are the GPU's fast ones, right to the last or last but one bit: the update is 1e-3 of a
parameter, so their error is far below the rounding of p itself.

Source: the formula in adamw_reference.py; one table for all tensors in tables.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scratchlm.kernels import adamw_plain
from scratchlm.kernels.gpu import support
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.tables import KINDS, NUM_WARPS, PIECE, make_table, on, pointer_at, sort_by_kind


class _Numbers(NamedTuple):
    """What a step computes with."""

    beta1: float
    beta2: float
    decay: float
    step_size: float
    eps: float


def move(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    decay: float | Tensor,
    cautious: bool,
    step_size: float | Tensor,
    eps: float | Tensor,
) -> None:
    """Update parameters, means and means of squares in place: one launch for each combination of formats.

    Tensors that are not contiguous, and float64, are moved by `adamw_plain.move`. Inside torch.compile give
    what changes from step to step as tensors without dimensions on the CPU, or each change compiles anew.

    Args:
        params: As `adamw_reference.move`; float32, bfloat16 or float16.
        grads: As `adamw_reference.move`.
        means: As `adamw_reference.move`; in any of the three formats.
        squares: As `adamw_reference.move`; in any of the three formats.
        betas: As `adamw_reference.move`.
        decay: As `adamw_reference.move`.
        cautious: As `adamw_reference.move`.
        step_size: As `adamw_reference.move`.
        eps: As `adamw_reference.move`.

    Raises:
        ValueError: Triton cannot run on the tensors' device, or shapes or devices differ.
    """
    numbers = (*betas, decay, step_size, eps)
    if torch.compiler.is_compiling():
        as_tensors = torch.stack([torch.as_tensor(number, dtype=torch.float64) for number in numbers])
        _move_compiled([*params], [*grads], [*means], [*squares], as_tensors, cautious)
        return
    _move((params, grads, means, squares), _Numbers(*map(float, numbers)), cautious)
    # the kernel works behind torch's back: say so, or a backward pass through old values would not notice
    torch.autograd.graph.increment_version([*params, *means, *squares])


@torch.library.custom_op("scratchlm::adamw", mutates_args={"params", "means", "squares"})
def _move_compiled(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    numbers: Tensor,
    cautious: bool,
) -> None:
    """The operation as torch.compile sees it: a call that changes its arguments."""
    _move((params, grads, means, squares), _Numbers(*numbers.tolist()), cautious)


@_move_compiled.register_fake
def _(*arguments: object) -> None:
    """Nothing comes out."""


def _move(lists: Sequence[Sequence[Tensor]], numbers: _Numbers, cautious: bool) -> None:
    for kind, alike in sort_by_kind("adamw", lists):
        support.require("adamw", *(tensors[0] for tensors in alike))
        if kind.whole and KINDS.keys() >= set(kind.formats):
            _launch(alike, numbers, cautious)
        else:
            betas, settings = numbers[:2], {"decay": numbers.decay, "step_size": numbers.step_size}
            adamw_plain.move(*alike, betas=betas, cautious=cautious, eps=numbers.eps, **settings)


def _launch(lists: Sequence[Sequence[Tensor]], numbers: _Numbers, cautious: bool) -> None:
    table = make_table(*lists)
    if not len(table.pieces):
        return
    kept = 1 - numbers.decay
    with on(lists[0][0].device):
        adamw_kernel[(len(table.pieces),)](
            table.pieces,
            table.addresses,
            1 - numbers.beta1,
            numbers.beta2,
            1 - numbers.beta2,
            kept,
            1.0 if cautious else kept,
            numbers.step_size,
            numbers.eps,
            PARAM=KINDS[lists[0][0].dtype],
            GRAD=KINDS[lists[1][0].dtype],
            MEAN=KINDS[lists[2][0].dtype],
            SQUARE=KINDS[lists[3][0].dtype],
            ALIGNED=table.aligned,
            PIECE=PIECE,
            num_warps=NUM_WARPS,
        )


@triton.jit
def _move_piece(  # noqa: ANN202
    p_at, g_at, m_at, v_at, inside,  # noqa: ANN001
    new1, beta2, new2, kept_towards, kept_away, step_size, eps,  # noqa: ANN001
):  # fmt: skip
    p = tl.load(p_at, mask=inside).to(tl.float32)
    g = tl.load(g_at, mask=inside).to(tl.float32)
    m = tl.load(m_at, mask=inside).to(tl.float32)
    v = tl.load(v_at, mask=inside).to(tl.float32)
    m = m + new1 * (g - m)
    v = beta2 * v + new2 * g * g
    kept = tl.where(m * p >= 0, kept_towards, kept_away)
    p = kept * p - step_size * m / (tl.sqrt(v) + eps)
    tl.store(p_at, p.to(p_at.dtype.element_ty), mask=inside)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=inside)
    tl.store(v_at, v.to(v_at.dtype.element_ty), mask=inside)


@triton.jit
def adamw_kernel(  # noqa: ANN201
    pieces, addresses,  # noqa: ANN001
    new1, beta2, new2, kept_towards, kept_away, step_size, eps,  # noqa: ANN001
    PARAM: tl.constexpr, GRAD: tl.constexpr, MEAN: tl.constexpr, SQUARE: tl.constexpr,
    ALIGNED: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Move one piece of one tensor.

    Args:
        pieces: This program's line of `addresses` and the number of its piece.
        addresses: Lines of p, g, m, v and the number of coordinates.
        new1: 1 - beta1.
        beta2: How much of v is kept.
        new2: 1 - beta2.
        kept_towards: What decay leaves of a coordinate that the update moves towards 0.
        kept_away: What it leaves of the others.
        step_size: Factor of m / (sqrt(v) + eps).
        eps: Added to the root.
        PARAM: Number format of p.
        GRAD: Number format of g.
        MEAN: Number format of m.
        SQUARE: Number format of v.
        ALIGNED: Whether every tensor begins at a multiple of 16 bytes.
        PIECE: Coordinates of a piece.
    """
    program = tl.program_id(0)
    line = addresses + tl.load(pieces + 2 * program).to(tl.int64) * 5
    begin = tl.load(pieces + 2 * program + 1).to(tl.int64) * PIECE  # a tensor may have more than 2^31
    here = begin + tl.arange(0, PIECE)
    p_at = pointer_at(line, PARAM, ALIGNED) + here
    g_at = pointer_at(line + 1, GRAD, ALIGNED) + here
    m_at = pointer_at(line + 2, MEAN, ALIGNED) + here
    v_at = pointer_at(line + 3, SQUARE, ALIGNED) + here
    size = tl.load(line + 4)
    # a mask whose end is any number would make every access a single one: only a tensor's last piece has it
    if begin + PIECE <= size:
        _move_piece(
            p_at, g_at, m_at, v_at, None,
            new1, beta2, new2, kept_towards, kept_away, step_size, eps,
        )  # fmt: skip
    else:
        _move_piece(
            p_at, g_at, m_at, v_at, here < size,
            new1, beta2, new2, kept_towards, kept_away, step_size, eps,
        )  # fmt: skip


def configurations() -> list[Configuration]:
    """What is compiled ahead: each number format that training meets, and tensors that begin anywhere."""
    numbers = ("new1", "beta2", "new2", "kept_towards", "kept_away", "step_size", "eps")
    signature = {"pieces": "*i32", "addresses": "*i64"} | dict.fromkeys(numbers, "fp32")
    float32, bfloat16 = tl.float32, tl.bfloat16
    return [
        Configuration(
            name=f"adamw {'-'.join(map(str, formats))}{'' if aligned else ' unaligned'}",
            kernel=adamw_kernel,
            signature=signature,
            constants=dict(zip(("PARAM", "GRAD", "MEAN", "SQUARE"), formats, strict=True))
            | {"ALIGNED": aligned, "PIECE": PIECE},
            num_warps=NUM_WARPS,
            matrix=False,
        )
        for formats, aligned in [
            ((float32,) * 4, True),
            ((float32,) * 4, False),
            ((bfloat16, bfloat16, float32, float32), True),
            ((bfloat16,) * 4, True),
        ]
    ]
