"""Linear and Embedding: equal to torch's, and started as the course says."""

import math
import threading

import pytest
import torch

from scratchlm.model.linear import CUT, Embedding, Linear, no_initial_values, truncated_normal_


@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_torch(bias):
    layer = Linear(5, 7, bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_embedding_and_its_gradient_equal_torch():
    layer = Embedding(11, 6)
    ids = torch.tensor([[3, 3, 10], [0, 3, 1]])
    upstream = torch.randn(2, 3, 6)
    layer(ids).backward(upstream)
    ours = layer.weight.grad.clone()
    layer.weight.grad = None
    expected = torch.nn.functional.embedding(ids, layer.weight)
    expected.backward(upstream)
    torch.testing.assert_close(layer(ids), expected)
    torch.testing.assert_close(ours, layer.weight.grad)


def test_initial_values_are_truncated_normal():
    linear, embedding = Linear(300, 500), Embedding(500, 300)
    std = math.sqrt(2 / 800)
    # cut at 3 sigma, a normal distribution keeps 0.98658 of its standard deviation
    assert linear.weight.std().item() == pytest.approx(0.98658 * std, rel=0.01)
    assert embedding.weight.std().item() == pytest.approx(0.98658, rel=0.01)
    assert linear.weight.abs().max().item() <= CUT * std
    assert embedding.weight.abs().max().item() <= CUT
    assert abs(embedding.weight.mean().item()) < 0.01


def test_truncated_normal_has_the_right_quantiles():
    values = truncated_normal_(torch.empty(200_000), std=2.0).sort().values
    for quantile in (0.1, 0.5, 0.9):
        inside = 0.5 + (quantile - 0.5) * math.erf(3 / math.sqrt(2))
        expected = 2.0 * math.sqrt(2) * torch.erfinv(torch.tensor(2 * inside - 1)).item()
        assert values[int(quantile * len(values))].item() == pytest.approx(expected, abs=0.03)


def test_truncated_normal_follows_its_generator():
    first, second = (
        truncated_normal_(torch.empty(10), std=1.0, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_without_initial_values_a_thread_draws_nothing_and_the_others_do():
    torch.manual_seed(5)
    expected = [torch.get_rng_state(), truncated_normal_(torch.empty(4), std=1.0)]
    torch.manual_seed(5)
    inside, drawn = threading.Event(), threading.Event()

    def make():
        with no_initial_values():
            inside.set()
            drawn.wait(10)
            Linear(8, 8)
            Embedding(8, 8)

    thread = threading.Thread(target=make)
    thread.start()
    assert inside.wait(10)
    assert torch.equal(torch.get_rng_state(), expected[0])
    found = truncated_normal_(torch.empty(4), std=1.0)
    after = torch.get_rng_state()
    drawn.set()
    thread.join()
    assert torch.equal(found, expected[1])
    assert torch.equal(torch.get_rng_state(), after)
    with no_initial_values(), no_initial_values():
        pass
    assert not torch.equal(Linear(8, 8).weight, Linear(8, 8).weight)
