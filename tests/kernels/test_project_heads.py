"""Projection, QK-norm and rotation in their plain form: equal to the steps written out."""

import pytest
import torch

from scratchlm.kernels import choose
from scratchlm.kernels.project_heads import Angles, Gains, project_heads
from scratchlm.kernels.rms_norm import rms_norm_reference
from scratchlm.kernels.rotate import rotate, rotate_reference

HEADS, KV_HEADS, D_HEAD, TIME = 4, 2, 6, 7


def angles():
    angle = torch.randn(TIME, D_HEAD // 2)
    return Angles(angle.cos(), angle.sin())


def test_a_rotation_and_its_gradient_equal_the_twin():
    x, upstream = torch.randn(2, 3, TIME, D_HEAD, requires_grad=True), torch.randn(2, 3, TIME, D_HEAD)
    table = angles()
    ours, twin = rotate(x, *table), rotate_reference(x, *table)
    torch.testing.assert_close(ours, twin)
    mine, expected = (torch.autograd.grad(out, x, upstream)[0] for out in (ours, twin))
    torch.testing.assert_close(mine, expected)


def test_a_quarter_turn_of_a_worked_example():
    turned = rotate(torch.tensor([[[[1.0, 0.0, 0.0, 2.0]]]]), torch.zeros(1, 2), torch.ones(1, 2))
    torch.testing.assert_close(turned, torch.tensor([[[[0.0, -2.0, 1.0, 0.0]]]]))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_heads_are_projected_normed_and_turned(normed, turned):
    x, table = torch.randn(2, TIME, 16), angles()
    weight, bias = torch.randn((HEADS + 2 * KV_HEADS) * D_HEAD, 16), torch.randn(48)
    gains = Gains(torch.randn(D_HEAD), torch.randn(D_HEAD), 1e-3)
    split = (x @ weight.T + bias).unflatten(-1, (-1, D_HEAD)).transpose(1, 2).split([4, 2, 2], dim=1)
    q, k, v = split
    if normed:
        q, k = rms_norm_reference(q, gains.q, eps=1e-3), rms_norm_reference(k, gains.k, eps=1e-3)
    if turned:
        q, k = rotate_reference(q, *table), rotate_reference(k, *table)
    heads = project_heads(
        x,
        weight,
        bias,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        gains=gains if normed else None,
        angles=table if turned else None,
    )
    for mine, expected in zip(heads, (q, k, v), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("op", ["rotate", "project_heads"])
def test_auto_is_the_plain_form_without_a_gpu(op):
    assert choose(op).name == "plain"
