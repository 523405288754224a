"""Queries, keys, values in, weighted means of the values out: torch's own attention, not the default.

Same signature and results as attention_reference.attention, without the soft-cap, which torch's function
lacks.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels.attention_reference import causal_mask, same_document


def attention(
    q_BHTK: Float[Tensor, "batch heads time d_head"],
    k_BGSK: Float[Tensor, "batch kv_heads keys d_head"],
    v_BGSK: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    window: int | None = None,
    softcap: float | None = None,
    bias_HTS: Float[Tensor, "heads time keys"] | None = None,
    documents_BS: Int[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "batch heads time d_value"]:
    """Return causal attention; arguments as in attention_reference.attention.

    Raises:
        ValueError: A soft-cap is asked for.
    """
    if softcap is not None:
        raise ValueError("attention=sdpa cannot cap scores; set softcap to none or attention=reference.")
    num_queries, num_keys = q_BHTK.shape[2], k_BGSK.shape[2]
    plain = window is None and bias_HTS is None and documents_BS is None and num_queries == num_keys
    mask_TS: Tensor | None = None
    if not plain:
        mask_TS = causal_mask(num_queries, num_keys, window=window, device=q_BHTK.device)
        if documents_BS is not None:
            mask_TS = mask_TS & same_document(documents_BS, num_queries)
        if bias_HTS is not None:
            mask_TS = bias_HTS.to(q_BHTK.dtype).masked_fill(~mask_TS, -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask_TS,
        is_causal=plain,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )
