r"""Queries, keys, values in, weighted means of the values out: torch's flex_attention, for comparison.

    out = softmax(score_mod(q k^T / sqrt(d_head)), where mask_mod) v

torch writes the kernel: two small functions say what happens to one score and whether one query sees one key,
and the compiler puts them into its own FlashAttention kernel. The mask function runs once for each shape, to
find the blocks of 128 by 128 in which no query sees a key; those are left out, and blocks that are wholly
seen need no mask.

On a GPU the kernel is compiled at the first call with a shape, which takes seconds, so this is no way to
generate text, whose keys grow at each step. On a CPU the scores are written out as in the reference, and
there is no gradient. Not the default.

Source: Dong et al. 2024, https://arxiv.org/abs/2412.05496.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from scratchlm.kernels import attention_reference
from scratchlm.kernels.attention_reference import check_attention


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
        ValueError: As there, or a gradient is wanted on a CPU.
    """
    check_attention(q_BHTK, k_BGSK, v_BGSK, causal=causal, window=window, slopes_H=slopes_H)
    tensors = (q_BHTK, k_BGSK, v_BGSK)
    if not (q_BHTK.numel() and k_BGSK.numel() and v_BGSK.numel()):
        return attention_reference.attention(*tensors, causal=causal)  # flex_attention fails on nothing
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if wanted and not q_BHTK.is_cuda:
        raise ValueError("attention=flex has no gradient on a CPU; take attention=auto or tiled.")
    past = k_BGSK.shape[2] - q_BHTK.shape[2]
    if documents_BS is None:
        shape = (q_BHTK.shape[2], k_BGSK.shape[2])
        seen = _seen_by_position(*shape, q_BHTK.device, causal=causal, window=window)
    else:
        sees = _sees(past, causal=causal, window=window, documents_BS=documents_BS)
        seen = _block_mask(sees, len(documents_BS), q_BHTK.shape[2], k_BGSK.shape[2], q_BHTK.device)
    chosen = {
        "score_mod": _score_change(past, softcap, slopes_H),
        "block_mask": seen,
        "enable_gqa": q_BHTK.shape[1] != k_BGSK.shape[1],
    }
    if q_BHTK.is_cuda:
        return _compiled()(*tensors, **chosen)
    with warnings.catch_warnings():
        # it warns that it is slow without a compiler: on a CPU that is what was asked for
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(*(tensor.detach() for tensor in tensors), **chosen)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=16)
def _seen_by_position(
    num_queries: int, num_keys: int, device: torch.device, *, causal: bool, window: int | None
) -> BlockMask | None:
    """Return the blocks that are seen when only positions decide: kept, every layer asks for the same."""
    if not causal:
        return None
    sees = _sees(num_keys - num_queries, causal=causal, window=window, documents_BS=None)
    return _block_mask(sees, None, num_queries, num_keys, device)


def _block_mask(
    sees: Callable[..., Tensor], batch: int | None, num_queries: int, num_keys: int, device: torch.device
) -> BlockMask:
    # compiled, the mask of all pairs is never held: at 65,536 tokens it would take 34 GB as int64
    make = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(sees, batch, None, num_queries, num_keys, device=device)


def _sees(
    past: int, *, causal: bool, window: int | None, documents_BS: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the function that says whether one query sees one key."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query + past - key
        mask = distance >= 0 if causal else key >= 0
        if window is not None:
            mask = mask & (distance < window)
        if documents_BS is not None:
            mask = mask & (documents_BS[batch, query + past] == documents_BS[batch, key])
        return mask

    return sees


def _score_change(
    past: int, softcap: float | None, slopes_H: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """Return the function that caps and biases one score, None if it stays as it is."""
    if softcap is None and slopes_H is None:
        return None

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes_H is not None:
            score = score - slopes_H[head] * (query + past - key)
        return score

    return change
