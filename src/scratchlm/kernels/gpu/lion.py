r"""Lion on a GPU: lists of tensors come in and are moved in one launch, in one pass over memory.

    program      looks up its piece of a tensor (tables.py), then for the PIECE coordinates there:
                 reads  p g m        12 bytes a coordinate in float32
                 u = sign(m + (1 - beta1) * (g - m))
                 p = p * kept - step_size * u
                 m = m + (1 - beta2) * (g - m)
                 writes p m          8 bytes

20 bytes a coordinate where AdamW (adamw.py) has 28: memory's speed is the limit, 0.58 ms for 124 million
parameters at 4.3 TB/s (computed for an H200). All arithmetic is float32 whatever the tensors are.

Source: the formula in kernels/lion_plain.py; one table for all tensors in tables.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scratchlm.kernels import lion_plain
from scratchlm.kernels.gpu import support
from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.tables import KINDS, NUM_WARPS, PIECE, make_table, on, pointer_at, sort_by_kind


class _Numbers(NamedTuple):
    """What a step computes with."""

    beta1: float
    beta2: float
    decay: float
    step_size: float


def move(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    memories: Sequence[Tensor],
    *,
    betas: tuple[float, float],
    decay: float | Tensor,
    cautious: bool,
    step_size: float | Tensor,
) -> None:
    """Update parameters and memories in place: one launch for each combination of formats.

    Tensors that are not contiguous, and float64, are moved by `lion_plain.move`. Inside torch.compile give
    what changes from step to step as tensors without dimensions on the CPU, or each change compiles anew.

    Args:
        params: As `lion_plain.move`; float32, bfloat16 or float16.
        grads: As `lion_plain.move`.
        memories: As `lion_plain.move`; in any of the three formats.
        betas: As `lion_plain.move`.
        decay: As `lion_plain.move`.
        cautious: As `lion_plain.move`.
        step_size: As `lion_plain.move`.

    Raises:
        ValueError: Triton cannot run on the tensors' device, or shapes or devices differ.
    """
    numbers = (*betas, decay, step_size)
    if torch.compiler.is_compiling():
        as_tensors = torch.stack([torch.as_tensor(number, dtype=torch.float64) for number in numbers])
        _move_compiled([*params], [*grads], [*memories], as_tensors, cautious)
        return
    _move((params, grads, memories), _Numbers(*map(float, numbers)), cautious)
    # the kernel works behind torch's back: say so, or a backward pass through old values would not notice
    torch.autograd.graph.increment_version([*params, *memories])


@torch.library.custom_op("scratchlm::lion", mutates_args={"params", "memories"})
def _move_compiled(
    params: list[Tensor], grads: list[Tensor], memories: list[Tensor], numbers: Tensor, cautious: bool
) -> None:
    """The operation as torch.compile sees it: a call that changes its arguments."""
    _move((params, grads, memories), _Numbers(*numbers.tolist()), cautious)


@_move_compiled.register_fake
def _(*arguments: object) -> None:
    """Nothing comes out."""


def _move(lists: Sequence[Sequence[Tensor]], numbers: _Numbers, cautious: bool) -> None:
    for kind, alike in sort_by_kind("lion", lists):
        support.require("lion", *(tensors[0] for tensors in alike))
        if not kind.whole or not KINDS.keys() >= set(kind.formats):
            settings = {"decay": numbers.decay, "cautious": cautious, "step_size": numbers.step_size}
            lion_plain.move(*alike, betas=numbers[:2], **settings)
            continue
        table = make_table(*alike)
        if len(table.pieces):
            kept = 1 - numbers.decay
            with on(alike[0][0].device):
                lion_kernel[(len(table.pieces),)](
                    table.pieces,
                    table.addresses,
                    1 - numbers.beta1,
                    1 - numbers.beta2,
                    kept,
                    1.0 if cautious else kept,
                    numbers.step_size,
                    PARAM=KINDS[kind.formats[0]],
                    GRAD=KINDS[kind.formats[1]],
                    MEMORY=KINDS[kind.formats[2]],
                    ALIGNED=table.aligned,
                    PIECE=PIECE,
                    num_warps=NUM_WARPS,
                )


@triton.jit
def _move_piece(  # noqa: ANN202
    p_at, g_at, m_at, inside, new1, new2, kept_towards, kept_away, step_size,  # noqa: ANN001
):  # fmt: skip
    p = tl.load(p_at, mask=inside).to(tl.float32)
    g = tl.load(g_at, mask=inside).to(tl.float32)
    m = tl.load(m_at, mask=inside).to(tl.float32)
    direction = m + new1 * (g - m)
    step = tl.where(direction > 0, step_size, tl.where(direction < 0, -step_size, 0.0))
    kept = tl.where(step * p >= 0, kept_towards, kept_away)
    p = kept * p - step
    m = m + new2 * (g - m)
    tl.store(p_at, p.to(p_at.dtype.element_ty), mask=inside)
    tl.store(m_at, m.to(m_at.dtype.element_ty), mask=inside)


@triton.jit
def lion_kernel(  # noqa: ANN201
    pieces, addresses,  # noqa: ANN001
    new1, new2, kept_towards, kept_away, step_size,  # noqa: ANN001
    PARAM: tl.constexpr, GRAD: tl.constexpr, MEMORY: tl.constexpr,
    ALIGNED: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Move one piece of one tensor.

    Args:
        pieces: This program's line of `addresses` and the number of its piece.
        addresses: Lines of p, g, m and the number of coordinates.
        new1: 1 - beta1.
        new2: 1 - beta2.
        kept_towards: What decay leaves of a coordinate that the update moves towards 0, or not at all.
        kept_away: What it leaves of the others.
        step_size: How far every coordinate moves.
        PARAM: Number format of p.
        GRAD: Number format of g.
        MEMORY: Number format of m.
        ALIGNED: Whether every tensor begins at a multiple of 16 bytes.
        PIECE: Coordinates of a piece.
    """
    program = tl.program_id(0)
    line = addresses + tl.load(pieces + 2 * program).to(tl.int64) * 4
    begin = tl.load(pieces + 2 * program + 1).to(tl.int64) * PIECE  # a tensor may have more than 2^31
    here = begin + tl.arange(0, PIECE)
    p_at = pointer_at(line, PARAM, ALIGNED) + here
    g_at = pointer_at(line + 1, GRAD, ALIGNED) + here
    m_at = pointer_at(line + 2, MEMORY, ALIGNED) + here
    size = tl.load(line + 3)
    if begin + PIECE <= size:
        _move_piece(p_at, g_at, m_at, None, new1, new2, kept_towards, kept_away, step_size)
    else:
        _move_piece(p_at, g_at, m_at, here < size, new1, new2, kept_towards, kept_away, step_size)


def configurations() -> list[Configuration]:
    """What is compiled ahead: each number format that training meets, and tensors that begin anywhere."""
    numbers = ("new1", "new2", "kept_towards", "kept_away", "step_size")
    signature = {"pieces": "*i32", "addresses": "*i64"} | dict.fromkeys(numbers, "fp32")
    return [
        Configuration(
            name=f"lion {'-'.join(map(str, formats))}{'' if aligned else ' unaligned'}",
            kernel=lion_kernel,
            signature=signature,
            constants=dict(zip(("PARAM", "GRAD", "MEMORY"), formats, strict=True))
            | {"ALIGNED": aligned, "PIECE": PIECE},
            num_warps=NUM_WARPS,
            matrix=False,
        )
        for formats, aligned in [
            ((tl.float32,) * 3, True),
            ((tl.float32,) * 3, False),
            ((tl.bfloat16,) * 3, True),
        ]
    ]
