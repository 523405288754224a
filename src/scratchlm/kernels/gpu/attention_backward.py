# ruff: noqa: ANN001, ANN201  (arguments of device functions are Triton's, without Python types)
r"""The gradient of the output comes in, the gradients of the queries, keys and values go out.

The forward pass kept no weights, only the logarithm of each softmax's sum (lse). With s = scale * q k^T:

    p     = exp(s - lse)                      the weights, made again block by block
    dv    = p^T dout
    dp    = dout v^T
    delta = rowsum(p * dp) = rowsum(dout * out)
    ds    = p * (dp - delta)                  the softmax's gradient
    dq    = scale * ds k,   dk = scale * ds^T q

dq is a sum over keys, dk and dv are sums over queries: no program can own both. Two ways out:

    two_pass    one kernel whose programs own queries (dq), one whose programs own keys (dk, dv). Both make s
                and dp: seven matrix products for five, but nothing is shared: every run gives the same bits.
    one_pass    programs own keys, and add their parts of dq to float32 in memory with atomic operations: five
                products. The order of the additions, and so the last bits of dq, change from run to run.

Source: Dao 2023, https://arxiv.org/abs/2307.08691, section 3.1.2 and algorithm 2.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_backward_keys import keys_kernel
from scratchlm.kernels.gpu.attention_backward_queries import queries_kernel
from scratchlm.kernels.gpu.attention_memory import (
    Documents,
    Masks,
    aligned_numbers,
    can_describe,
    describe,
    describe_numbers,
    empty_by_time,
    empty_numbers,
    find_documents,
    padded,
)
from scratchlm.kernels.gpu.attention_scores import load_rows
from scratchlm.kernels.gpu.attention_tiles import Tile, choose_tile, is_crowded

WAYS = ("two_pass", "one_pass")

DELTA_ROWS = 64
"""Rows of a program that only reads two tensors: with 64 to 256 columns 8 to 32 KB are on their way."""


class Saved(NamedTuple):
    """What the forward pass left."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


