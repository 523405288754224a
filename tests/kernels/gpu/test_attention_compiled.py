"""Attention's kernels under torch.compile: one graph, the same gradients."""

import pytest
import torch

from scratchlm.kernels import choose

pytestmark = pytest.mark.interpret


def step(x_BTD, weight, attention, queries):
    """A projection, attention over slices of it, and something that the compiler fuses."""
    packed_BTNK = (x_BTD @ weight).unflatten(-1, (4, 16))
    q, k, v = packed_BTNK.transpose(1, 2).split([2, 1, 1], dim=1)
    out = attention(q[:, :, -queries:], k, v, window=30)
    return out.transpose(1, 2).flatten(2).sin().sum()


@pytest.mark.parametrize("name", ["triton", "triton_one_pass"])
def test_a_compiled_step_is_one_graph_with_the_same_gradient(name):
    attention = choose("attention", name).function
    x, weight = torch.randn(2, 40, 32), torch.randn(32, 64, requires_grad=True)
    (expected,) = torch.autograd.grad(step(x, weight, attention, 40), weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x, weight, attention, 40), weight)
    torch.testing.assert_close(gradient, expected)


@torch.no_grad()
def test_a_compiled_step_of_decoding_is_one_graph():
    attention = choose("attention", "triton").function
    x, weight = torch.randn(2, 40, 32), torch.randn(32, 64)
    expected = step(x, weight, attention, 1)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, attention, 1), expected)
