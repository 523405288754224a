"""Queries, keys, values in, weighted means of the values out: torch's own attention, not the default.

Same signature and results as attention_reference.attention, without the soft-cap, which torch's function
lacks.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels.attention_reference import alibi_bias, causal_mask, check_attention, same_document


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
        ValueError: As there, or a soft-cap is asked for.
    """
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=causal, window=window, slopes_H=slopes_H)
    if softcap is not None:
        raise ValueError("attention=sdpa cannot cap scores; set softcap to none or attention=reference.")
    num_queries, num_keys = q_BHTK.shape[2], k_BGSK.shape[2]
    plain = window is None and slopes_H is None and documents_BS is None and num_queries == num_keys
    mask_TS: Tensor | None = None
    if causal and not plain:
        mask_TS = causal_mask(num_queries, num_keys, window=window, device=q_BHTK.device)
    if documents_BS is not None:
        same = same_document(documents_BS, num_queries)
        mask_TS = same if mask_TS is None else mask_TS & same
    if slopes_H is not None:
        assert mask_TS is not None, "slopes need causal attention"
        bias_HTS = alibi_bias(slopes_H, num_queries, num_keys)
        mask_TS = bias_HTS.to(q_BHTK.dtype).masked_fill(~mask_TS, -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask_TS,
        is_causal=causal and plain,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )
