# ruff: noqa: ANN001, ANN201  (arguments of kernels are Triton's, without Python types)
r"""Vectors in, queries, keys and values of all heads out, for GPUs: no copies on the way to attention.

    forward    product = x W^T                       one block of memory, a row of heads for each token
               turn q and k in it, where they are    rotate.py; QK-norm: into a block of their own
               q, k, v = three views of it           attention reads them by their strides

    backward   dq, dk, dv  ->  dproduct              one kernel: gathers the three, turned back, side by side
               dx = dproduct W,  dW = dproduct^T x

Step by step, the backward pass would turn the gradient back in a pass of its own and put the three parts
together in another: this one reads and writes every number once. With QK-norm, n numbers in a head,
r = 1 / sqrt(mean(x^2) + eps) and dy the gradient turned back, the same kernel computes from the product x:

    dgain = sum over tokens and heads of  r * x * dy
    dx    = r * (gain * dy) - x * r^3 / n * sum(gain * dy * x)

Turning the product in place is safe: it is this operation's own, and no gradient needs what it was.

Source: the steps as in kernels/project_heads.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.rotate import (
    CASES,
    PAIRS,
    PAIRS_NORMED,
    WARPS,
    check_angles,
    load_angles,
    norm_and_rotate,
    rotate_,
    tile_of,
)
from scratchlm.kernels.gpu.support import require
from scratchlm.kernels.project_heads import Angles, Gains, Heads
from scratchlm.kernels.rms_norm import rms_norm_reference
from scratchlm.kernels.rotate import rotate_reference


@triton.jit
def gather_heads(
    gradient_ptr,
    stride_b,
    stride_n,
    stride_t,
    product_ptr,
    target_ptr,
    cos_ptr,
    sin_ptr,
    gain_ptr,
    partial_ptr,
    num_rows,
    num_tokens,
    num_heads,
    first_head,
    width,
    token_block,
    head_block,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    TURN: tl.constexpr,
    NORM: tl.constexpr,
):
    """Some heads of one gradient: read, turn back, through the norm, written beside the others' in target.

    Rows of the product and of target have `width` numbers, the gradient's first head is their `first_head`.
    """
    rows = token_block * TOKENS + tl.arange(0, TOKENS)
    heads, pairs = head_block * HEADS + tl.arange(0, HEADS), tl.arange(0, BLOCK)
    batch, tokens = (rows // num_tokens).to(tl.int64), rows % num_tokens
    seen = rows < num_rows
    inside = seen[:, None, None] & (heads < num_heads)[None, :, None] & (pairs < HALF)[None, None, :]
    source = (batch * stride_b + tokens.to(tl.int64) * stride_t)[:, None, None]
    source += heads.to(tl.int64)[None, :, None] * stride_n + pairs[None, None, :]
    a = tl.load(gradient_ptr + source, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(gradient_ptr + source + HALF, mask=inside, other=0.0).to(tl.float32)
    if TURN:
        cos, sin = load_angles(cos_ptr, sin_ptr, tokens, seen, HALF, BLOCK, -1)
        a, b = a * cos - b * sin, a * sin + b * cos
    target = rows.to(tl.int64)[:, None, None] * width
    target += (first_head + heads)[None, :, None] * (2 * HALF) + pairs[None, None, :]
    if NORM:
        x = tl.load(product_ptr + target, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(product_ptr + target + HALF, mask=inside, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(x * x + y * y, axis=2) / (2 * HALF) + eps)[:, :, None]
        x, y = x * r, y * r
        place = partial_ptr + pairs
        tl.store(place, tl.sum(tl.sum(a * x, axis=1), axis=0), mask=pairs < HALF)
        tl.store(place + HALF, tl.sum(tl.sum(b * y, axis=1), axis=0), mask=pairs < HALF)
        a *= tl.load(gain_ptr + pairs, mask=pairs < HALF, other=0.0).to(tl.float32)[None, None, :]
        b *= tl.load(gain_ptr + HALF + pairs, mask=pairs < HALF, other=0.0).to(tl.float32)[None, None, :]
        along = (tl.sum(a * x + b * y, axis=2) / (2 * HALF))[:, :, None]
        a, b = r * (a - x * along), r * (b - y * along)
    tl.store(target_ptr + target, a.to(target_ptr.dtype.element_ty), mask=inside)
    tl.store(target_ptr + target + HALF, b.to(target_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "num_q", "num_kv"])
def gather_kernel(
    dq_ptr,
    dk_ptr,
    dv_ptr,
    product_ptr,
    target_ptr,
    cos_ptr,
    sin_ptr,
    gains_ptr,
    partial_ptr,
    num_rows,
    num_tokens,
    num_q,
    num_kv,
    stride_dq_b,
    stride_dq_n,
    stride_dq_t,
    stride_dk_b,
    stride_dk_n,
    stride_dk_t,
    stride_dv_b,
    stride_dv_n,
    stride_dv_t,
    stride_row,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    TURN: tl.constexpr,
    NORM: tl.constexpr,
):
    """For each block of tokens one program for each block of heads of dq, then of dk, then of dv."""
    q_blocks, kv_blocks = tl.cdiv(num_q, HEADS), tl.cdiv(num_kv, HEADS)
    num_blocks = q_blocks + 2 * kv_blocks
    token_block, block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    share, k_gain_ptr = partial_ptr, gains_ptr
    if NORM:
        share += (token_block.to(tl.int64) * (q_blocks + kv_blocks) + block) * (2 * HALF)
        k_gain_ptr += 2 * HALF
    # a branch for each gradient: a pointer chosen among three would no longer be known to be aligned
    if block < q_blocks:
        gather_heads(
            dq_ptr, stride_dq_b, stride_dq_n, stride_dq_t, product_ptr, target_ptr, cos_ptr, sin_ptr,
            gains_ptr, share, num_rows, num_tokens, num_q, 0, stride_row, token_block, block, eps,
            HALF, BLOCK, TOKENS, HEADS, TURN, NORM,
        )  # fmt: skip
    elif block < q_blocks + kv_blocks:
        gather_heads(
            dk_ptr, stride_dk_b, stride_dk_n, stride_dk_t, product_ptr, target_ptr, cos_ptr, sin_ptr,
            k_gain_ptr, share, num_rows, num_tokens, num_kv, num_q, stride_row,
            token_block, block - q_blocks, eps,
            HALF, BLOCK, TOKENS, HEADS, TURN, NORM,
        )  # fmt: skip
    else:
        gather_heads(
            dv_ptr, stride_dv_b, stride_dv_n, stride_dv_t, product_ptr, target_ptr, cos_ptr, sin_ptr,
            gains_ptr, share, num_rows, num_tokens, num_kv, num_q + num_kv, stride_row,
            token_block, block - q_blocks - kv_blocks, eps,
            HALF, BLOCK, TOKENS, HEADS, False, False,
        )  # fmt: skip


def project_heads(
    x_BTD: Float[Tensor, "batch time d_model"],
    weight_ED: Float[Tensor, "width d_model"],
    bias_E: Float[Tensor, " width"] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    gains: Gains | None = None,
    angles: Angles | None = None,
) -> Heads:
    """Return queries, keys and values as views of one block; arguments as in kernels/project_heads.py.

    The kernels compute in float32: float64 is left to tensor operations.

    Raises:
        ValueError: Shapes do not fit together, or the kernels cannot run where x is.
    """
    d_head = _check(x_BTD, weight_ED, num_heads, num_kv_heads, gains)
    cos, sin = (None, None) if angles is None else angles
    if cos is not None and sin is not None:
        check_angles("project_heads", cos, sin, num_tokens=x_BTD.shape[1], d_head=d_head)
    if not torch.compiler.is_compiling():
        require("project_heads", x_BTD, weight_ED, bias_E, cos, sin, *(gains[:2] if gains else ()))
    if x_BTD.dtype == weight_ED.dtype == torch.float64:
        return _by_steps(x_BTD, weight_ED, bias_E, num_heads, num_kv_heads, gains, angles)
    gains_2K, eps = (None, 0.0) if gains is None else (torch.stack(gains[:2]), gains.eps)
    product = (tensor if tensor is None else _for_product(tensor) for tensor in (x_BTD, weight_ED, bias_E))
    return Heads(*_ProjectHeads.apply(*product, gains_2K, cos, sin, num_heads, num_kv_heads, eps))


def _check(x: Tensor, weight: Tensor, num_heads: int, num_kv_heads: int, gains: Gains | None) -> int:
    """Return d_head if everything fits together."""
    heads = num_heads + 2 * num_kv_heads
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] % (2 * heads):
        raise ValueError(
            f"project_heads: x {tuple(x.shape)}, weight {tuple(weight.shape)} for {num_heads} query and "
            f"{num_kv_heads} key heads; x is (batch, time, d_model), the weight has d_head rows for each of "
            f"{heads} heads, d_head even, and d_model columns."
        )
    d_head = weight.shape[0] // heads
    for gain in gains[:2] if gains else ():
        if gain.shape != (d_head,):
            raise ValueError(f"project_heads: a gain of shape {tuple(gain.shape)} for d_head={d_head}.")
    return d_head


def _by_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    gains: Gains | None,
    angles: Angles | None,
) -> Heads:
    """The same in the inputs' own number format: each step by its formula."""
    product = x @ weight.T if bias is None else x @ weight.T + bias
    heads_BNTK = product.unflatten(-1, (num_heads + 2 * num_kv_heads, -1)).transpose(1, 2)
    q, k, v = heads_BNTK.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if gains is not None:
        q, k = (rms_norm_reference(x, gain, eps=gains.eps) for x, gain in zip((q, k), gains[:2], strict=True))
    if angles is not None:
        q, k = (rotate_reference(x, *angles) for x in (q, k))
    return Heads(q, k, v)


