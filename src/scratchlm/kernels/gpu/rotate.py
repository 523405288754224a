# ruff: noqa: ANN001, ANN201  (arguments of kernels are Triton's, without Python types)
r"""Queries and keys in, turned by their positions' angles out: RoPE for GPUs, with QK-norm or without.

    (a, b) -> (a cos - b sin, a sin + b cos)     a, b: the first and the second half of a head's numbers
    back:  the same with -sin

A program takes TOKENS tokens and HEADS heads of each, and reads the angles of its tokens once for all of its
heads:

    token 0   | q0 q1 q2 q3 | q4 q5 ...  k0 k1 ... | v0 v1 ...     the product of the three projections: a row
    token 1   | q0 q1 q2 q3 | q4 q5 ...  k0 k1 ... | v0 v1 ...     for each token
    ...         one program

Queries and keys stand side by side there, so one launch turns both, where they are, and leaves the values
alone. With QK-norm each head's vector is divided by its root mean square first, while it is in registers; the
gradient then needs the numbers before, so the result goes elsewhere. There are no matrix products: the time
is that of reading and writing each number once.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.support import require
from scratchlm.kernels.rotate import rotate_reference

HEADS = 4
"""Heads of a program: divides most models' numbers of heads, so that no lane is idle (12, 16, 20, 32)."""
PAIRS = 2048
"""Pairs of a program of WARPS warps: 16 a thread, in bfloat16 four loads of 16 bytes on their way at once."""
PAIRS_NORMED = 1024
"""The same with QK-norm, which holds gains and sums, too; 2,048 spill (compiled for sm_90)."""
WARPS = 4
CASES = [(16, "bf16"), (64, "bf16"), (80, "bf16"), (128, "bf16"), (256, "bf16"), (64, "fp32")]
"""Heads and number formats that are compiled ahead of time."""


