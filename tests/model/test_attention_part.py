"""The attention part of a layer: documents stay apart, projections run together."""

import pytest
import torch

from scratchlm.model.attention import CausalSelfAttention
from scratchlm.model.config import ModelSettings
from scratchlm.model.kv_cache import KVCache
from scratchlm.model.position import NoPosition, RoPE

SETTINGS = ModelSettings(d_model=16, num_heads=4, num_kv_heads=2, num_layers=1, context_length=32)


def attention_part():
    return CausalSelfAttention(SETTINGS.with_vocabulary(10))


def test_a_document_is_computed_as_if_it_stood_alone():
    part, position = attention_part(), NoPosition(16, 4, 4, 32)
    x = torch.randn(2, 9, 16)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 6, 6, 6, 6, 7, 7]])
    together = part(x, position, documents_BT=documents)
    alone = torch.cat([part(piece, position) for piece in x.split([3, 4, 2], dim=1)], dim=1)
    torch.testing.assert_close(together, alone)


def test_documents_with_a_cache_are_refused():
    part, position = attention_part(), RoPE(16, 4, 4, 32)
    with pytest.raises(ValueError, match="documents and a cache do not go together"):
        part(
            torch.randn(1, 2, 16),
            position,
            cache=KVCache(1, 32),
            documents_BT=torch.zeros(1, 2, dtype=torch.int64),
        )
