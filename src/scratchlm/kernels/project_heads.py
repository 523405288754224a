r"""Vectors in, the queries, keys and values of all heads out, ready for attention.

    q, k, v = W x                    one matrix product: num_heads heads of q, num_kv_heads of k and of v
    q, k    = rmsnorm(q), rmsnorm(k) if gains are given: each head's vector by itself (QK-norm)
    q, k    = rotate(q), rotate(k)   if angles are given (RoPE)

In memory the product is one block, for each token all its heads; q, k and v stay where they are:

    token 0:  q0 q1 ... k0 k1 ... v0 v1 ...
    token 1:  q0 q1 ... k0 k1 ... v0 v1 ...

The three steps are one operation since a GPU can do the last two in that block, in place, and gather the
gradient in one (gpu/project_heads.py). The form here is the plain one: each step by itself.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2; QK-norm: Henry et al. 2020,
https://arxiv.org/abs/2010.04245.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from scratchlm.kernels.rms_norm import rms_norm
from scratchlm.kernels.rotate import rotate


class Angles(NamedTuple):
    """By what each pair of a token's queries and keys is turned."""

    cos: Float[Tensor, "time pairs"]
    sin: Float[Tensor, "time pairs"]


class Gains(NamedTuple):
    """The gains of QK-norm, for all heads the same."""

    q: Float[Tensor, " d_head"]
    k: Float[Tensor, " d_head"]
    eps: float


class Heads(NamedTuple):
    """What attention reads."""

    q: Float[Tensor, "batch heads time d_head"]
    k: Float[Tensor, "batch kv_heads time d_head"]
    v: Float[Tensor, "batch kv_heads time d_head"]


def project_heads(
    x_BTD: Float[Tensor, "batch time d_model"],
    weight_ED: Float[Tensor, "width d_model"],
    bias_E: Float[Tensor, " width"] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    gains: Gains | None = None,
    angles: Angles | None = None,
) -> Heads:
    """Return queries, keys and values.

    Args:
        x_BTD: The tokens' vectors.
        weight_ED: The rows of all heads: queries, then keys, then values.
        bias_E: Their offsets.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        gains: What QK-norm multiplies with; None for no QK-norm.
        angles: What RoPE turns by, a row for each token; None for no turn.
    """
    product_BTE = x_BTD @ weight_ED.T
    if bias_E is not None:
        product_BTE = product_BTE + bias_E
    heads_BNTK = rearrange(product_BTE, "B T (N K) -> B N T K", N=num_heads + 2 * num_kv_heads)
    qk, v = heads_BNTK.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
    if gains is not None:
        q, k = qk.split([num_heads, num_kv_heads], dim=1)
        qk = torch.cat((rms_norm(q, gains.q, eps=gains.eps), rms_norm(k, gains.k, eps=gains.eps)), dim=1)
    if angles is not None:
        qk = rotate(qk, angles.cos, angles.sin)
    q, k = qk.split([num_heads, num_kv_heads], dim=1)
    return Heads(q, k, v)