@triton.jit
def load_angles(cos_ptr, sin_ptr, tokens, seen, HALF: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr):
    """Cosines and sines of some tokens, [tokens, 1, pairs]; TURN = -1 turns back. Not `seen`: zeros."""
    pairs = tl.arange(0, BLOCK)
    places = tokens[:, None, None] * HALF + pairs[None, None, :]
    inside = seen[:, None, None] & (pairs < HALF)[None, None, :]
    cos = tl.load(cos_ptr + places, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + places, mask=inside, other=0.0).to(tl.float32)
    return cos, sin * TURN


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "num_heads", "num_q_heads"])
def turn_kernel(
    source_ptr,
    target_ptr,
    cos_ptr,
    sin_ptr,
    gains_ptr,
    num_rows,
    num_tokens,
    num_heads,
    num_q_heads,
    stride_source_b,
    stride_source_t,
    stride_source_n,
    stride_target_b,
    stride_target_t,
    stride_target_n,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    TURN: tl.constexpr,
    NORM: tl.constexpr,
):
    """Norm (if NORM) and turn (TURN = 1, back -1, not 0) some heads of some tokens.

    A row is a token: row = batch * num_tokens + token.
    """
    num_blocks = tl.cdiv(num_heads, HEADS)
    rows = tl.program_id(0) // num_blocks * TOKENS + tl.arange(0, TOKENS)
    heads = tl.program_id(0) % num_blocks * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    batch, tokens = (rows // num_tokens).to(tl.int64), rows % num_tokens
    seen = rows < num_rows
    inside = seen[:, None, None] & (heads < num_heads)[None, :, None] & (pairs < HALF)[None, None, :]
    source = (batch * stride_source_b + tokens.to(tl.int64) * stride_source_t)[:, None, None]
    source += heads.to(tl.int64)[None, :, None] * stride_source_n + pairs[None, None, :]
    a = tl.load(source_ptr + source, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source_ptr + source + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        r = tl.rsqrt(tl.sum(a * a + b * b, axis=2) / (2 * HALF) + eps)[:, :, None]
        gain = gains_ptr + (heads >= num_q_heads)[None, :, None] * (2 * HALF) + pairs[None, None, :]
        here = (pairs < HALF)[None, None, :]
        a *= r * tl.load(gain, mask=here, other=0.0).to(tl.float32)
        b *= r * tl.load(gain + HALF, mask=here, other=0.0).to(tl.float32)
    if TURN != 0:
        cos, sin = load_angles(cos_ptr, sin_ptr, tokens, seen, HALF, BLOCK, TURN)
        a, b = a * cos - b * sin, a * sin + b * cos
    target = (batch * stride_target_b + tokens.to(tl.int64) * stride_target_t)[:, None, None]
    target += heads.to(tl.int64)[None, :, None] * stride_target_n + pairs[None, None, :]
    tl.store(target_ptr + target, a.to(target_ptr.dtype.element_ty), mask=inside)
    tl.store(target_ptr + target + HALF, b.to(target_ptr.dtype.element_ty), mask=inside)


def rotate(
    x: Float[Tensor, "batch heads time d_head"],
    cos: Float[Tensor, "time pairs"],
    sin: Float[Tensor, "time pairs"],
) -> Float[Tensor, "batch heads time d_head"]:
    """Return x with pair k of each vector turned by its position's angle; as kernels/rotate.py.

    Vectors are read where they are; only if a vector's numbers are not neighbours is x copied first. The
    kernel computes in float32: float64 is left to tensor operations.

    Raises:
        ValueError: The angles do not fit x, or the kernel cannot run where x is.
    """
    if not x.is_floating_point():
        raise ValueError(f"rotate: x is {x.dtype}; give floating-point numbers.")
    if not torch.compiler.is_compiling():
        require("rotate", x, cos, sin)
    check_angles("rotate", cos, sin, num_tokens=x.shape[2], d_head=x.shape[3])
    return rotate_reference(x, cos, sin) if x.dtype == torch.float64 else _rotate(x, cos, sin, False)


def check_angles(operation: str, cos: Tensor, sin: Tensor, *, num_tokens: int, d_head: int) -> None:
    """Check that there are cosines and sines of each token's d_head / 2 angles.

    Raises:
        ValueError: There are not.
    """
    wanted = (num_tokens, d_head // 2)
    if d_head % 2 or cos.shape != wanted or sin.shape != wanted:
        raise ValueError(
            f"{operation}: cos {tuple(cos.shape)}, sin {tuple(sin.shape)} for {num_tokens} tokens, d_head="
            f"{d_head}; d_head must be even, and each token needs d_head / 2 angles."
        )


class Tile(NamedTuple):
    """Tokens, heads and pairs that a program takes at once."""

    tokens: int
    heads: int
    pairs: int


def tile_of(d_head: int, num_pairs: int) -> Tile:
    """Return the tile for heads of `d_head` numbers. Example: (64, 2048) -> 16 tokens, 4 heads, 32 pairs."""
    pairs = triton.next_power_of_2(max(1, d_head // 2))
    return Tile(max(1, num_pairs // (HEADS * pairs)), HEADS, pairs)


@torch.library.custom_op("scratchlm::rotate", mutates_args=())
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """A rotated copy of x [batch, heads, time, d_head]."""
    target = torch.empty_like(x)
    source = x if x.stride(-1) == 1 else x.contiguous()
    if target.stride(-1) == 1:
        _turn(source.transpose(1, 2), target.transpose(1, 2), cos, sin, back=back)
        return target
    turned = torch.empty_like(source)
    _turn(source.transpose(1, 2), turned.transpose(1, 2), cos, sin, back=back)
    return target.copy_(turned)


@_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return _rotate(gradient, *ctx.saved_tensors, not ctx.back), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_remember)


@torch.library.custom_op("scratchlm::rotate_", mutates_args={"packed_BTNK"})
def rotate_(packed_BTNK: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> None:
    """Turn the first `num_heads` heads of each token where they are; the last dimension is contiguous.

    Has no gradient: it is a step of operations that know theirs (project_heads.py).
    """
    heads = packed_BTNK[:, :, :num_heads]
    _turn(heads, heads, cos, sin)


@rotate_.register_fake
def _(packed_BTNK: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> None:
    return None


@torch.library.custom_op("scratchlm::norm_and_rotate", mutates_args=())
def norm_and_rotate(
    packed_BTNK: Tensor,
    gains_2K: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    num_q_heads: int,
    num_kv_heads: int,
    eps: float,
) -> Tensor:
    """QK-norm and, with angles, the turn: queries and keys of `packed_BTNK` in, new ones out, B T heads K.

    The first row of gains is that of the queries. Has no gradient, as `rotate_`.
    """
    source = packed_BTNK[:, :, : num_q_heads + num_kv_heads]
    target = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    _turn(source, target, cos, sin, gains_2K=gains_2K.contiguous(), num_q_heads=num_q_heads, eps=eps)
    return target


@norm_and_rotate.register_fake
def _(
    packed_BTNK: Tensor,
    gains_2K: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    num_q_heads: int,
    num_kv_heads: int,
    eps: float,
) -> Tensor:
    batch, time, _, d_head = packed_BTNK.shape
    return packed_BTNK.new_empty(batch, time, num_q_heads + num_kv_heads, d_head)


def _turn(
    source_BTNK: Tensor,
    target_BTNK: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    back: bool = False,
    gains_2K: Tensor | None = None,
    num_q_heads: int = 0,
    eps: float = 0.0,
) -> None:
    """Launch the kernel; source and target may be the same."""
    batch, num_tokens, num_heads, d_head = source_BTNK.shape
    if source_BTNK.numel() == 0:
        return
    tile = tile_of(d_head, PAIRS if gains_2K is None else PAIRS_NORMED)
    grid = (triton.cdiv(batch * num_tokens, tile.tokens) * triton.cdiv(num_heads, tile.heads),)
    with torch.cuda.device_of(source_BTNK):
        turn_kernel[grid](
            source_BTNK,
            target_BTNK,
            None if cos is None else cos.contiguous(),
            None if sin is None else sin.contiguous(),
            gains_2K,
            batch * num_tokens,
            num_tokens,
            num_heads,
            num_q_heads,
            *source_BTNK.stride()[:3],
            *target_BTNK.stride()[:3],
            eps,
            HALF=d_head // 2,
            BLOCK=tile.pairs,
            TOKENS=tile.tokens,
            HEADS=tile.heads,
            TURN=0 if cos is None else -1 if back else 1,
            NORM=gains_2K is not None,
            num_warps=WARPS,
        )


def configurations() -> list[Configuration]:
    """The kernel as it is launched for common heads: in place, out of place, back, with QK-norm."""
    cases = {"turn": (1, False), "back": (-1, False), "norm": (0, True), "norm_turn": (1, True)}
    return [
        _configuration(f"rotate-{case}-{d_head}-{kind}", d_head, kind, turn, norm)
        for d_head, kind in CASES
        for case, (turn, norm) in cases.items()
    ]


def _configuration(name: str, d_head: int, kind: str, turn: int, norm: bool) -> Configuration:
    tile = tile_of(d_head, PAIRS_NORMED if norm else PAIRS)
    types = {"source_ptr": f"*{kind}", "target_ptr": f"*{kind}", "eps": "fp32"}
    types |= dict.fromkeys(("num_rows", "num_tokens", "num_heads", "num_q_heads"), "i32")
    types |= {f"stride_{tensor}_{axis}": "i32" for tensor in ("source", "target") for axis in "btn"}
    constants = {"HALF": d_head // 2, "BLOCK": tile.pairs, "TOKENS": tile.tokens, "HEADS": tile.heads}
    constants |= {"TURN": turn, "NORM": norm}
    optional = {"cos_ptr": turn != 0, "sin_ptr": turn != 0, "gains_ptr": norm}
    types |= {pointer: "*fp32" for pointer, given in optional.items() if given}
    constants |= {pointer: None for pointer, given in optional.items() if not given}
    return Configuration(name, turn_kernel, types, constants, WARPS, matrix=False)
