"""Feed-forwards: their activations equal torch's, their sizes are comparable."""

import pytest
import torch
from torch.nn import functional

from scratchlm.model import feedforward
from scratchlm.model.feedforward import FEEDFORWARDS


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (feedforward.silu, functional.silu),
        (feedforward.gelu, functional.gelu),
        (feedforward.gelu_tanh, lambda z: functional.gelu(z, approximate="tanh")),
        (feedforward.relu2, lambda z: functional.relu(z) ** 2),
    ],
    ids=["silu", "gelu", "gelu_tanh", "relu2"],
)
def test_activation_and_gradient_equal_torch(ours, torchs):
    z = torch.linspace(-6, 6, 101, requires_grad=True)
    (mine,) = torch.autograd.grad(ours(z).sum(), z)
    (reference,) = torch.autograd.grad(torchs(z).sum(), z)
    torch.testing.assert_close(ours(z), torchs(z))
    torch.testing.assert_close(mine, reference)


def test_swiglu_is_the_gated_product():
    part = FEEDFORWARDS.build("swiglu", 8, 24, False)
    x = torch.randn(2, 3, 8)
    gate, value = x @ part.w1.weight.T, x @ part.w3.weight.T
    torch.testing.assert_close(part(x), (functional.silu(gate) * value) @ part.w2.weight.T)


@pytest.mark.parametrize(("d_model", "d_ff"), [(512, 1344), (768, 2048), (64, 192), (8, 64)])
def test_swiglu_takes_eight_thirds_rounded_to_64(d_model, d_ff):
    assert FEEDFORWARDS.get("swiglu").default_d_ff(d_model) == d_ff


@pytest.mark.parametrize("name", FEEDFORWARDS.names())
@pytest.mark.parametrize("bias", [False, True])
def test_every_feedforward_keeps_to_the_interface(name, bias):
    part = FEEDFORWARDS.build(name, 8, 24, bias)
    x = torch.randn(2, 5, 8)
    assert part(x).shape == x.shape
    torch.testing.assert_close(part(x)[:, 1:2], part(x[:, 1:2]))  # each token on its own
    assert part.w1.weight.shape == (24, 8)
    assert part.w2.weight.shape == (8, 24)
    matrices = [parameter for parameter in part.parameters() if parameter.ndim == 2]
    assert len(matrices) == part.num_matrices
    assert any(parameter.ndim == 1 for parameter in part.parameters()) == bias


@pytest.mark.parametrize("name", FEEDFORWARDS.names())
def test_default_widths_give_the_same_number_of_parameters(name):
    part = FEEDFORWARDS.build(name, 768, None, False)
    count = sum(parameter.numel() for parameter in part.parameters())
    assert count == pytest.approx(8 * 768**2, rel=0.01)
