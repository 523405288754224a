r"""Token ids in, logits out: the baseline that sees one token only.

    logits = table[id]        one row of vocab_size numbers for each token

Trained, row i is the logarithm of how often each token follows token i: what a model must beat before
anybody may say that it uses context. It starts at 0, the uniform distribution, with loss ln(vocab_size). It
holds vocab_size^2 numbers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from scratchlm.model.config import MODELS, ModelConfig
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.linear import Embedding


@MODELS.register("bigram")
class BigramLM(Module):
    """A table of logits: the next token from the last one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # there is nothing to compute again
        self.token_embeddings = Embedding(config.vocab_size, config.vocab_size)
        with torch.no_grad():
            self.token_embeddings.weight.zero_()

    def forward(
        self,
        token_ids: Int[Tensor, "batch time"],
        *,
        cache: KVCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position."""
        return self.head(self.hidden(token_ids, cache=cache, documents=documents))

    def hidden(
        self,
        token_ids: Int[Tensor, "batch time"],
        *,
        cache: KVCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the rows of the table; the cache only counts, and no other token is seen anyway."""
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return self.token_embeddings(token_ids)

    def head(self, hidden: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Return the rows unchanged: they are the logits."""
        return hidden

    def make_cache(self, capacity: int | None = None) -> KVCache:
        """Return a cache that keeps nothing but the number of tokens."""
        return KVCache(0, capacity or self.config.context_length)
