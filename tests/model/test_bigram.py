"""The bigram baseline: the table that it is."""

import math

import pytest
import torch

from scratchlm.loss import cross_entropy
from scratchlm.model import MODELS, ModelConfig


def test_starts_uniform_and_learns_the_frequencies():
    model = MODELS.build("bigram", ModelConfig(name="bigram", vocab_size=3))
    inputs, targets = torch.tensor([[0, 0, 0, 0, 1, 2]]), torch.tensor([[1, 1, 1, 2, 0, 0]])
    assert cross_entropy(model(inputs), targets).item() == pytest.approx(math.log(3))
    for _ in range(600):
        loss = cross_entropy(model(inputs), targets)
        (gradient,) = torch.autograd.grad(loss, model.token_embeddings.weight)
        with torch.no_grad():
            model.token_embeddings.weight.sub_(2 * gradient)
    followers = torch.softmax(model.token_embeddings.weight[0], dim=0)
    torch.testing.assert_close(followers, torch.tensor([0.0, 0.75, 0.25]), atol=0.01, rtol=0)


def test_sees_one_token_only():
    model = MODELS.build("bigram", ModelConfig(name="bigram", vocab_size=5))
    torch.nn.init.normal_(model.token_embeddings.weight)
    ids = torch.tensor([[4, 2, 3], [0, 1, 3]])
    torch.testing.assert_close(model(ids)[0, 2], model(ids)[1, 2])
