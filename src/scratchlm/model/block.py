r"""Vectors in, vectors out: one layer, attention and feed-forward, each added to what came in.

    pre:   x = x + attn(ln1(x));   x = x + ffn(ln2(x))      the residual path stays free: trains most easily
    post:  x = ln1(x + attn(x));   x = ln2(x + ffn(x))      the original transformer
    none:  x = x + attn(x);        x = x + ffn(x)

Source: Xiong et al. 2020, https://arxiv.org/abs/2002.04745 (pre against post); Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, section 5.4 (dropout on each branch before it is added).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.kernels.rms_norm import Normed
from scratchlm.model.attention import CausalSelfAttention
from scratchlm.model.config import ModelConfig
from scratchlm.model.feedforward import FEEDFORWARDS
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.norm import NORMS, NoNorm, RMSNorm
from scratchlm.model.position import Position


class Block(Module):
    """Attention, then feed-forward, with their norms where the configuration places them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.placement, self.dropout = config.placement, config.dropout
        self.ln1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln2 = make_norm(config)
        self.ffn = FEEDFORWARDS.build(
            config.feedforward.name, config.d_model, config.d_ff, config.bias, **config.feedforward.settings
        )

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        position: Position,
        *,
        cache: KVCache | None = None,
        layer: int = 0,
        documents_BT: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the tokens' vectors after this layer; arguments as in `CausalSelfAttention.forward`."""
        settings = {"cache": cache, "layer": layer, "documents_BT": documents_BT}
        if self.placement == "post":
            x = self.ln1(x + self._drop(self.attn(x, position, **settings)))
            return self.ln2(x + self._drop(self.ffn(x)))
        x, normed = add_and_norm(self.ln2, x, self._drop(self.attn(self.ln1(x), position, **settings)))
        return x + self._drop(self.ffn(normed))

    def _drop(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        return dropout(x, self.dropout) if self.training else x


def add_and_norm(
    norm: Module, x: Float[Tensor, "batch time d_model"], branch: Float[Tensor, "batch time d_model"]
) -> Normed:
    """Return x + branch and its norm."""
    if isinstance(norm, RMSNorm):
        return norm.after_adding(x, branch)
    total = x + branch
    return Normed(total, norm(total))


def make_norm(config: ModelConfig) -> Module:
    """Return a new norm as configured; placement "none" takes all norms away."""
    if config.placement == "none":
        return NoNorm(config.d_model)
    norm = NORMS.build(config.norm.name, config.d_model, **config.norm.settings)
    if isinstance(norm, RMSNorm):
        norm.feeds_product = config.placement == "pre"  # after an addition its result is the residual path
    return norm


def dropout(x: Float[Tensor, "*shape"], probability: float) -> Float[Tensor, "*shape"]:
    """Set each number to 0 with `probability` and divide the others by 1 - probability: the mean stays.

    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, in the form that needs
    nothing later.
    """
    if probability == 0.0:
        return x
    return torch.where(torch.rand_like(x, dtype=torch.float32) < probability, 0.0, x / (1 - probability))
