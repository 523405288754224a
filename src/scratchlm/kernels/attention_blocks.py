r"""Queries, keys, values in, weighted means of the values out: causal attention in blocks of queries.

The mask of causal attention throws half of the scores away. Here the queries are cut into blocks of BLOCK
rows, and a block meets only the keys up to its last row (and, with a window, from the first key that its
first row sees):

    out[a:b] = attention of rows a..b over keys max(0, a - window + 1)..b

The arithmetic of each row is that of attention_reference; T tokens in blocks of b compute T (T + b) / 2
scores, not T^2. The gradient is written down, from the weights P = softmax(q k^T) that are kept:

    delta = sum over d of  dout * out                       one number per query
    dv = P^T dout,   dS = P * (dout v^T - delta),   dq = dS k,   dk = dS^T q

delta equals the sum of P * dP over the keys that the softmax's gradient needs, at d_head instead of S numbers
a query, and masked scores need no care: their P is 0. A soft-cap or a bias leaves the gradient to autograd.

Source: the gradient in this form: Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B.2.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scratchlm.kernels import attention_reference
from scratchlm.kernels.attention_reference import (
    alibi_bias,
    causal_mask,
    check_attention,
    masked_attention,
    same_document,
    softmax_where_,
)

BLOCK = 128
"""Rows of a block; measured: 64 computes less at 256 tokens but is slower, the products get too small."""


def attention(
    q_BHTK: Float[Tensor, "batch heads time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    slopes_H: Float[Tensor, " heads"] | None = None,
    documents_BS: Int[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "batch heads time d_value"]:
    """Return attention; arguments, results and errors as in attention_reference.attention."""
    if not causal:  # no future to leave out: the written-out attention computes nothing in vain
        return attention_reference.attention(
            q_BHTK, k_BGSK, v_BGSK, causal=False, softcap=softcap, documents_BS=documents_BS
        )
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=causal, window=window, slopes_H=slopes_H)
    num_queries, num_keys = q_BHTK.shape[2], k_BGSK.shape[2]
    if softcap is None and slopes_H is None:
        # scaling q instead of the scores: T * K numbers, not T * S
        q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
        return _BlockAttention.apply(q_BHTK, k_BGSK, v_BGSK, documents_BS, window)
    bias_HTS = None if slopes_H is None else alibi_bias(slopes_H, num_queries, num_keys)
    outs = []
    for rows, keys in _blocks(num_queries, num_keys, window):
        mask_TS = _mask(rows, keys, num_keys - num_queries, window, documents_BS, q_BHTK.device)
        outs.append(
            masked_attention(
                q_BHTK[:, :, rows],
                k_BGSK[:, :, keys],
                v_BGSK[:, :, keys],
                mask_TS=mask_TS,
                softcap=softcap,
                bias_HTS=None if bias_HTS is None else bias_HTS[:, rows, keys],
            )
        )
    return _join(outs)


class Block(NamedTuple):
    """Some queries and all keys that one of them may see."""

    rows: slice
    keys: slice


def _blocks(num_queries: int, num_keys: int, window: int | None) -> Iterator[Block]:
    past = num_keys - num_queries
    for first in range(0, num_queries, BLOCK):
        last = min(first + BLOCK, num_queries)
        begin = 0 if window is None else max(0, past + first - window + 1)
        yield Block(slice(first, last), slice(begin, past + last))


def _mask(
    rows: slice,
    keys: slice,
    past: int,
    window: int | None,
    documents_BS: Tensor | None,
    device: torch.device,
) -> Bool[Tensor, "*#batch_heads time keys"]:
    """Return True where a query of the block may see a key of the block."""
    num_queries, num_keys = rows.stop - rows.start, keys.stop - keys.start
    assert keys.stop == past + rows.stop, (rows, keys, past)
    mask_TS = causal_mask(num_queries, num_keys, window=window, device=device)
    return mask_TS if documents_BS is None else mask_TS & same_document(documents_BS[:, keys], num_queries)


class _BlockAttention(torch.autograd.Function):
    """Attention without soft-cap and bias, its gradient as in the head of this file; q comes scaled."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents_BS: Tensor | None, window: int | None
    ) -> Tensor:
        num_queries, num_keys, num_groups = q.shape[2], k.shape[2], k.shape[1]
        outs, weights = [], []
        for rows, keys in _blocks(num_queries, num_keys, window):
            mask_TS = _mask(rows, keys, num_keys - num_queries, window, documents_BS, q.device)
            scores_BGRS = _fold(q[:, :, rows], num_groups) @ k[:, :, keys].transpose(-1, -2)
            p_BHTS = softmax_where_(_unfold(scores_BGRS, q.shape[1]), mask_TS)
            p_BGRS = _fold(p_BHTS, num_groups)
            outs.append(_unfold(p_BGRS @ v[:, :, keys], q.shape[1]))
            weights.append(p_BGRS)
        out = _join(outs)
        ctx.window = window
        ctx.save_for_backward(q, k, v, out, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *weights = ctx.saved_tensors
        num_heads, num_groups = q.shape[1], k.shape[1]
        wide = torch.promote_types(out.dtype, torch.float32)
        dout = gradients[0].to(out.dtype)  # autocast ends before the backward pass: the dtypes are equal here
        delta_BHT1 = (dout.to(wide) * out).sum(dim=-1, keepdim=True)
        dqs, dk, dv = [], torch.zeros_like(k, dtype=out.dtype), torch.zeros_like(v, dtype=out.dtype)
        for (rows, keys), p in zip(_blocks(q.shape[2], k.shape[2], ctx.window), weights, strict=True):
            dout_BGRK = _fold(dout[:, :, rows], num_groups)
            dv[:, :, keys] += p.transpose(-1, -2) @ dout_BGRK
            ds = dout_BGRK @ v[:, :, keys].to(out.dtype).transpose(-1, -2)
            ds.sub_(_fold(delta_BHT1[:, :, rows], num_groups)).mul_(p)
            dk[:, :, keys] += ds.transpose(-1, -2) @ _fold(q[:, :, rows], num_groups).to(out.dtype)
            dqs.append(_unfold(ds @ k[:, :, keys].to(out.dtype), num_heads))
        return _join(dqs).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _fold(x_BHTK: Tensor, num_groups: int) -> Tensor:
    """B (G R) T K -> B G (R T) K: the query heads of a key head below each other, without a copy."""
    return x_BHTK.unflatten(1, (num_groups, -1)).flatten(2, 3)


def _unfold(x_BGRK: Tensor, num_heads: int) -> Tensor:
    """B G (R T) K -> B (G R) T K: the other way round."""
    return x_BGRK.unflatten(2, (num_heads // x_BGRK.shape[1], -1)).flatten(1, 2)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
