# ruff: noqa: ANN001, ANN201, ANN202  (arguments of device functions are Triton's, without Python types)
r"""The gradient of keys and values: one program takes BLOCK_N keys and walks down the queries that see them.

Everything is computed transposed, keys as rows, so that both sums that the program keeps are plain products
with the blocks of queries as they lie in memory; k, v and the two sums stay where they are all the way:

    for each query head of this key head, for each block of BLOCK_M queries:
        p^T   = 2^(k q^T * scale * log2(e) - lse * log2(e))      the weights, made again
        dv   += p^T dout
        ds^T  = p^T * (v dout^T - delta)
        dk   += ds^T q
        dq   += ds k                                             one_pass only: added in memory, by atomics
    dk = dk * scale

The query heads that share a key head follow one another in the same program: no two programs write to one
place, so the sums are the same in every run. With one_pass the parts of dq arrive in any order.

Source: Dao 2023, https://arxiv.org/abs/2307.08691, algorithm 2.
"""

import triton
import triton.language as tl

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_scores import (
    DOCUMENT_BLOCK,
    DOCUMENTS_AT_ONCE,
    LOG2E,
    bend,
    load_numbers,
    load_rows,
    load_tile,
    narrow_to_documents,
    query_stretches,
    store_rows,
    visible,
)
from scratchlm.kernels.gpu.attention_tiles import attention_configurations


def configurations() -> list[Configuration]:
    """Return what ahead.py compiles."""
    two = attention_configurations("backward_keys", keys_kernel)
    return two + attention_configurations("backward_one_pass", keys_kernel)


