"""RMSNorm's plain form: equal to its twin and to torch's, whatever number format goes in and out."""

import pytest
import torch

from scratchlm.kernels import KERNELS, choose
from scratchlm.kernels.rms_norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradients_equal_the_twin(gain, dtype):
    x = (3 * torch.randn(5, 7, 16)).to(dtype).requires_grad_()
    weight = torch.randn(16, requires_grad=True) if gain else None
    wanted = (x, weight) if gain else (x,)
    upstream = torch.randn(5, 7, 16).to(dtype)
    ours, twin = rms_norm(x, weight, eps=1e-3), rms_norm_reference(x, weight, eps=1e-3)
    torch.testing.assert_close(ours, twin)
    for mine, expected in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(twin, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("kinds", [(torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16)])
def test_gain_and_vectors_may_be_of_any_one_format(kinds):
    """float64 keeps its precision: gradients are checked against differences."""
    x = torch.randn(3, 8, dtype=kinds[0], requires_grad=True)
    weight = torch.randn(8, dtype=kinds[1], requires_grad=True)
    if kinds[0] == torch.float64:
        torch.autograd.gradcheck(rms_norm, (x, weight))
    gradients = torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))
    assert [gradient.dtype for gradient in gradients] == list(kinds)


@pytest.mark.parametrize("name", ["plain", "reference"])
def test_rms_norm_equals_torch(name):
    x, weight = torch.randn(3, 4, 16), torch.randn(16)
    expected = torch.nn.functional.rms_norm(x, (16,), weight, 1e-5)
    torch.testing.assert_close(choose("rms_norm", name).function(x, weight), expected)


@pytest.mark.parametrize("name", ["plain", "reference"])
def test_the_result_can_have_another_number_format_than_x(name):
    function = choose("rms_norm", name).function
    x, weight = torch.randn(5, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    low, high = function(x, weight, dtype=torch.bfloat16), function(x, weight)
    torch.testing.assert_close(low, high.bfloat16(), rtol=0, atol=0)
    upstream = torch.randn(5, 16).bfloat16()
    for mine, expected in zip(
        torch.autograd.grad(low, (x, weight), upstream),
        torch.autograd.grad(high, (x, weight), upstream.float()),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_auto_is_the_plain_form_without_a_gpu():
    assert choose("rms_norm").function is rms_norm
    assert {"plain", "reference"} <= set(KERNELS["rms_norm"])


@pytest.mark.parametrize("name", ["plain", "reference"])
def test_a_sum_and_its_norm_are_the_two_steps(name):
    x, branch, weight = torch.randn(5, 16), torch.randn(5, 16), torch.randn(16)
    total, normed = choose("add_rms_norm", name).function(x, branch, weight, eps=1e-3)
    assert torch.equal(total, x + branch)
    torch.testing.assert_close(normed, rms_norm(x + branch, weight, eps=1e-3))
