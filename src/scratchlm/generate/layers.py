r"""A block's parts in, the same ready for rows of tokens out: products, norms, keys and values of slots.

    rows             (tokens, d_model), one row a token: of one text (prefill) or of one text each (decode)
    products         a layer's own weight, turned: a view of the same memory, so what an optimizer changes in
                     place is seen at once
    keys, values     (slots, kv_heads, capacity, d_head), made once

The same numbers as model/block.py up to rounding, without what a token at a time makes expensive: weights put
together at every step, gradients' bookkeeping, tables of masks. How queries meet keys is told by whoever runs
a layer: a chunk of one text, or one token of every text.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from scratchlm.kernels.attention_decode import DecodeSettings, prepare
from scratchlm.model.block import Block
from scratchlm.model.feedforward import SwiGLU
from scratchlm.model.linear import Linear
from scratchlm.model.norm import RMSNorm
from scratchlm.model.position import LearnedPosition, RoPE, SinusoidalPosition
from scratchlm.model.transformer import TransformerLM

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values of new tokens, (rows, heads, d_head) each -> what the queries gather."""


class Product(NamedTuple):
    """A linear layer, ready for rows: its weight turned, a view of the same memory."""

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, " d_out"] | None

    @staticmethod
    def of(linear: Linear) -> "Product":
        """Return a linear layer's product; where its weight is computed, that of this moment."""
        return Product(linear.weight.detach().t(), None if linear.bias is None else linear.bias.detach())

    def __call__(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        """Return x W^T + b."""
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add(
        self, total: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_out"]:
        """Return total + x W^T + b."""
        total = torch.addmm(total, x, self.weight)
        return total if self.bias is None else total.add_(self.bias)


class Layer:
    """One block: its products, its norms, its keys and values."""

    def __init__(
        self,
        block: Block,
        model: TransformerLM,
        keys: Float[Tensor, "slots kv_heads capacity d_head"],
        values: Float[Tensor, "slots kv_heads capacity d_head"],
    ) -> None:
        """Take a block of `model`; keys and values are kept in the memory given."""
        attn, ffn, self.config = block.attn, block.ffn, model.config
        self.q, self.k, self.v = (Product.of(part) for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        self.output = Product.of(attn.output_proj)
        self.norm1, self.norm2, self.placement = fast_norm(block.ln1), fast_norm(block.ln2), block.placement
        self.ffn = FastSwiGLU(ffn) if type(ffn) is SwiGLU else ffn
        self.num_heads, self.num_groups, self.d_head = attn.num_heads, attn.num_kv_heads, keys.shape[-1]
        self.settings = decode_settings(block, model)
        self.keys, self.values = keys, values

    def forward(self, x: Float[Tensor, "rows d_model"], attend: Attend) -> Float[Tensor, "rows d_model"]:
        """Return the tokens' vectors after this layer; the formulas are in model/block.py."""
        if self.placement == "post":
            x = self.norm1(self.output.add(x, self._attended(x, attend)))
            return self.norm2(x + self.ffn(x))
        x = self.output.add(x, self._attended(self.norm1(x), attend))
        return x + self.ffn(self.norm2(x))

    def meet(
        self,
        attention: Callable[..., Tensor],
        slot: int,
        start: int,
        heads: tuple[Tensor, Tensor, Tensor],
    ) -> Float[Tensor, "time heads d_head"]:
        """Let a chunk of one slot, its first token at `start`, meet the slot's past and itself."""
        q_THK, k_TGK, v_TGK = heads
        end, settings, config = start + len(q_THK), self.settings, self.config
        q_HTK = prepare(q_THK.transpose(0, 1), start, settings, settings.q_gain)
        self.keys[slot, :, start:end] = prepare(k_TGK.transpose(0, 1), start, settings, settings.k_gain)
        self.values[slot, :, start:end] = v_TGK.transpose(0, 1)
        # the attention divides by sqrt(d_head) itself
        out_BHTK = attention(
            q_HTK[None] * (settings.scale * config.d_head**0.5),
            self.keys[slot, None, :, :end],
            self.values[slot, None, :, :end],
            window=config.window,
            softcap=config.softcap,
            slopes_H=settings.slopes,
        )
        return out_BHTK[0].transpose(0, 1)

    def _attended(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        rows, heads, groups, width = len(x), self.num_heads, self.num_groups, self.d_head
        out = attend(q.view(rows, heads, width), k.view(rows, groups, width), v.view(rows, groups, width))
        return out.reshape(rows, heads * width)


class FastSwiGLU:
    """silu(W1 x) * W3 x, then W2; no matrices put together, no autograd."""

    def __init__(self, ffn: SwiGLU) -> None:
        self.w1, self.w2, self.w3 = (Product.of(part) for part in (ffn.w1, ffn.w2, ffn.w3))

    def __call__(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """Return W2 of the gated values; one row for each token."""
        gate = self.w1(x)
        return self.w2(torch.sigmoid(gate).mul_(gate).mul_(self.w3(x)))


class FastRMSNorm:
    """RMSNorm without autograd: the length of each row, then one product."""

    def __init__(self, norm: RMSNorm) -> None:
        self.eps = norm.eps
        self.weight = None if norm.weight is None else norm.weight.detach()

    def __call__(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """Return x with root mean square 1, times the gain."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        y = x * length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return y if self.weight is None else y.mul_(self.weight)


def fast_norm(norm: Module) -> Callable[[Tensor], Tensor]:
    """Return the same norm without autograd's bookkeeping, where it is an RMSNorm in float32."""
    if type(norm) is not RMSNorm:
        return norm
    # in shorter formats the norm itself knows what to compute in float32
    return FastRMSNorm(norm) if norm.weight is None or norm.weight.dtype == torch.float32 else norm


def decode_settings(block: Block, model: TransformerLM) -> DecodeSettings:
    """Return what a block's attention does to all tokens alike."""
    config, attn, position = model.config, block.attn, model.position_embeddings
    cos, sin = (position.cos, position.sin) if isinstance(position, RoPE) else (None, None)
    return DecodeSettings(
        # with QK-norm the factor is in the gain, which is a factor of the scores as well
        scale=config.d_head**-0.5 * attn.score_factor,
        window=config.window,
        softcap=config.softcap,
        slopes=position.slopes,
        cos=cos,
        sin=sin,
        q_gain=None if attn.q_norm is None else attn.q_norm.weight.detach(),
        k_gain=None if attn.k_norm is None else attn.k_norm.weight.detach(),
        eps=0.0 if attn.q_norm is None else attn.q_norm.eps,
    )


def position_table(model: TransformerLM) -> Float[Tensor, "positions d_model"] | None:
    """Return the vectors that are added to embeddings, a row for each position; None where there are none."""
    position = model.position_embeddings
    if isinstance(position, LearnedPosition):
        return position.weight.detach()
    return position.table if isinstance(position, SinusoidalPosition) else None
