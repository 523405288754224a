"""Norms: equal to torch's, in any number format."""

import pytest
import torch

from scratchlm.model.norm import NORMS, LayerNorm, RMSNorm


def test_rmsnorm_equals_torch():
    norm = RMSNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 4, 16)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-5))


def test_layernorm_equals_torch():
    norm = LayerNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 16) + 5
    torch.testing.assert_close(
        norm(x), torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias, 1e-5)
    )


def test_rmsnorm_of_a_worked_example():
    # mean of the squares of (3, 4) is 12.5
    expected = torch.tensor([3.0, 4.0]) / 12.5**0.5
    torch.testing.assert_close(RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])), expected)


@pytest.mark.parametrize("name", NORMS.names())
def test_every_norm_keeps_shape_and_format_and_looks_at_one_token_only(name):
    norm = NORMS.build(name, 8)
    x = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert norm(x).shape == x.shape
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x)[:, 2:3], norm(x[:, 2:3]))


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm"])
def test_norms_compute_in_float32(name):
    # 3e4 squared overflows float16; in bfloat16 the mean of squares would be off by percents
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    x[0, ::2] *= -1
    torch.testing.assert_close(NORMS.build(name, 64)(x).abs(), torch.ones(1, 64, dtype=torch.float16))


def test_gain_and_bias_can_be_left_out():
    assert dict(RMSNorm(4, gain=False).named_parameters()) == {}
    assert list(dict(LayerNorm(4, bias=False).named_parameters())) == ["weight"]
