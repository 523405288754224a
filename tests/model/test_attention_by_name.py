"""`model.attention` names an implementation: the model computes the same with each, and learns the same."""

import pytest
import torch

from scratchlm.kernels import KERNELS
from scratchlm.model import ModelConfig
from scratchlm.model.transformer import TransformerLM

SHAPE = {"vocab_size": 50, "context_length": 64, "d_model": 32, "num_layers": 2, "num_heads": 4}
TOKENS = torch.arange(80).reshape(2, 40) % 50


def logits_and_gradients(name, **settings):
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**SHAPE, num_kv_heads=2, attention=name, **settings))
    logits = model(TOKENS)
    return logits.detach(), *torch.autograd.grad(logits.square().mean(), list(model.parameters()))


@pytest.mark.parametrize("settings", [{}, {"window": 7}])
@pytest.mark.parametrize("name", ["blocks", "tiled", "sdpa"])
def test_every_attention_of_a_cpu_makes_the_same_model(name, settings):
    reference = logits_and_gradients("reference", **settings)
    for mine, expected in zip(logits_and_gradients(name, **settings), reference, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)  # float32 sums in other orders


def test_every_name_of_the_settings_is_an_implementation():
    names = set(ModelConfig.model_fields["attention"].annotation.__args__)
    assert names - {"auto"} <= set(KERNELS["attention"])