@triton.jit(do_not_specialize=["num_groups", "num_queries", "num_keys", "window"])
def keys_kernel(
    q, k, v, dout, lse, delta, dk, dv, dq, slopes, documents, lowest, highest,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_dob, stride_doh, stride_dot, stride_dkb, stride_dkh, stride_dks,
    stride_dvb, stride_dvh, stride_dvs, stride_lse, stride_db,
    num_groups, num_queries, num_keys, window, softcap, GROUP: tl.constexpr,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of BLOCK_N keys of one key head; GROUP query heads share it."""
    heads_in_all = tl.num_programs(0) // tl.cdiv(num_keys, BLOCK_N)
    first_key = tl.program_id(0) // heads_in_all * BLOCK_N  # the first keys are seen longest: they go first
    batch = (tl.program_id(0) % heads_in_all // num_groups).to(tl.int64)
    group = (tl.program_id(0) % num_groups).to(tl.int64)
    past = num_keys - num_queries
    keys = first_key + tl.arange(0, BLOCK_N)
    k_tile = load_rows(
        k + batch * stride_kb + group * stride_kh, stride_ks, first_key, num_keys,
        BLOCK_N, WIDTH, PADDED, True,
    )  # fmt: skip
    v_tile = load_rows(
        v + batch * stride_vb + group * stride_vh, stride_vs, first_key, num_keys,
        BLOCK_N, WIDTH_V, PADDED_V, True,
    )  # fmt: skip
    begin, clear_begin, clear_end, end = query_stretches(
        first_key, num_queries, num_keys, window, BLOCK_N, BLOCK_M, CAUSAL
    )
    key_documents = None
    if documents is not None:
        documents += batch * stride_db
        own = tl.load(documents + tl.minimum(keys, num_keys - 1))
        key_documents = own[:, None]
        begin, end = narrow_to_documents(
            own, lowest, highest, batch, num_keys, begin, end, past,
            BLOCK_M, DOCUMENT_BLOCK, DOCUMENTS_AT_ONCE,
        )  # fmt: skip
        clear_end = begin  # every block is compared with the documents
    dk_tile = tl.zeros([BLOCK_N, PADDED], dtype=tl.float32)
    dv_tile = tl.zeros([BLOCK_N, PADDED_V], dtype=tl.float32)
    for member in tl.range(0, GROUP):
        head = group * GROUP + member
        slope = tl.load(slopes + head) if slopes is not None else None
        row = batch * num_groups * GROUP + head
        dq_start = dq + row * num_queries * WIDTH if dq is not None else None
        dk_tile, dv_tile = _walk(
            dk_tile, dv_tile, k_tile, v_tile, keys, key_documents,
            q, (stride_qb, stride_qh, stride_qt), dout, (stride_dob, stride_doh, stride_dot),
            dq_start, lse, delta, stride_lse, batch, head, row, begin, clear_begin, clear_end, end,
            documents, slope, num_queries, num_keys, window, softcap,
            CAUSAL, WIDTH, WIDTH_V, PADDED, PADDED_V, BLOCK_M, DESCRIPTORS,
        )  # fmt: skip
    store_rows(
        dk + batch * stride_dkb + group * stride_dkh, stride_dks, first_key, num_keys,
        dk_tile * WIDTH**-0.5, BLOCK_N, WIDTH, PADDED,
    )  # fmt: skip
    store_rows(
        dv + batch * stride_dvb + group * stride_dvh, stride_dvs, first_key, num_keys,
        dv_tile, BLOCK_N, WIDTH_V, PADDED_V,
    )  # fmt: skip


@triton.jit
def _walk(
    dk, dv, k_tile, v_tile, keys, key_documents, q, q_strides, dout, dout_strides, dq_start,
    lse, delta, stride_lse, batch, head, row, begin, clear_begin, clear_end, end,
    documents, slope, num_queries, num_keys, window, softcap,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Meet the queries begin ... end - 1; between the clear bounds every query sees every key."""
    SCALE: tl.constexpr = WIDTH**-0.5
    factor: tl.constexpr = SCALE * LOG2E if softcap is None and slope is None else 1.0
    for start in tl.range(begin, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        positions = rows + (num_keys - num_queries)
        exists = rows < num_queries
        q_tile = load_tile(
            q, q_strides, batch, head, start, num_queries, BLOCK_M, WIDTH, PADDED, True, DESCRIPTORS
        )
        products = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")
        scores, derivative = bend(products, positions[None, :], keys[:, None], slope, softcap, SCALE)
        if (start < clear_begin) | (start >= clear_end):
            row_documents = None
            if documents is not None:
                row_documents = tl.load(documents + tl.minimum(positions, num_keys - 1))[None, :]
            allowed = visible(
                positions[None, :], keys[:, None], row_documents, key_documents, num_keys, window, CAUSAL
            )
            scores = tl.where(allowed, scores, float("-inf"))
        row_lse = load_numbers(lse, stride_lse, row, start, num_queries, BLOCK_M, DESCRIPTORS)
        row_delta = load_numbers(delta, stride_lse, row, start, num_queries, BLOCK_M, DESCRIPTORS)
        if slope is not None:
            # rows that do not exist: a bias may have no bound, but 2^(s - inf) is 0
            row_lse = tl.where(exists, row_lse, float("inf"))
        p = tl.exp2(scores * factor - (row_lse * LOG2E)[None, :])
        dout_tile = load_tile(
            dout, dout_strides, batch, head, start, num_queries, BLOCK_M, WIDTH_V, PADDED_V, True, DESCRIPTORS
        )
        dv = tl.dot(p.to(dout_tile.dtype), dout_tile, dv, input_precision="ieee")
        dp = tl.dot(v_tile, tl.trans(dout_tile), input_precision="ieee")
        ds = p * (dp - row_delta[None, :])
        if softcap is not None:
            ds *= derivative
        ds = ds.to(q_tile.dtype)
        dk = tl.dot(ds, q_tile, dk, input_precision="ieee")
        if dq_start is not None:
            columns = tl.arange(0, PADDED)
            part = tl.dot(tl.trans(ds), k_tile, input_precision="ieee")
            places = dq_start + tl.cast(start, tl.int64) * WIDTH
            places += (rows - start)[:, None] * WIDTH + columns[None, :]
            tl.atomic_add(places, part, mask=exists[:, None] & (columns < WIDTH)[None, :], sem="relaxed")
    return dk, dv
