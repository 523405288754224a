# ruff: noqa: ANN001, ANN201, ANN202  (arguments of device functions are Triton's, without Python types)
r"""The gradient of the queries: one program takes BLOCK_M queries and walks over the keys that they see.

It runs before the pass for the keys, because it holds what that pass needs too, one number per query:

    delta  = rowsum(dout * out)                            written for attention_backward_keys.py
    for each block of BLOCK_N keys:
        p    = 2^(q k^T * scale * log2(e) - lse * log2(e))     the weights, made again
        ds   = p * (dout v^T - delta)
        dq  += ds k
    dq = dq * scale

Source: Dao 2023, https://arxiv.org/abs/2307.08691, algorithm 2, with the loop over dq in a pass of its own;
delta as in Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B.2.
"""

import triton
import triton.language as tl

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_scores import (
    DOCUMENT_BLOCK,
    DOCUMENTS_AT_ONCE,
    LOG2E,
    bend,
    key_stretches,
    load_rows,
    load_tile,
    narrow_to_documents,
    store_rows,
    visible,
)
from scratchlm.kernels.gpu.attention_tiles import attention_configurations


def configurations() -> list[Configuration]:
    """Return what ahead.py compiles."""
    return attention_configurations("backward_queries", queries_kernel)


@triton.jit(do_not_specialize=["num_heads", "num_groups", "num_queries", "num_keys", "window"])
def queries_kernel(
    q, k, v, out, dout, lse, delta, dq, slopes, documents, lowest, highest,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_ot, stride_dob, stride_doh, stride_dot, stride_dqb, stride_dqh, stride_dqt,
    stride_lse, stride_db,
    num_heads, num_groups, num_queries, num_keys, window, softcap,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Compute dq and delta of BLOCK_M queries of one head."""
    num_tiles = tl.cdiv(num_queries, BLOCK_M)
    heads_in_all = tl.num_programs(0) // num_tiles
    first_row = (num_tiles - 1 - tl.program_id(0) // heads_in_all) * BLOCK_M  # the longest first
    batch = (tl.program_id(0) % heads_in_all // num_heads).to(tl.int64)
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    group = head // (num_heads // num_groups)
    rows = first_row + tl.arange(0, BLOCK_M)
    positions = rows + (num_keys - num_queries)
    exists = rows < num_queries
    q_tile = load_rows(
        q + batch * stride_qb + head * stride_qh, stride_qt, first_row, num_queries,
        BLOCK_M, WIDTH, PADDED, True,
    )  # fmt: skip
    dout_tile = load_rows(
        dout + batch * stride_dob + head * stride_doh, stride_dot, first_row, num_queries,
        BLOCK_M, WIDTH_V, PADDED_V, True,
    )  # fmt: skip
    out_tile = load_rows(
        out + batch * stride_ob + head * stride_oh, stride_ot, first_row, num_queries,
        BLOCK_M, WIDTH_V, PADDED_V, True,
    )  # fmt: skip
    place = (batch * num_heads + head) * stride_lse + rows
    row_lse = tl.load(lse + place, mask=exists, other=float("inf")) * LOG2E
    row_delta = tl.sum(out_tile.to(tl.float32) * dout_tile.to(tl.float32), axis=1)
    tl.store(delta + place, row_delta, mask=exists)
    slope = tl.load(slopes + head) if slopes is not None else None
    begin, clear_begin, clear_end, end = key_stretches(
        first_row, num_queries, num_keys, window, BLOCK_M, BLOCK_N, CAUSAL
    )
    row_documents = None
    if documents is not None:
        documents += batch * stride_db
        own = tl.load(documents + tl.minimum(positions, num_keys - 1))
        row_documents = own[:, None]
        begin, end = narrow_to_documents(
            own, lowest, highest, batch, num_keys, begin, end, 0, BLOCK_N, DOCUMENT_BLOCK, DOCUMENTS_AT_ONCE
        )
        clear_end = begin  # every block is compared with the documents
    dq_tile = tl.zeros([BLOCK_M, PADDED], dtype=tl.float32)
    dq_tile = _walk(
        dq_tile, q_tile, dout_tile, row_lse, row_delta,
        k, (stride_kb, stride_kh, stride_ks), v, (stride_vb, stride_vh, stride_vs),
        batch, group, begin, clear_begin, clear_end, end,
        positions, row_documents, documents, slope, num_keys, window, softcap,
        CAUSAL, WIDTH, WIDTH_V, PADDED, PADDED_V, BLOCK_N, DESCRIPTORS,
    )  # fmt: skip
    store_rows(
        dq + batch * stride_dqb + head * stride_dqh, stride_dqt, first_row, num_queries,
        dq_tile * WIDTH**-0.5, BLOCK_M, WIDTH, PADDED,
    )  # fmt: skip


@triton.jit
def _walk(
    dq, q_tile, dout_tile, row_lse, row_delta, k, k_strides, v, v_strides, batch, group,
    begin, clear_begin, clear_end, end,
    positions, row_documents, documents, slope, num_keys, window, softcap,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_N: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Meet the keys begin ... end - 1; between the clear bounds every query sees every key."""
    SCALE: tl.constexpr = WIDTH**-0.5
    factor: tl.constexpr = SCALE * LOG2E if softcap is None and slope is None else 1.0
    for start in tl.range(begin, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_tile = load_tile(
            k, k_strides, batch, group, start, num_keys, BLOCK_N, WIDTH, PADDED, True, DESCRIPTORS
        )
        v_tile = load_tile(
            v, v_strides, batch, group, start, num_keys, BLOCK_N, WIDTH_V, PADDED_V, True, DESCRIPTORS
        )
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        dp = tl.dot(dout_tile, tl.trans(v_tile), input_precision="ieee")
        scores, derivative = bend(products, positions[:, None], keys[None, :], slope, softcap, SCALE)
        if (start < clear_begin) | (start >= clear_end):
            key_documents = None
            if documents is not None:
                key_documents = tl.load(documents + tl.minimum(keys, num_keys - 1))[None, :]
            allowed = visible(
                positions[:, None], keys[None, :], row_documents, key_documents, num_keys, window, CAUSAL
            )
            scores = tl.where(allowed, scores, float("-inf"))
        p = tl.exp2(scores * factor - row_lse[:, None])
        ds = p * (dp - row_delta[:, None])
        if softcap is not None:
            ds *= derivative
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision="ieee")
    return dq
