r"""Queries, keys, values in, weighted means of the values out: attention written out as the paper has it.

    scores = q k^T / sqrt(d_head)                      how well each query fits each key
    scores = softcap * tanh(scores / softcap)          if asked for: no score beyond +-softcap
    scores = scores - slope * distance                 if asked for: ALiBi, each head with its slope
    scores = -inf  where not allowed                   the future, before the window, other documents
    out    = softmax(scores) v

The naive twin of every faster attention: it holds all B * H * T * S scores at once. Grouped queries need no
copies of the keys: the R heads that share a key head stand below each other as R * T rows of one matrix
product.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1; grouped queries: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245; window: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150; soft-cap:
Gemma 2, https://arxiv.org/abs/2408.00118, section 2.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    """Return attention; the last query stands at the last key's position.

    Args:
        q_BHTK: Queries.
        k_BGSK: Keys; key head g serves query heads g * R ... g * R + R - 1 with R = heads / kv_heads.
        v_BGSK: Values.
        causal: Whether a query sees only the keys up to its own position, or all.
        window: How many keys a query sees, itself included; None for all before it. Causal attention only.
        softcap: Bound for the scores before the bias.
        slopes_H: What each head's score loses per token of distance (ALiBi). Causal attention only.
        documents_BS: The number of each key's document: a query sees the keys of its own document only.

    Raises:
        ValueError: The shapes do not fit together, or a window or slopes without causal attention.
    """
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=causal, window=window, slopes_H=slopes_H)
    num_queries, num_keys = q_BHTK.shape[2], k_BGSK.shape[2]
    mask_TS = None
    if causal:
        mask_TS = causal_mask(num_queries, num_keys, window=window, device=q_BHTK.device)
    if documents_BS is not None:
        same = same_document(documents_BS, num_queries)
        mask_TS = same if mask_TS is None else mask_TS & same
    bias_HTS = None if slopes_H is None else alibi_bias(slopes_H, num_queries, num_keys)
    return masked_attention(q_BHTK, k_BGSK, v_BGSK, mask_TS=mask_TS, softcap=softcap, bias_HTS=bias_HTS)


def check_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    causal: bool,
    window: int | None,
    slopes_H: Tensor | None,
) -> None:
    """Check what every implementation of attention asks for.

    Raises:
        ValueError: The shapes do not fit together, or a window or slopes without causal attention.
    """
    shapes = f"q {tuple(q_BHTK.shape)}, k {tuple(k_BGSK.shape)}, v {tuple(v_BGSK.shape)}"
    if not q_BHTK.ndim == k_BGSK.ndim == v_BGSK.ndim == 4:
        raise ValueError(f"attention: {shapes}; all must be (batch, heads, time, d_head).")
    (batch, heads, queries, d_head), (_, kv_heads, keys, _) = q_BHTK.shape, k_BGSK.shape
    if k_BGSK.shape != (batch, kv_heads, keys, d_head) or v_BGSK.shape[:3] != k_BGSK.shape[:3]:
        raise ValueError(f"attention: {shapes}; batch, d_head, keys and key heads must be the same.")
    if not kv_heads or heads % kv_heads:
        raise ValueError(f"attention: {shapes}; the key heads must divide the {heads} query heads.")
    if causal and queries > keys:
        raise ValueError(
            f"attention: {queries} queries and {keys} keys; in causal attention the queries are the last "
            "of the keys' positions. Give at least as many keys, or causal=False."
        )
    if window is not None and window < 1:
        raise ValueError(f"attention: window={window}; a query sees itself, so at least 1, or None.")
    if not causal and (window is not None or slopes_H is not None):
        raise ValueError("attention: a window or ALiBi's slopes look back, so they need causal=True.")
    if slopes_H is not None and slopes_H.shape != (heads,):
        raise ValueError(f"attention: slopes of shape {tuple(slopes_H.shape)} for {heads} heads.")


def masked_attention(
    q_BHTK: Float[Tensor, "batch heads time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    mask_TS: Bool[Tensor, "*#batch_heads time keys"] | None = None,
    softcap: float | None = None,
    bias_HTS: Float[Tensor, "heads time keys"] | None = None,
) -> Float[Tensor, "batch heads time d_value"]:
    """Return attention under any mask; True where a query may see a key. Arguments as in `attention`."""
    num_heads, num_kv_heads = q_BHTK.shape[1], k_BGSK.shape[1]
    # scaling q instead of the scores: T * K numbers, not T * S
    q_BGRK = rearrange(q_BHTK * q_BHTK.shape[-1] ** -0.5, "B (G R) T K -> B G (R T) K", G=num_kv_heads)
    scores_BHTS = rearrange(
        q_BGRK @ rearrange(k_BGSK, "B G S K -> B G K S"),
        "B G (R T) S -> B (G R) T S",
        R=num_heads // num_kv_heads,
    )
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if bias_HTS is not None:
        scores_BHTS = scores_BHTS + bias_HTS.to(scores_BHTS.dtype)
    if mask_TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_TS, -torch.inf)
    # torch's softmax equals ours below, in one pass where eager mode would take six
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1)
    out_BGRK = rearrange(weights_BHTS, "B (G R) T S -> B G (R T) S", G=num_kv_heads) @ v_BGSK
    return rearrange(out_BGRK, "B G (R T) K -> B (G R) T K", R=num_heads // num_kv_heads)


def causal_mask(
    num_queries: int, num_keys: int, *, window: int | None = None, device: torch.device | str | None = None
) -> Bool[Tensor, "time keys"]:
    """Return True where a query may see a key: not in the future, and no further back than the window.

    Example: 2 queries, 3 keys -> [[True, True, False], [True, True, True]]; with window=2 the last row
    begins False.
    """
    keys = torch.arange(num_keys, device=device)
    distance_TS = keys[num_keys - num_queries :, None] - keys[None, :]
    mask_TS = distance_TS >= 0
    return mask_TS if window is None else mask_TS & (distance_TS < window)


def alibi_bias(
    slopes_H: Float[Tensor, " heads"], num_queries: int, num_keys: int
) -> Float[Tensor, "heads time keys"]:
    """Return -slope * distance for each head, query and key; the last query is at the last key."""
    keys = torch.arange(num_keys, device=slopes_H.device)
    queries = keys[num_keys - num_queries :]
    return slopes_H[:, None, None] * (keys[None, :] - queries[:, None])


def same_document(
    documents_BS: Int[Tensor, "batch keys"], num_queries: int
) -> Bool[Tensor, "batch one_head time keys"]:
    """Return True where a query and a key belong to one document; the queries are the last tokens.

    Example: documents [[0, 0, 1]], 2 queries -> [[[[True, True, False], [False, False, True]]]].
    """
    queries_BT = documents_BS[:, documents_BS.shape[1] - num_queries :]
    return queries_BT[:, None, :, None] == documents_BS[:, None, None, :]


def softmax_where_(
    scores: Float[Tensor, "*batch_heads time keys"], mask_TS: Bool[Tensor, "*#batch_heads time keys"]
) -> Float[Tensor, "*batch_heads time keys"]:
    """Return the softmax over the keys that the mask allows, as fast as a CPU can; overwrites the scores."""
    if not torch.compiler.is_compiling():
        # adding -inf: masked_fill_ with a mask that is repeated takes 18 times as long on a CPU
        lowered = torch.zeros_like(mask_TS, dtype=scores.dtype).masked_fill_(~mask_TS, -torch.inf)
        return torch.softmax(scores.add_(lowered), dim=-1)
    # exp(z - log_sum), not exp(z - largest) / sum: the compiler then keeps no table between its passes;
    # measured: 0.86 of the time of a whole compiled training step at 4 layers, d_model 256, 256 tokens
    z = torch.where(mask_TS, scores.to(torch.promote_types(scores.dtype, torch.float32)), -torch.inf)
    largest = z.amax(dim=-1, keepdim=True)
    log_sum = (z - largest).exp().sum(dim=-1, keepdim=True).log() + largest
    return (z - log_sum).exp().to(scores.dtype)


def softmax(x: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """Return exp(x) divided by its sum along `dim`, in float32 inside, safe for any size of x.

    The largest x is subtracted first: it cancels, and exp never overflows.
    """
    x_f32 = x.float()
    exp = torch.exp(x_f32 - x_f32.amax(dim=dim, keepdim=True).detach())
    return (exp / exp.sum(dim=dim, keepdim=True)).to(x.dtype)
