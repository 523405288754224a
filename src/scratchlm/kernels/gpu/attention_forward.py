# ruff: noqa: ANN001, ANN201, ANN202  (arguments of device functions are Triton's, without Python types)
r"""Queries, keys, values in, weighted means of the values and the logarithm of each softmax's sum out.

One program takes BLOCK_M queries of one head and walks over the keys in blocks of BLOCK_N. The softmax of a
row needs its maximum and its sum before the first weight is known; the online softmax carries both along and
repairs what it has when a later block brings a larger maximum:

    s      = q k^T * scale * log2(e)               (BLOCK_M, BLOCK_N)     matrix product
    m_new  = max(m, rowmax(s))
    p      = 2^(s - m_new)                                                the only use of the exponential unit
    fix    = 2^(m - m_new)                         what the older terms are worth under the new maximum
    l      = l * fix + rowsum(p)
    acc    = acc * fix + p v                       (BLOCK_M, d_value)     matrix product
    at the end:   out = acc / l,   lse = (m + log2(l)) * ln(2)            natural logarithm, float32

Nothing of the size T * S is ever stored. Programs with many keys start first, so that short ones fill the
gaps at the end, and the heads of a tile run side by side: heads with the same keys find them in the L2.

Source: Dao 2023, https://arxiv.org/abs/2307.08691, algorithm 1; online softmax: Milakov and Gimelshein 2018,
https://arxiv.org/abs/1805.02867.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scratchlm.kernels.gpu.ahead import Configuration
from scratchlm.kernels.gpu.attention_memory import (
    Masks,
    can_describe,
    describe,
    empty_by_time,
    empty_numbers,
    find_documents,
    padded,
)
from scratchlm.kernels.gpu.attention_scores import (
    DOCUMENT_BLOCK,
    DOCUMENTS_AT_ONCE,
    LN2,
    LOG2E,
    LOWEST,
    bend,
    key_stretches,
    load_rows,
    load_tile,
    narrow_to_documents,
    store_rows,
    visible,
)
from scratchlm.kernels.gpu.attention_tiles import Tile, attention_configurations, choose_tile, is_crowded


def forward(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    masks: Masks,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted means and the natural logarithm of each softmax's sum (float32, batch heads time).

    The means lie in memory as (batch, time, heads, d_value): the output projection reads them without a copy.

    Args:
        q_BHTK: Queries; rows contiguous, all other strides are free, and those of k and v too.
        k_BGSK: Keys.
        v_BGSK: Values.
        masks: What the scores go through.
        tile: The size of the blocks; None: as the table says.
    """
    batch, num_heads, num_queries, width = q_BHTK.shape
    num_groups, num_keys, width_v = k_BGSK.shape[1], k_BGSK.shape[2], v_BGSK.shape[3]
    out_BHTK = empty_by_time(batch, num_heads, num_queries, q_BHTK, width_v)
    lse_BHT = empty_numbers(batch, num_heads, num_queries, q_BHTK)
    if tile is None:
        describable = can_describe(k_BGSK, v_BGSK)
        tile = choose_tile("forward", q_BHTK, width_v, describable=describable, crowded=is_crowded(masks))
    described = tile.loads == "descriptors"
    *documents, stride_db = find_documents(masks.documents)
    with torch.cuda.device_of(q_BHTK):
        forward_kernel[(triton.cdiv(num_queries, tile.block_m) * batch * num_heads,)](
            q_BHTK,
            describe(k_BGSK, tile.block_n) if described else k_BGSK,
            describe(v_BGSK, tile.block_n) if described else v_BGSK,
            out_BHTK, lse_BHT, masks.slopes, *documents,
            *q_BHTK.stride()[:3], *k_BGSK.stride()[:3], *v_BGSK.stride()[:3], *out_BHTK.stride()[:3],
            lse_BHT.stride(1), stride_db,
            num_heads, num_groups, num_queries, num_keys, masks.window, masks.softcap,
            CAUSAL=masks.causal, WIDTH=width, WIDTH_V=width_v, PADDED=padded(width), PADDED_V=padded(width_v),
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, DESCRIPTORS=described,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out_BHTK, lse_BHT


def configurations() -> list[Configuration]:
    """Return what ahead.py compiles: each tile of the table, and each kind of mask with the commonest."""
    return attention_configurations("forward", forward_kernel)


@triton.jit(do_not_specialize=["num_heads", "num_groups", "num_queries", "num_keys", "window"])
def forward_kernel(
    q, k, v, out, lse, slopes, documents, lowest, highest,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_ot, stride_lse, stride_db,
    num_heads, num_groups, num_queries, num_keys, window, softcap,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_M rows of one head of one batch row."""
    num_tiles = tl.cdiv(num_queries, BLOCK_M)
    heads_in_all = tl.num_programs(0) // num_tiles
    first_row = (num_tiles - 1 - tl.program_id(0) // heads_in_all) * BLOCK_M  # the longest first
    batch = (tl.program_id(0) % heads_in_all // num_heads).to(tl.int64)
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    group = head // (num_heads // num_groups)
    rows = first_row + tl.arange(0, BLOCK_M)
    positions = rows + (num_keys - num_queries)
    q_tile = load_rows(
        q + batch * stride_qb + head * stride_qh, stride_qt, first_row, num_queries,
        BLOCK_M, WIDTH, PADDED, True,
    )  # fmt: skip
    slope = tl.load(slopes + head) if slopes is not None else None
    row_documents = None
    begin, clear_begin, clear_end, end = key_stretches(
        first_row, num_queries, num_keys, window, BLOCK_M, BLOCK_N, CAUSAL
    )
    if documents is not None:
        documents += batch * stride_db
        own = tl.load(documents + tl.minimum(positions, num_keys - 1))
        row_documents = own[:, None]
        begin, end = narrow_to_documents(
            own, lowest, highest, batch, num_keys, begin, end, 0, BLOCK_N, DOCUMENT_BLOCK, DOCUMENTS_AT_ONCE
        )
        clear_end = begin  # every block is compared with the documents
    acc = tl.zeros([BLOCK_M, PADDED_V], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    largest = tl.full([BLOCK_M], LOWEST, dtype=tl.float32)
    acc, total, largest = _walk(
        acc, total, largest, q_tile,
        k, (stride_kb, stride_kh, stride_ks), v, (stride_vb, stride_vh, stride_vs),
        batch, group, begin, clear_begin, clear_end, end,
        positions, row_documents, documents, slope, num_keys, window, softcap,
        CAUSAL, WIDTH, WIDTH_V, PADDED, PADDED_V, BLOCK_N, DESCRIPTORS,
    )  # fmt: skip
    store_rows(
        out + batch * stride_ob + head * stride_oh, stride_ot, first_row, num_queries,
        acc / total[:, None], BLOCK_M, WIDTH_V, PADDED_V,
    )  # fmt: skip
    place = (batch * num_heads + head) * stride_lse + rows
    tl.store(lse + place, (largest + tl.log2(total)) * LN2, mask=rows < num_queries)


@triton.jit
def _walk(
    acc, total, largest, q_tile, k, k_strides, v, v_strides, batch, group, begin, clear_begin, clear_end, end,
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
        products = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        scores, _ = bend(products, positions[:, None], keys[None, :], slope, softcap, SCALE)
        if (start < clear_begin) | (start >= clear_end):
            key_documents = None
            if documents is not None:
                key_documents = tl.load(documents + tl.minimum(keys, num_keys - 1))[None, :]
            allowed = visible(
                positions[:, None], keys[None, :], row_documents, key_documents, num_keys, window, CAUSAL
            )
            scores = tl.where(allowed, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1) * factor)
        p = tl.exp2(scores * factor - new_largest[:, None])
        fix = tl.exp2(largest - new_largest)
        total = total * fix + tl.sum(p, axis=1)
        v_tile = load_tile(
            v, v_strides, batch, group, start, num_keys, BLOCK_N, WIDTH_V, PADDED_V, True, DESCRIPTORS
        )
        acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * fix[:, None], input_precision="ieee")
        largest = new_largest
    return acc, total, largest
