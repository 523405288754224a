r"""Queries, keys, values in, weighted means of the values out: FlashAttention-2 as tiles of tensor code.

                    keys, a tile at a time ->
              +--------+--------+--------+
    a tile    |  done  |  now   |  mask  |     m    largest score so far                one number a query
    of        +--------+--------+--------+     sum  of e^(score - m) so far             one number a query
    queries   |        |        |        |     acc  sum of e^(score - m) v so far       d_head numbers a query

    m'   = max(m, the tile's largest score)
    sum' = e^(m - m') sum + sum over the tile of e^(s - m')
    acc' = e^(m - m') acc + sum over the tile of e^(s - m') v
    at the end of a row:   out = acc / sum,   L = m + ln sum      L, the logsumexp, is all the backward needs

A softmax needs the largest score and the sum before it can write its first weight; here both are guesses, and
each tile corrects them by a factor that also puts right all that was added before. So only one tile of scores
exists at a time, and the memory grows with the number of tokens, not with its square. The backward pass
computes each tile's weights once more, P = e^(s - L), already normalised:

    delta = sum over d of dout * out                 dV = P^T dout,   dP = dout V^T
    dS = P * (dP - delta)                            dQ = scale * dS K,   dK = scale * dS^T Q

Read this file before the Triton kernels in kernels/gpu/, which do the same with each tile of queries in a
block of threads of its own. Tiles stay in a processor's cache: at 1024 tokens a CPU takes 0.4 of the
reference's time (measured, forward and backward); attention_blocks takes less still, but keeps the weights.

Source: Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691, algorithms 1 and 2 (one loop for all
three gradients; masks as in attention_reference.py).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from scratchlm.kernels.attention_reference import check_attention

TILE = 128
"""Queries and keys of a tile; measured on a CPU at 1024 tokens: 64 is as fast, 32 takes 1.9 times as long."""

TILE_ON_A_GPU = 512
"""The same where each operation is a launch of some 5 us: at 16,384 tokens 528 tiles are met, not 8256."""


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
    """Return attention; arguments as in attention_reference.attention.

    Raises:
        ValueError: As there, or the slopes need a gradient.
    """
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=causal, window=window, slopes_H=slopes_H)
    if slopes_H is not None and slopes_H.requires_grad:
        raise ValueError("attention=tiled has no gradient for ALiBi's slopes; take attention=reference.")
    num_groups = k_BGSK.shape[1]
    slopes_GR = None if slopes_H is None else rearrange(slopes_H, "(G R) -> G R", G=num_groups)
    past = k_BGSK.shape[2] - q_BHTK.shape[2]
    rules = Rules(causal, past, window, softcap, slopes_GR, documents_BS)
    q_BGRTK = rearrange(q_BHTK, "B (G R) T K -> B G R T K", G=num_groups)
    out_BGRTK = _TiledAttention.apply(q_BGRTK, k_BGSK, v_BGSK, rules)
    return rearrange(out_BGRTK, "B G R T K -> B (G R) T K")


class FlashAttention2(torch.autograd.Function):
    """Attention of one head, `FlashAttention2.apply(q, k, v, is_causal)`: the form that CS336 asks for.

    Between the passes it keeps q, k, v, the result and one number a query, the logsumexp: nothing else.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        """Return softmax(q k^T / sqrt(d_head)) v.

        Args:
            ctx: What is kept for the backward pass.
            q: Queries (batch, time, d_head).
            k: Keys (batch, keys, d_head).
            v: Values (batch, keys, d_value).
            is_causal: Whether a query sees nothing after itself; the queries are the last of the keys.
        """
        if not q.ndim == k.ndim == v.ndim == 3:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
            raise ValueError(f"FlashAttention2: shapes {shapes}; all must be (batch, time, d_head).")
        heads = [tensor[:, None] for tensor in (q, k, v)]
        check_attention(*heads, causal=is_causal, window=None, slopes_H=None)
        ctx.rules = Rules(is_causal, past=k.shape[1] - q.shape[1])
        out, logsumexp = forward_tiles(heads[0][:, None], *heads[1:], ctx.rules)
        out, logsumexp = out[:, 0, 0], logsumexp[:, 0, 0]
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, out, logsumexp = ctx.saved_tensors
        one_head = (q[:, None, None], k[:, None], v[:, None], out[:, None, None], logsumexp[:, None, None])
        dout = gradients[0][:, None, None]
        dq, dk, dv = backward_tiles(*one_head, dout, ctx.rules)
        return dq[:, 0, 0], dk[:, 0], dv[:, 0], None