def backward(
    saved: Saved, dout: Tensor, masks: Masks, *, way: str = "two_pass", tiles: tuple[Tile, ...] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, which lie in memory as (batch, time, heads, width).

    Args:
        saved: Inputs and results of the forward pass; their rows are contiguous.
        dout: The gradient of the output, its rows contiguous.
        masks: As in the forward pass.
        way: One of WAYS.
        tiles: For two_pass those of the queries' and the keys' kernel, for one_pass that of its kernel; None:
            as the table says.
    """
    tiles = tiles or table_tiles(saved, dout, masks, way)
    documents = find_documents(masks.documents)
    saved = saved._replace(lse=aligned_numbers(saved.lse))
    delta = empty_numbers(*saved.lse.shape, saved.lse)
    with torch.cuda.device_of(saved.q):
        if way == "two_pass":
            dq = _queries(saved, dout, delta, masks, documents, tiles[0])
            dk, dv = _keys(saved, dout, delta, None, masks, documents, tiles[1])
        else:
            _delta(saved.out, dout, delta)
            sums = torch.zeros(saved.q.shape, dtype=torch.float32, device=saved.q.device)
            dk, dv = _keys(saved, dout, delta, sums, masks, documents, tiles[0])
            # scaled and rounded in one pass
            dq = torch.mul(sums, saved.q.shape[3] ** -0.5, out=_empty_like(saved.q))
    return dq, dk, dv


def table_tiles(saved: Saved, dout: Tensor, masks: Masks, way: str) -> tuple[Tile, ...]:
    """Return the table's tile of each kernel that one way needs."""
    width_v, group = saved.v.shape[3], saved.q.shape[1] // saved.k.shape[1]
    walked = {
        "backward_queries": (can_describe(saved.k, saved.v), is_crowded(masks)),
        "backward_keys": (can_describe(saved.q, dout), is_crowded(masks, group)),
        "backward_one_pass": (can_describe(saved.q, dout), is_crowded(masks, group)),
    }
    names = ("backward_queries", "backward_keys") if way == "two_pass" else ("backward_one_pass",)
    return tuple(
        choose_tile(name, saved.q, width_v, describable=walked[name][0], crowded=walked[name][1])
        for name in names
    )


def _empty_like(x_BHTK: Tensor) -> Tensor:
    return empty_by_time(*x_BHTK.shape[:3], x_BHTK, x_BHTK.shape[3])


def _queries(
    saved: Saved, dout: Tensor, delta: Tensor, masks: Masks, documents: Documents, tile: Tile
) -> Tensor:
    q, k, v, out, lse = saved
    dq = _empty_like(q)
    batch, num_heads, num_queries, width = q.shape
    width_v = v.shape[3]
    described = tile.loads == "descriptors"
    queries_kernel[(triton.cdiv(num_queries, tile.block_m) * batch * num_heads,)](
        q,
        describe(k, tile.block_n) if described else k,
        describe(v, tile.block_n) if described else v,
        out, dout, lse, delta, dq, masks.slopes, *documents[:3],
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *dout.stride()[:3],
        *dq.stride()[:3], lse.stride(1), documents.stride,
        num_heads, k.shape[1], num_queries, k.shape[2], masks.window, masks.softcap,
        CAUSAL=masks.causal, WIDTH=width, WIDTH_V=width_v, PADDED=padded(width), PADDED_V=padded(width_v),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, DESCRIPTORS=described,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return dq


def _keys(
    saved: Saved,
    dout: Tensor,
    delta: Tensor,
    dq_sums: Tensor | None,
    masks: Masks,
    documents: Documents,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    q, k, v, _, lse = saved
    dk, dv = _empty_like(k), _empty_like(v)
    batch, num_groups, num_keys, width = k.shape
    num_heads, num_queries, width_v = q.shape[1], q.shape[2], v.shape[3]
    described = tile.loads == "descriptors"
    keys_kernel[(triton.cdiv(num_keys, tile.block_n) * batch * num_groups,)](
        describe(q, tile.block_m) if described else q, k, v,
        describe(dout, tile.block_m) if described else dout,
        describe_numbers(lse, tile.block_m) if described else lse,
        describe_numbers(delta, tile.block_m) if described else delta,
        dk, dv, dq_sums, masks.slopes, *documents[:3],
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3], *dk.stride()[:3],
        *dv.stride()[:3], lse.stride(1), documents.stride,
        num_groups, num_queries, num_keys, masks.window, masks.softcap, GROUP=num_heads // num_groups,
        CAUSAL=masks.causal, WIDTH=width, WIDTH_V=width_v, PADDED=padded(width), PADDED_V=padded(width_v),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, DESCRIPTORS=described,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return dk, dv


def _delta(out: Tensor, dout: Tensor, delta: Tensor) -> None:
    batch, num_heads, num_queries, width_v = out.shape
    delta_kernel[(triton.cdiv(num_queries, DELTA_ROWS) * batch * num_heads,)](
        out, dout, delta, *out.stride()[:3], *dout.stride()[:3], delta.stride(1), num_heads, num_queries,
        WIDTH_V=width_v, PADDED_V=padded(width_v), ROWS=DELTA_ROWS, num_warps=4,
    )  # fmt: skip


def configurations() -> list[Configuration]:
    """Return what ahead.py compiles of this file; the other kernels' files have their own."""
    made = []
    for width in (64, 128):
        types = dict.fromkeys(delta_kernel.arg_names[3:12], "i32")
        types |= {"out": "*bf16", "dout": "*bf16", "delta": "*fp32"}
        constants = {"WIDTH_V": width, "PADDED_V": width, "ROWS": DELTA_ROWS}
        made.append(Configuration(f"delta bf16 {width}", delta_kernel, types, constants, matrix=False))
    return made


@triton.jit(do_not_specialize=["num_heads", "num_queries"])
def delta_kernel(
    out, dout, delta, stride_ob, stride_oh, stride_ot, stride_dob, stride_doh, stride_dot, stride_lse,
    num_heads, num_queries, WIDTH_V: tl.constexpr, PADDED_V: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute rowsum(dout * out) of ROWS rows of one head."""
    num_tiles = tl.cdiv(num_queries, ROWS)
    first = tl.program_id(0) % num_tiles * ROWS
    head = (tl.program_id(0) // num_tiles % num_heads).to(tl.int64)
    batch = (tl.program_id(0) // num_tiles // num_heads).to(tl.int64)
    rows = first + tl.arange(0, ROWS)
    out_tile = load_rows(
        out + batch * stride_ob + head * stride_oh, stride_ot, first, num_queries,
        ROWS, WIDTH_V, PADDED_V, True,
    )  # fmt: skip
    dout_tile = load_rows(
        dout + batch * stride_dob + head * stride_doh, stride_dot, first, num_queries,
        ROWS, WIDTH_V, PADDED_V, True,
    )  # fmt: skip
    total = tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), axis=1)
    tl.store(delta + (batch * num_heads + head) * stride_lse + rows, total, mask=rows < num_queries)
