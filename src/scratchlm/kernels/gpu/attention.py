r"""Queries, keys, values in, weighted means of the values out: FlashAttention on a GPU, for training.

    attention(q, k, v)            forward: attention_forward.py, backward: attention_backward.py

The forward pass keeps nothing but q, k, v, the output and one number per query: the logarithm of its
softmax's sum, from which the backward pass makes every weight again. Memory grows with T, not with T * S.

The kernels are registered as operations of torch ("scratchlm::attention_forward" and "..._backward"), so that
torch.compile passes them on as they are and autograd knows their gradient.

Inputs are read by their strides: slices of a packed projection need no copy. Only a tensor whose last
dimension is not contiguous is copied first. float64, in which the kernels do not compute, is left to
attention_blocks.py.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels import attention_blocks, attention_reference
from scratchlm.kernels.attention_reference import check_attention
from scratchlm.kernels.gpu.attention_backward import Saved, backward
from scratchlm.kernels.gpu.attention_decode import decode
from scratchlm.kernels.gpu.attention_forward import forward
from scratchlm.kernels.gpu.attention_memory import Masks, contiguous_rows, empty_by_time, empty_numbers
from scratchlm.kernels.gpu.attention_tiles import MAX_WIDTH
from scratchlm.kernels.gpu.attention_tuning import tuned_backward, tuned_forward
from scratchlm.kernels.gpu.support import require, require_heads

TUNED = "two_pass_tuned"
"""The way of the backward pass in two passes with measured tiles."""


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
    """Return attention; arguments and results as in attention_reference.attention.

    Raises:
        ValueError: As there, or a dtype, width or device that the kernels do not take.
    """
    return _attention(
        q_BHTK, k_BGSK, v_BGSK, Masks(causal, window, softcap, slopes_H, documents_BS), "two_pass"
    )  # fmt: skip


def attention_one_pass(
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
    """Return the same, with the backward pass that adds dq in memory: fewer products, other last bits."""
    return _attention(
        q_BHTK, k_BGSK, v_BGSK, Masks(causal, window, softcap, slopes_H, documents_BS), "one_pass"
    )  # fmt: skip


def attention_tuned(
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
    """Return the same, with the tiles that the first call finds to be the fastest (attention_tuning.py)."""
    return _attention(
        q_BHTK, k_BGSK, v_BGSK, Masks(causal, window, softcap, slopes_H, documents_BS), TUNED
    )  # fmt: skip


def _attention(q: Tensor, k: Tensor, v: Tensor, masks: Masks, way: str) -> Tensor:
    check_attention(q, k, v, causal=masks.causal, window=masks.window, slopes_H=masks.slopes)
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    tensors = (q, k, v)
    empty = any(x.numel() == 0 for x in tensors)
    in_double = all(x.dtype == torch.float64 for x in tensors)
    if not in_double:
        _check(*tensors, masks)
    if empty or in_double:
        require("attention", *tensors, masks.slopes, masks.documents)
        plain = attention_reference if empty else attention_blocks
        names = ("causal", "window", "softcap", "slopes_H", "documents_BS")
        return plain.attention(*tensors, **dict(zip(names, masks, strict=True)))
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if q.shape[2] == 1 and not learns and masks.documents is None:
        # one query is the last in causal attention, and without a mask the same
        return decode(*tensors, window=masks.window, softcap=masks.softcap, slopes_H=masks.slopes)
    if masks.slopes is not None:
        masks = masks._replace(slopes=masks.slopes.float().contiguous())
    out, _ = attention_forward(*tensors, *masks, way)
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> None:
    require("attention", q, k, v, masks.slopes, masks.documents)
    require_heads("attention=triton", (q, k, v), MAX_WIDTH)
    if masks.softcap is not None and not masks.softcap > 0:
        raise ValueError(f"attention=triton: softcap={masks.softcap}; it must be above 0, or None.")
    if masks.slopes is not None and masks.slopes.requires_grad:
        raise ValueError(
            "attention=triton: slopes get no gradient here; detach them, or attention=reference."
        )
    if masks.documents is not None:
        _check_documents(masks.documents, (k.shape[0], k.shape[2]), q.shape[2])


def _check_documents(documents: Tensor, expected: tuple[int, int], num_queries: int) -> None:
    if documents.shape != expected or documents.is_floating_point() or documents.dtype == torch.bool:
        raise ValueError(
            f"attention=triton: documents of {documents.dtype} and shape {tuple(documents.shape)}; "
            f"whole numbers of shape (batch, keys) = {expected} are needed."
        )
    if num_queries > expected[1]:
        raise ValueError(
            f"attention=triton: {num_queries} queries, but documents for {expected[1]} keys; the queries are "
            "the last of the keys' tokens."
        )


@torch.library.custom_op("scratchlm::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, softcap: float | None,
    slopes: Tensor | None, documents: Tensor | None, way: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output and the logarithm of each softmax's sum."""
    q, k, v = contiguous_rows(q), contiguous_rows(k), contiguous_rows(v)
    masks = Masks(causal, window, softcap, slopes, documents)
    return forward(q, k, v, masks, tuned_forward(q, k, v, masks) if way == TUNED else None)


@attention_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, softcap: float | None,
    slopes: Tensor | None, documents: Tensor | None, way: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, num_heads, num_queries, _ = q.shape
    out = empty_by_time(batch, num_heads, num_queries, q, v.shape[3])
    return out, empty_numbers(batch, num_heads, num_queries, q)


@torch.library.custom_op("scratchlm::attention_backward", mutates_args=())
def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor,
    causal: bool, window: int | None, softcap: float | None,
    slopes: Tensor | None, documents: Tensor | None, way: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    saved = Saved(contiguous_rows(q), contiguous_rows(k), contiguous_rows(v), contiguous_rows(out), lse)
    dout = contiguous_rows(dout)
    masks = Masks(causal, window, softcap, slopes, documents)
    if way == TUNED:
        return backward(saved, dout, masks, tiles=tuned_backward(saved, dout, masks))
    return backward(saved, dout, masks, way=way)


@attention_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor,
    causal: bool, window: int | None, softcap: float | None,
    slopes: Tensor | None, documents: Tensor | None, way: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (empty_by_time(*x.shape[:3], x, x.shape[3]) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *settings, slopes, documents, way = inputs
    ctx.settings, ctx.way = settings, way
    ctx.save_for_backward(q, k, v, *output, slopes, documents)


def _differentiate(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, slopes, documents = ctx.saved_tensors
    dout = dout.to(saved[0].dtype)  # autocast ends before the backward pass
    gradients = attention_backward(*saved, dout, *ctx.settings, slopes, documents, ctx.way)
    return *gradients, None, None, None, None, None, None


attention_forward.register_autograd(_differentiate, setup_context=_save)
