r"""New queries, keys and values of some slots in, each slot's attention over its own past out.

    k', q'       = norm(k), norm(q)          if gains are given (QK-norm): each head's vector by itself
    k', q'       = turned by position        if angles are given: adjacent pairs (RoPE)
    keys[slot, :, position], values[slot, :, position] = k', v
    out          = softmax(scale q' keys[slot, :, first..position]) values[slot, :, first..position]

One new token a slot, each at its own position; a negative position leaves a slot out. Nothing behind a slot's
position is read, so what another text left there cannot matter, and a slot's result does not depend on how
many others there are. The functions here say what is computed, in tensor operations, slot by slot; the fast
twin is attention_decode_numba.py.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1; slots as in Yu et al. 2022 (Orca),
https://www.usenix.org/conference/osdi22/presentation/yu.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.kernels.attention_reference import masked_attention
from scratchlm.kernels.rms_norm import rms_norm_reference


class DecodeSettings(NamedTuple):
    """What is the same for all slots and all tokens of a layer."""

    scale: float
    """What scores are multiplied by."""
    window: int | None = None
    """How many keys a query sees, itself included; None for all."""
    softcap: float | None = None
    """Bound for the scores before the slopes."""
    slopes: Float[Tensor, " heads"] | None = None
    """What each head's score loses per token of distance (ALiBi)."""
    cos: Float[Tensor, "positions pairs"] | None = None
    """Cosines of every position's angles (RoPE)."""
    sin: Float[Tensor, "positions pairs"] | None = None
    q_gain: Float[Tensor, " d_head"] | None = None
    """Gains of QK-norm."""
    k_gain: Float[Tensor, " d_head"] | None = None
    eps: float = 0.0


def attend_slots_reference(
    q_SHK: Float[Tensor, "slots heads d_head"],
    k_SGK: Float[Tensor, "slots kv_heads d_head"],
    v_SGK: Float[Tensor, "slots kv_heads d_head"],
    keys: Float[Tensor, "slots kv_heads capacity d_head"],
    values: Float[Tensor, "slots kv_heads capacity d_head"],
    positions: Int[Tensor, " slots"],
    settings: DecodeSettings,
) -> Float[Tensor, "slots heads d_head"]:
    """Store the new keys and values and return what each slot's queries gather; 0 for slots left out.

    Args:
        q_SHK: The new tokens' queries.
        k_SGK: Their keys; head g serves query heads g * R ... g * R + R - 1 with R = heads / kv_heads.
        v_SGK: Their values.
        keys: Earlier keys of each slot; the new ones are written at `positions`.
        values: Earlier values.
        positions: Where each slot's new token stands, less than the capacity; negative: left out.
        settings: What is the same for all.
    """
    out = torch.zeros_like(q_SHK)
    for slot, position in enumerate(positions.tolist()):
        if position < 0:
            continue
        q = prepare(q_SHK[slot, :, None], position, settings, settings.q_gain)
        keys[slot, :, position] = prepare(k_SGK[slot, :, None], position, settings, settings.k_gain)[:, 0]
        values[slot, :, position] = v_SGK[slot]
        first = 0 if settings.window is None else max(0, position + 1 - settings.window)
        bias = None
        if settings.slopes is not None:
            distance = position - torch.arange(first, position + 1)
            bias = -settings.slopes[:, None, None] * distance
        # masked_attention divides by sqrt(d_head) itself
        out[slot] = masked_attention(
            q[None] * (settings.scale * q.shape[-1] ** 0.5),
            keys[slot, None, :, first : position + 1],
            values[slot, None, :, first : position + 1],
            softcap=settings.softcap,
            bias_HTS=bias,
        )[0, :, 0]
    return out


def prepare(
    x_NTK: Float[Tensor, "heads time d_head"],
    start: int,
    settings: DecodeSettings,
    gain: Float[Tensor, " d_head"] | None,
) -> Float[Tensor, "heads time d_head"]:
    """Return queries or keys normalised and turned as the settings say; the first token is at `start`."""
    if gain is not None:
        x_NTK = rms_norm_reference(x_NTK, gain, eps=settings.eps)
    if settings.cos is None or settings.sin is None:
        return x_NTK
    cos, sin = (table[start : start + x_NTK.shape[1]] for table in (settings.cos, settings.sin))
    a, b = x_NTK.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
