"""Position encodings: what each source promises, and that all keep to the one interface."""

import math

import pytest
import torch

from scratchlm.kernels.attention_reference import alibi_bias, attention
from scratchlm.model.position import POSITIONS, ALiBi, RoPE, alibi_slopes, rotate_pairs


def scores(rope, q, k, start):
    """Scores of all queries against all keys, the first token standing at `start`."""
    return rope.rotate(q, start) @ rope.rotate(k, start).transpose(-1, -2)


def test_rope_scores_depend_only_on_distance():
    rope = RoPE(32, 4, 8, 64)
    q, k = torch.randn(1, 1, 1, 8).expand(1, 4, 24, 8), torch.randn(1, 1, 1, 8).expand(1, 2, 24, 8)
    grouped = scores(rope, q, k.repeat_interleave(2, dim=1), 0)[0]
    for distance in range(-23, 24):
        diagonal = grouped.diagonal(distance, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), atol=2e-5, rtol=1e-4)
    assert grouped[0, 0].std() > 0.01  # and they do depend on it


def test_rope_scores_do_not_change_when_everything_moves():
    rope = RoPE(32, 4, 8, 64)
    q, k = torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8)
    torch.testing.assert_close(scores(rope, q, k, 0), scores(rope, q, k, 37), atol=2e-5, rtol=1e-4)


def test_rope_attention_with_grouped_heads_does_not_change_when_everything_moves():
    rope = RoPE(32, 4, 8, 64)
    q, k, v = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    here = attention(rope.rotate(q, 0), rope.rotate(k, 0), v)
    there = attention(rope.rotate(q, 31), rope.rotate(k, 31), v)
    torch.testing.assert_close(here, there, atol=2e-5, rtol=1e-4)


def arranged(rope, x):
    return rope.arrange(x.movedim(-1, 0).contiguous()).movedim(0, -1)


def test_arranged_pairs_are_halves():
    rope = RoPE(12, 2, 6, 16)
    assert rope.arrange(torch.arange(12.0)).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert POSITIONS.build("none", 12, 2, 6, 16).arrange(torch.arange(12.0)).tolist() == list(range(12))


def test_the_gradient_of_a_rotation_is_what_autograd_finds():
    rope = RoPE(16, 1, 8, 32)
    x = torch.randn(2, 3, 7, 8, requires_grad=True)
    upstream = torch.randn(2, 3, 7, 8)
    (mine,) = torch.autograd.grad(rope.rotate(x, 5), x, upstream)
    halves = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
    turned = rotate_pairs(halves, rope.cos[5:12], rope.sin[5:12])
    pairs = torch.stack(upstream.chunk(2, dim=-1), dim=-1).flatten(-2)
    (expected,) = torch.autograd.grad(turned, x, pairs)
    torch.testing.assert_close(mine, expected)


def test_rope_turns_adjacent_pairs_as_complex_numbers():
    rope = RoPE(16, 1, 16, 32, theta=100.0)
    x = torch.randn(1, 1, 32, 16)
    angle = torch.outer(torch.arange(32.0), 100.0 ** (-torch.arange(0, 16, 2) / 16))
    expected = torch.view_as_complex(x.unflatten(-1, (8, 2))) * torch.polar(torch.ones_like(angle), angle)
    turned = rope.rotate(arranged(rope, x), 0)
    torch.testing.assert_close(turned, arranged(rope, torch.view_as_real(expected).flatten(-2)))


def test_a_quarter_turn_of_a_worked_example():
    turned = rotate_pairs(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.zeros(1, 2), torch.ones(1, 2))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, -2.0, 0.0]]))


def test_rope_keeps_lengths():
    x = torch.randn(1, 2, 16, 8)
    torch.testing.assert_close(RoPE(16, 2, 8, 16).rotate(x, 0).norm(dim=-1), x.norm(dim=-1))


def test_rope_refuses_an_odd_head():
    with pytest.raises(ValueError, match=r"d_head must be even; d_head=3 \(d_model=6 / num_heads=2\)"):
        RoPE(6, 2, 3, 16)


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16)[:3] == pytest.approx([2**-0.5, 2**-1, 2**-1.5])
    # the paper's code for 12 heads: those of 8, then every second one of 16
    assert alibi_slopes(12) == pytest.approx(
        [2.0**-i for i in range(1, 9)] + [2 ** -(i - 0.5) for i in range(1, 5)]
    )
    assert alibi_slopes(1) == [2.0**-8]


def test_alibi_lowers_scores_by_slope_times_distance():
    bias = alibi_bias(ALiBi(16, 8, 2, 32).slopes, 2, 4)
    assert bias.shape == (8, 2, 4)
    torch.testing.assert_close(bias[0, 1], -0.5 * torch.tensor([3.0, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(bias[7, 0, :3], -(2.0**-8) * torch.tensor([2.0, 1.0, 0.0]))


def test_sinusoids_are_those_of_the_paper():
    position = POSITIONS.build("sinusoidal", 6, 2, 3, 10, scale=1.0)
    added = position.add(torch.zeros(1, 4, 6), 3)[0]
    for token, place in enumerate(range(3, 7)):
        for k in range(3):
            angle = place / 10000 ** (2 * k / 6)
            assert added[token, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert added[token, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_learned_positions_are_a_parameter_and_start_small():
    position = POSITIONS.build("learned", 64, 2, 32, 128)
    assert dict(position.named_parameters())["weight"].shape == (128, 64)
    assert position.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_every_position_part_keeps_to_the_interface(name):
    position = POSITIONS.build(name, 16, 4, 4, 32)
    x, q = torch.randn(2, 5, 16), torch.randn(2, 4, 5, 4)
    assert position.add(x, 3).shape == x.shape
    assert position.rotate(q, 3).shape == q.shape
    assert position.slopes is None or position.slopes.shape == (4,)
    assert set(position.state_dict()) <= {"weight"}, "tables must not be part of a checkpoint"


@pytest.mark.parametrize("name", POSITIONS.names())
def test_every_position_part_continues_where_it_stopped(name):
    position = POSITIONS.build(name, 16, 4, 4, 32)
    x, q = torch.randn(2, 9, 16), torch.randn(2, 4, 9, 4)
    torch.testing.assert_close(position.add(x, 2)[:, 4:], position.add(x[:, 4:], 6))
    torch.testing.assert_close(position.rotate(q, 2)[:, :, 4:], position.rotate(q[:, :, 4:], 6))
    if position.slopes is not None:
        whole, part = (alibi_bias(position.slopes, num_queries, 9) for num_queries in (9, 5))
        torch.testing.assert_close(whole[:, 4:], part)
