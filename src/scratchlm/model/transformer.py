r"""Token ids in, logits over the vocabulary out: the decoder-only transformer.

    x      = token_embeddings[ids] (+ positions)
    x      = block(x)                               num_layers times
    logits = lm_head(ln_final(x))                   tied: lm_head's weight is the embedding table

Logits at position t depend on tokens 0..t only, and on those of the same document only where the documents'
numbers are given. With `gradient_checkpointing` a training pass keeps each block's input alone and computes
the block again when its gradient is due: a third more work, and memory for one block instead of all.

State-dict keys are those of Stanford CS336:
token_embeddings.weight, layers.{i}.attn.{q,k,v,output}_proj.weight, layers.{i}.ln1.weight,
layers.{i}.ffn.{w1,w2,w3}.weight, layers.{i}.ln2.weight, ln_final.weight, lm_head.weight.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; decoder only, pre-norm: Radford et al. 2019
(GPT-2); the defaults (RMSNorm, RoPE, SwiGLU) as in Touvron et al. 2023, https://arxiv.org/abs/2302.13971;
checkpointing: Chen et al. 2016, https://arxiv.org/abs/1604.06174.
"""

import math
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.utils.checkpoint import checkpoint

from scratchlm.model.block import Block, dropout, make_norm
from scratchlm.model.config import MODELS, ModelConfig
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.linear import Embedding, Linear, glorot_std, linear
from scratchlm.model.norm import NoNorm
from scratchlm.model.position import POSITIONS
from scratchlm.model.width import fit_width_


@MODELS.register("transformer")
class TransformerLM(Module):
    """A decoder-only transformer, its parts chosen by name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _introduce_tensors_to_einops()
        self.config = config
        self.gradient_checkpointing = False
        self.logit_divisor = config.width_ratio
        # A tied table is also the head: at variance 1 its logits would start with a spread of sqrt(d_model)
        std = (config.mup_width or config.d_model) ** -0.5 if config.tied else 1.0
        self.token_embeddings = Embedding(config.vocab_size, config.d_model, std=config.init_std or std)
        self.position_embeddings = POSITIONS.build(
            config.position.name,
            config.d_model,
            config.num_heads,
            config.d_head,
            config.context_length,
            **config.position.settings,
        )
        self.layers = ModuleList(Block(config) for _ in range(config.num_layers))
        # post-norm blocks end with a norm already
        self.ln_final = make_norm(config) if config.placement == "pre" else NoNorm(config.d_model)
        self.lm_head = None if config.tied else Linear(config.d_model, config.vocab_size)
        if config.init_std is not None:
            spread_matrices_(self, config.init_std)
        if self.logit_divisor != 1:
            fit_width_(self)
        if config.zero_init_projections:
            zero_projections_(self)

    def forward(
        self,
        token_ids: Int[Tensor, "batch time"],
        *,
        cache: KVCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position.

        Args:
            token_ids: The text; with a cache, its new tokens only.
            cache: Keys and values of the tokens before.
            documents: The number of each token's document: it sees tokens of the same number only. None:
                it sees all before it.

        Raises:
            ValueError: More tokens than context_length, or documents together with a cache.
        """
        return self.head(self.hidden(token_ids, cache=cache, documents=documents))

    def hidden(
        self,
        token_ids: Int[Tensor, "batch time"],
        *,
        cache: KVCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the vectors that the head turns into logits; arguments as in `forward`."""
        start = cache.length if cache is not None else 0
        num_tokens = token_ids.shape[1]
        if start + num_tokens > self.config.context_length:
            raise ValueError(
                f"{start + num_tokens} tokens are more than context_length={self.config.context_length}; "
                "give the model the last ones only."
            )
        x = self.position_embeddings.add(self.token_embeddings(token_ids), start)
        if self.training:
            x = dropout(x, self.config.dropout)
        recompute = self.gradient_checkpointing and self.training and cache is None
        for layer, block in enumerate(self.layers):
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x = run(x, self.position_embeddings, cache=cache, layer=layer, documents_BT=documents)
        if cache is not None:
            cache.advance(num_tokens)
        return self.ln_final(x)

    def head(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Return the logits of vectors from `hidden`."""
        logits = linear(hidden, self.head_weight)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The head's matrix: its own, or the embedding table when tied; divided as width.py says."""
        weight = self.token_embeddings.weight if self.lm_head is None else self.lm_head.weight
        return weight if self.logit_divisor == 1 else weight / self.logit_divisor

    def make_cache(self, capacity: int | None = None) -> KVCache:
        """Return an empty cache for this model, for context_length tokens unless `capacity` says less."""
        return KVCache(self.config.num_layers, capacity or self.config.context_length)


def _introduce_tensors_to_einops() -> None:
    """Let einops meet the two types of tensors before anything is compiled.

    It notes each type that it sees for the first time. Noted during compilation, that is a change of a global
    variable: the second step would be compiled again, and a checkpointed block not at all.
    """
    for tensor in (torch.empty(1), Parameter(torch.empty(1))):
        rearrange(tensor, "one -> one")


@torch.no_grad()
def spread_matrices_(model: TransformerLM, std: float) -> None:
    """Give all matrices one standard deviation, each branch's last one std / sqrt(2 num_layers).

    Then all branches together add as much to the residual stream, however many there are. The numbers that
    were drawn are scaled, so a seed means the same for every `std`.

    Source: Radford et al. 2019 (GPT-2), section 2.3, with std = 0.02.
    """
    last = {id(part) for block in model.layers for part in (block.attn.output_proj, block.ffn.w2)}
    for part in model.modules():
        if isinstance(part, Linear):
            wanted = std / math.sqrt(2 * len(model.layers)) if id(part) in last else std
            part.weight.mul_(wanted / glorot_std(*part.weight.shape))


@torch.no_grad()
def zero_projections_(model: TransformerLM) -> None:
    """Set the last matrix of every branch to 0: each block starts as the identity.

    Source: Zhang et al. 2019 (Fixup), https://arxiv.org/abs/1901.09321, section 3.
    """
    for block in model.layers:
        block.attn.output_proj.weight.zero_()
        block.ffn.w2.weight.zero_()