class Rules(NamedTuple):
    """Which keys a query sees, and what happens to its scores."""

    causal: bool
    past: int
    """Keys before the first query: query i stands at the position of key past + i."""
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    documents: Tensor | None = None


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute in the formats that are written here: autocast would turn the sums' factors into bfloat16."""

    @functools.wraps(function)
    def as_written(q: Tensor, *arguments: Any) -> Any:
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *arguments)

    return as_written


@_without_autocast
def forward_tiles(
    q_BGRTK: Float[Tensor, "batch kv_heads repeats time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    rules: Rules,
) -> tuple[
    Float[Tensor, "batch kv_heads repeats time d_value"], Float[Tensor, "batch kv_heads repeats time"]
]:
    """Return the result and each query's logsumexp: algorithm 1 of the paper."""
    wide, scale = _wide(q_BGRTK), q_BGRTK.shape[-1] ** -0.5
    out_BGRTK = q_BGRTK.new_empty(*q_BGRTK.shape[:-1], v_BGSK.shape[-1])
    logsumexp_BGRT = q_BGRTK.new_empty(q_BGRTK.shape[:-1], dtype=wide)
    for rows in _tiles(0, q_BGRTK.shape[3], q_BGRTK.device):
        q = q_BGRTK[:, :, :, rows].to(wide) * scale
        m = q.new_full(q.shape[:-1], -torch.inf)
        total, acc = torch.zeros_like(m), q.new_zeros(*q.shape[:-1], v_BGSK.shape[-1])
        for keys in _tiles_seen(rows, k_BGSK.shape[2], rules, q.device):
            scores = _scores(q, k_BGSK[:, :, keys].to(wide), rows, keys, rules).masked
            m_new = torch.maximum(m, scores.amax(dim=-1))
            # a query may see nothing of its first tiles (window, documents): there e^(-inf - -inf) is to be 0
            shift = m_new.masked_fill(m_new == -torch.inf, 0.0)
            p = torch.exp(scores - shift[..., None])
            correction = torch.exp(m - shift)
            total = correction * total + p.sum(dim=-1)
            acc = correction[..., None] * acc + _weighted_sum(p, v_BGSK[:, :, keys].to(wide))
            m = m_new
        total = total.clamp_min(1.0)  # the largest score alone adds 1; less means that there are no keys
        out_BGRTK[:, :, :, rows] = (acc / total[..., None]).to(out_BGRTK.dtype)
        logsumexp_BGRT[:, :, :, rows] = m + torch.log(total)
    return out_BGRTK, logsumexp_BGRT


@_without_autocast
def backward_tiles(
    q_BGRTK: Float[Tensor, "batch kv_heads repeats time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    out_BGRTK: Float[Tensor, "batch kv_heads repeats time d_value"],
    logsumexp_BGRT: Float[Tensor, "batch kv_heads repeats time"],
    dout_BGRTK: Float[Tensor, "batch kv_heads repeats time d_value"],
    rules: Rules,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v: algorithm 2 of the paper."""
    wide, scale = _wide(q_BGRTK), q_BGRTK.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(tensor, dtype=wide) for tensor in (q_BGRTK, k_BGSK, v_BGSK))
    delta_BGRT1 = (dout_BGRTK.to(wide) * out_BGRTK).sum(dim=-1, keepdim=True)
    for rows in _tiles(0, q_BGRTK.shape[3], q_BGRTK.device):
        q = q_BGRTK[:, :, :, rows].to(wide) * scale
        dout = dout_BGRTK[:, :, :, rows].to(wide)
        for keys in _tiles_seen(rows, k_BGSK.shape[2], rules, q.device):
            k, v = k_BGSK[:, :, keys].to(wide), v_BGSK[:, :, keys].to(wide)
            scores = _scores(q, k, rows, keys, rules)
            p = torch.exp(scores.masked - logsumexp_BGRT[:, :, :, rows, None])
            dv[:, :, keys] += einsum(p, dout, "B G R T S, B G R T K -> B G S K")
            dp = einsum(dout, v, "B G R T K, B G S K -> B G R T S")
            ds = p * (dp - delta_BGRT1[:, :, :, rows])
            if rules.softcap is not None:  # the derivative of c tanh(x / c) is 1 - tanh(x / c)^2
                ds = ds * (1 - (scores.capped / rules.softcap) ** 2)
            dk[:, :, keys] += einsum(ds, q, "B G R T S, B G R T K -> B G S K")  # q carries the scale
            dq[:, :, :, rows] += _weighted_sum(ds, k) * scale
    return dq.to(q_BGRTK.dtype), dk.to(k_BGSK.dtype), dv.to(v_BGSK.dtype)


class _TiledAttention(torch.autograd.Function):
    """forward_tiles, and backward_tiles as its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rules: Rules) -> Tensor:
        out, logsumexp = forward_tiles(q, k, v, rules)
        ctx.rules = rules
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *backward_tiles(*ctx.saved_tensors, gradients[0], ctx.rules), None


class _Scores(NamedTuple):
    """The scores of one tile."""

    masked: Tensor
    """As the softmax takes them: capped, biased, -inf where the query may not look."""
    capped: Tensor
    """Before the bias and the mask."""


def _scores(q: Tensor, k: Tensor, rows: slice, keys: slice, rules: Rules) -> _Scores:
    capped = einsum(q, k, "B G R T K, B G S K -> B G R T S")
    if rules.softcap is not None:
        capped = rules.softcap * torch.tanh(capped / rules.softcap)
    scores = capped
    if rules.slopes is not None:
        scores = scores - rules.slopes[..., None, None] * _distance(rows, keys, rules, q.device)
    mask = _mask(rows, keys, rules, q.device)
    return _Scores(scores if mask is None else scores.masked_fill(~mask, -torch.inf), capped)


def _mask(
    rows: slice, keys: slice, rules: Rules, device: torch.device
) -> Bool[Tensor, "#batch one_head one_repeat time keys"] | None:
    """Return True where a query may see a key; None if each sees all: most tiles need no mask."""
    first, last = rules.past + rows.start, rules.past + rows.stop - 1
    mask = None
    if rules.causal and keys.stop - 1 > first:
        mask = _distance(rows, keys, rules, device) >= 0
    if rules.window is not None and last - keys.start >= rules.window:
        near = _distance(rows, keys, rules, device) < rules.window
        mask = near if mask is None else mask & near
    mask = None if mask is None else mask[None, None, None]
    if rules.documents is not None:
        of_rows = rules.documents[:, rules.past + rows.start : rules.past + rows.stop, None]
        same = (of_rows == rules.documents[:, None, keys])[:, None, None]
        mask = same if mask is None else mask & same
    return mask


def _distance(rows: slice, keys: slice, rules: Rules, device: torch.device) -> Int[Tensor, "time keys"]:
    """Return how many tokens each key lies before each query."""
    queries = torch.arange(rules.past + rows.start, rules.past + rows.stop, device=device)
    return queries[:, None] - torch.arange(keys.start, keys.stop, device=device)


def _tiles(begin: int, end: int, device: torch.device) -> Iterator[slice]:
    """Yield slices up to `end`, the first at the beginning of the tile that `begin` lies in."""
    tile = TILE_ON_A_GPU if device.type == "cuda" else TILE
    for first in range(begin // tile * tile, end, tile):
        yield slice(first, min(first + tile, end))


def _tiles_seen(rows: slice, num_keys: int, rules: Rules, device: torch.device) -> Iterator[slice]:
    """Yield the tiles of keys of which some query of `rows` sees something."""
    begin = 0 if rules.window is None else max(0, rules.past + rows.start - rules.window + 1)
    yield from _tiles(begin, rules.past + rows.stop if rules.causal else num_keys, device)


def _weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    return einsum(weights, x, "B G R T S, B G S K -> B G R T K")


def _wide(tensor: Tensor) -> torch.dtype:
    """The number format of sums: at least float32, as the matrix units of a GPU add."""
    return torch.promote_types(tensor.dtype, torch.float32)