def _for_product(tensor: Tensor) -> Tensor:
    """The tensor in the number format that autocast wants for matrix products, if it is on."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


class _ProjectHeads(torch.autograd.Function):
    """The product and what is done in it; torch.compile sees a product and one operation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gains_2K: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        num_heads: int,
        num_kv_heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        turned, num_all = num_heads + num_kv_heads, num_heads + 2 * num_kv_heads
        rows = x.reshape(-1, x.shape[-1])
        product = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        product_BTNK = product.view(*x.shape[:2], num_all, weight.shape[0] // num_all)
        qk_BTNK = product_BTNK
        if gains_2K is not None:
            qk_BTNK = norm_and_rotate(product_BTNK, gains_2K, cos, sin, num_heads, num_kv_heads, eps)
        elif cos is not None:
            rotate_(product_BTNK, cos, sin, turned)
        ctx.eps, ctx.has_bias = eps, bias is not None
        kept = None if gains_2K is None else product_BTNK
        ctx.save_for_backward(x, weight, kept, gains_2K, cos, sin)
        qk_BNTK, v_BGTK = qk_BTNK.transpose(1, 2), product_BTNK.transpose(1, 2)[:, turned:]
        return qk_BNTK[:, :num_heads], qk_BNTK[:, num_heads:turned], v_BGTK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, product_BTNK, gains_2K, cos, sin = ctx.saved_tensors
        d_product, d_gains = _gather(*gradients, product_BTNK, gains_2K, cos, sin, ctx.eps)
        rows = d_product.view(-1, weight.shape[0])
        dx = (rows @ weight).view(x.shape)
        dw = rows.T @ x.reshape(-1, x.shape[-1])
        db = rows.sum(dim=0) if ctx.has_bias else None
        dg = None if gains_2K is None else d_gains.to(gains_2K.dtype)
        return dx, dw, db, dg, None, None, None, None, None


@torch.library.custom_op("scratchlm::gather_heads", mutates_args=())
def _gather(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    product_BTNK: Tensor | None,
    gains_2K: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The product's gradient [B, T, heads, K], and the gains' [2, K] in float32 (empty without gains)."""
    batch, num_q, num_tokens, d_head = dq.shape
    num_kv = dk.shape[1]
    target = torch.empty((batch, num_tokens, num_q + 2 * num_kv, d_head), dtype=dq.dtype, device=dq.device)
    if target.numel() == 0:
        return target, torch.zeros((0 if gains_2K is None else 2, d_head), device=dq.device)
    dq, dk, dv = (each if each.stride(-1) == 1 else each.contiguous() for each in (dq, dk, dv))
    tile = tile_of(d_head, PAIRS if gains_2K is None else PAIRS_NORMED)
    q_blocks, kv_blocks = triton.cdiv(num_q, tile.heads), triton.cdiv(num_kv, tile.heads)
    token_blocks = triton.cdiv(batch * num_tokens, tile.tokens)
    shares = (token_blocks, 0 if gains_2K is None else q_blocks + kv_blocks, d_head)
    partial = torch.empty(shares, dtype=torch.float32, device=dq.device)
    with torch.cuda.device_of(dq):
        gather_kernel[(token_blocks * (q_blocks + 2 * kv_blocks),)](
            *(dq, dk, dv, product_BTNK, target),
            *(None if each is None else each.contiguous() for each in (cos, sin, gains_2K)),
            *(partial, batch * num_tokens, num_tokens, num_q, num_kv),
            *(stride for each in (dq, dk, dv) for stride in each.stride()[:3]),
            *(target.stride(1), eps),
            HALF=d_head // 2,
            BLOCK=tile.pairs,
            TOKENS=tile.tokens,
            HEADS=tile.heads,
            TURN=cos is not None,
            NORM=gains_2K is not None,
            num_warps=WARPS,
        )
    by_block = partial.sum(dim=0)
    d_gains = [part.sum(dim=0) for part in by_block.split([q_blocks, kv_blocks])] if len(by_block) else []
    return target, torch.stack(d_gains) if d_gains else by_block


@_gather.register_fake
def _(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    product_BTNK: Tensor | None,
    gains_2K: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    batch, num_q, num_tokens, d_head = dq.shape
    target = dq.new_empty((batch, num_tokens, num_q + 2 * dk.shape[1], d_head))
    return target, dq.new_empty((0 if gains_2K is None else 2, d_head), dtype=torch.float32)


def configurations() -> list[Configuration]:
    """The kernel as it is launched for common heads, with and without angles and QK-norm."""
    return [
        _configuration(d_head, kind, turn, norm)
        for d_head, kind in CASES
        for turn, norm in ((True, False), (False, False), (True, True), (False, True))
    ]


def _configuration(d_head: int, kind: str, turn: bool, norm: bool) -> Configuration:
    tile = tile_of(d_head, PAIRS_NORMED if norm else PAIRS)
    types = {"target_ptr": f"*{kind}", "partial_ptr": "*fp32", "stride_row": "i32", "eps": "fp32"}
    types |= dict.fromkeys(("num_rows", "num_tokens", "num_q", "num_kv"), "i32")
    for name in ("dq", "dk", "dv"):
        types |= {f"{name}_ptr": f"*{kind}"} | {f"stride_{name}_{axis}": "i32" for axis in "bnt"}
    constants = {"HALF": d_head // 2, "BLOCK": tile.pairs, "TOKENS": tile.tokens, "HEADS": tile.heads}
    constants |= {"TURN": turn, "NORM": norm}
    optional = {"cos_ptr": (turn, "fp32"), "sin_ptr": (turn, "fp32")}
    optional |= {"gains_ptr": (norm, "fp32"), "product_ptr": (norm, kind)}
    types |= {pointer: f"*{of}" for pointer, (given, of) in optional.items() if given}
    constants |= {pointer: None for pointer, (given, _) in optional.items() if not given}
    steps = "".join(f"-{step}" for step, done in (("turn", turn), ("norm", norm)) if done)
    return Configuration(
        f"gather{steps}-{d_head}-{kind}", gather_kernel, types, constants, WARPS, matrix=False
    )
