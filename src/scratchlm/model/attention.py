r"""Vectors in, vectors out: each token gathers from those before it (multi-head, grouped-query attention).

    q, k, v = Wq x, Wk x, Wv x       split into num_heads (q) and num_kv_heads (k, v) heads
    q, k    = norm(q), norm(k)       if qk_norm: RMSNorm over each head, one gain for all heads
    q, k    = rotate(q), rotate(k)   if the position part acts here (RoPE)
    y       = Wo attention(q, k, v)  kernels/attention_*.py; the lines before: kernels/project_heads.py

The three input projections run as one matrix product; their weights stay apart in the state dict.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2; grouped queries: Ainslie et al.
2023, https://arxiv.org/abs/2305.13245; QK-norm: Henry et al. 2020, https://arxiv.org/abs/2010.04245, with
RMSNorm and a gain as in Qwen 3.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.kernels import choose
from scratchlm.kernels.project_heads import Gains, Heads
from scratchlm.model.config import ModelConfig
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.linear import Linear
from scratchlm.model.norm import RMSNorm
from scratchlm.model.position import Position
from scratchlm.model.width import score_factor


class CausalSelfAttention(Module):
    """Attention over the past, with as many key heads as the configuration says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.kv_heads
        self.window, self.softcap = config.window, config.softcap
        width, kv_width = config.num_heads * config.d_head, config.kv_heads * config.d_head
        self.q_proj = Linear(config.d_model, width, bias=config.bias)
        self.k_proj = Linear(config.d_model, kv_width, bias=config.bias)
        self.v_proj = Linear(config.d_model, kv_width, bias=config.bias)
        self.output_proj = Linear(width, config.d_model, bias=config.bias)
        self.score_factor = score_factor(config.d_head, config.base_d_head)
        eps = config.norm.settings.get("eps", 1e-5)
        self.q_norm = RMSNorm(config.d_head, eps=eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.d_head, eps=eps) if config.qk_norm else None
        self.attention = choose("attention", config.attention).function
        self.project_heads = choose("project_heads").function

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        position: Position,
        *,
        cache: KVCache | None = None,
        layer: int = 0,
        documents_BT: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return what each token gathers; with a cache, also from the tokens stored there.

        Args:
            x: The new tokens' vectors.
            position: The model's position part.
            cache: Keys and values of earlier tokens; the new ones are added.
            layer: This layer's number in the cache.
            documents_BT: The number of each token's document: tokens gather from their own document only.

        Raises:
            ValueError: Document numbers and a cache: those of the cached tokens are not known.
        """
        if documents_BT is not None and cache is not None:
            raise ValueError("attention: documents and a cache do not go together; leave one of them out.")
        start = cache.length if cache is not None else 0
        q_BHTK, k_BGSK, v_BGSK = self.project(x, position, start)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(layer, k_BGSK, v_BGSK)
        y_BHTK = self.attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            window=self.window,
            softcap=self.softcap,
            slopes_H=position.slopes,
            documents_BS=documents_BT,
        )
        return self.output_proj(rearrange(y_BHTK, "B H T K -> B T (H K)"))

    def project(self, x: Float[Tensor, "batch time d_model"], position: Position, start: int) -> Heads:
        """Return queries, keys and values of tokens of which the first stands at `start`."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        # with QK-norm a factor on the queries would be divided out again: there the gain has it
        queries = self._multiplied if self.q_norm is None else lambda rows: rows
        arrange = (lambda rows: queries(position.arrange(rows)), position.arrange, lambda rows: rows)
        weight = torch.cat([order(part.weight) for order, part in zip(arrange, parts, strict=True)])
        bias = None
        if self.q_proj.bias is not None:
            bias = torch.cat([order(part.bias) for order, part in zip(arrange, parts, strict=True)])
        gains, angles = self._gains(position), position.angles(start, x.shape[1])
        q, k, v = self.project_heads(
            x,
            weight,
            bias,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            gains=gains,
            angles=angles,
        )
        if angles is None:
            q, k = position.rotate(q, start), position.rotate(k, start)
        return Heads(q, k, v)

    def _gains(self, position: Position) -> Gains | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        q, k = (position.arrange(norm.weight) for norm in (self.q_norm, self.k_norm))
        return Gains(self._multiplied(q), k, self.q_norm.eps)

    def _multiplied(self, rows: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What makes queries, times the multiplier that scores have with mup_width (width.py)."""
        return rows if self.score_factor == 1 else rows * self.score_factor
