"""Policy losses: hand-worked numbers, gradients against a plain loop, masks, parts that add up."""

import math

import pytest
import torch
from small_policies import plain_loss

from scratchlm.posttrain.policy_losses import (
    POLICY_LOSSES,
    aggregate,
    answer_weights,
    compute_entropy,
    compute_policy_gradient_loss,
    kl_estimate,
    masked_mean,
    masked_sum,
)

LN2 = math.log(2)


def plain(name, log_probs, advantages, old, mask):
    """The same losses one token after the other, with scalars."""
    rows = [torch.zeros(())] * len(mask)
    for row, kept in enumerate(mask):
        if kept.any():
            rows[row] = plain_loss(name, log_probs[row][kept], advantages[row, 0], old[row][kept])
    return sum(rows) / len(rows)


def sampled(rows=6, time=7):
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(rows, time, generator=generator) * 3 - 0.1
    now = old + 0.4 * torch.randn(rows, time, generator=generator)
    mask = torch.rand(rows, time, generator=generator) < 0.7
    mask[2] = False
    advantages = torch.randn(rows, 1, generator=generator)
    return now.requires_grad_(), advantages, old, mask


def built(name):
    settings = {"grpo": {"clip": 0.2}, "gspo": {"clip": 0.2}, "cispo": {"clip_high": 0.2}}
    return POLICY_LOSSES.build(name, **settings.get(name, {}))


@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_loss_and_gradient_equal_those_of_a_plain_loop(name):
    now, advantages, old, mask = sampled()
    loss = aggregate(built(name)(now, advantages, old, mask).losses, mask)
    (gradient,) = torch.autograd.grad(loss, now)
    wanted = plain(name, now, advantages, old, mask)
    (wanted_gradient,) = torch.autograd.grad(wanted, now)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)


@pytest.mark.parametrize(
    ("name", "expected", "gradient"),
    [
        # one answer of two tokens, A = 2: p rose from 1/4 to 1/2 and fell from 1/2 to 1/4
        ("reinforce", [2 * LN2, 4 * LN2], [-2.0, -2.0]),
        ("ratio", [-4.0, -1.0], [-4.0, -1.0]),
        ("grpo", [-2.4, -1.0], [0.0, -1.0]),
        ("gspo", [-2.0, -2.0], [-2.0, -2.0]),
        ("cispo", [2.4 * LN2, 2 * LN2], [-2.4, -1.0]),
    ],
)
def test_losses_and_gradients_are_those_worked_out_by_hand(name, expected, gradient):
    now = torch.tensor([[-LN2, -2 * LN2]], requires_grad=True)
    old = torch.tensor([[-2 * LN2, -LN2]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = built(name)(now, torch.tensor([[2.0]]), old, mask).losses
    torch.testing.assert_close(found.detach(), torch.tensor([expected]))
    found.sum().backward()
    torch.testing.assert_close(now.grad, torch.tensor([gradient]))


@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_at_the_weights_that_sampled_every_gradient_is_that_of_reinforce(name):
    now, advantages, _, mask = sampled()
    old = now.detach().clone()
    (gradient,) = torch.autograd.grad(aggregate(built(name)(now, advantages, old, mask).losses, mask), now)
    (wanted,) = torch.autograd.grad(aggregate(-advantages * now, mask), now)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_nothing_outside_the_mask_matters_not_even_nan(name):
    now, advantages, old, mask = sampled()
    wanted = aggregate(built(name)(now, advantages, old, mask).losses, mask)
    dirty_now = torch.where(mask, now.detach(), torch.nan).requires_grad_()
    dirty_old = torch.where(mask, old, torch.inf)
    found = aggregate(built(name)(dirty_now, advantages, dirty_old, mask).losses, mask)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", POLICY_LOSSES.names())
def test_old_log_probabilities_get_no_gradient(name):
    now, advantages, old, mask = sampled()
    old.requires_grad_()
    aggregate(built(name)(now, advantages, old, mask).losses, mask).backward()
    assert old.grad is None


def test_what_was_clipped_is_told():
    now, advantages, old, mask = sampled()
    found = built("grpo")(now, advantages, old, mask)
    (gradient,) = torch.autograd.grad(found.losses.sum(), now)
    assert found.clipped[mask].any()
    assert torch.equal((gradient == 0)[mask], found.clipped[mask])


def test_the_upper_bound_can_be_another_one():
    now, old = torch.tensor([[0.5]]), torch.tensor([[0.0]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = POLICY_LOSSES.build("grpo", clip=0.1, clip_high=0.3)(now, torch.ones(1, 1), old, mask).losses
    assert float(loss) == pytest.approx(-1.3)
    with pytest.raises(ValueError, match=r"clip=0.0, clip_high=None: must be above 0"):
        POLICY_LOSSES.build("grpo", clip=0.0)


@pytest.mark.parametrize(("normalization", "constant"), [("sequence", None), ("constant", 21.0)])
def test_micro_batches_without_flat_answers_add_up_to_the_whole(normalization, constant):
    now, advantages, old, mask = sampled()
    advantages[3:5] = 0.0
    how = {"normalization": normalization, "constant": constant}
    whole = aggregate(built("grpo")(now, advantages, old, mask).losses, mask, **how)
    (wanted,) = torch.autograd.grad(whole, now)
    weights = answer_weights(mask.sum(dim=1), **how)
    found = torch.zeros_like(now)
    for rows in ([0, 1, 2], [5]):  # 3 and 4 teach nothing
        part = now.detach()[rows].requires_grad_()
        losses = built("grpo")(part, advantages[rows], old[rows], mask[rows]).losses
        (masked_sum(losses, mask[rows], dim=1) * weights[rows]).sum().backward()
        found[rows] = part.grad
    torch.testing.assert_close(found, wanted)


def test_both_ways_to_aggregate_by_hand():
    losses = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert float(aggregate(losses, mask)) == pytest.approx((2 + 5 + 0) / 3)
    assert float(aggregate(losses, mask, normalization="constant", constant=18)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="needs a constant above 0, not None"):
        aggregate(losses, mask, normalization="constant")


def test_cs336_names_are_the_same_losses():
    now, advantages, old, mask = sampled()
    for method, name in {"none": "reinforce", "noclip": "ratio", "grpo": "grpo", "gspo": "gspo"}.items():
        found = compute_policy_gradient_loss(
            advantages,
            now,
            importance_reweighting_method=method,
            old_log_probs=None if method == "none" else old,
            cliprange=0.2,
            response_mask=mask,
        )
        assert torch.equal(found.losses, built(name)(now, advantages, old, mask).losses)
    with pytest.raises(ValueError, match="'noclip' needs old_log_probs"):
        compute_policy_gradient_loss(advantages, now, importance_reweighting_method="noclip")


def test_entropy_is_stable_and_right():
    logits = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, -torch.inf]])
    torch.testing.assert_close(compute_entropy(logits), torch.tensor([LN2, 0.0, 0.0]))
    x = torch.randn(3, 5)
    torch.testing.assert_close(
        compute_entropy(x), torch.distributions.Categorical(logits=x).entropy(), rtol=1e-5, atol=1e-6
    )


def test_the_kl_estimate_by_hand_and_its_mean_is_the_divergence():
    now = torch.tensor([[math.log(0.5)]], requires_grad=True)
    reference = torch.tensor([[math.log(0.25)]], requires_grad=True)
    found = kl_estimate(now, reference)
    assert float(found.detach()) == pytest.approx(0.5 + LN2 - 1)
    found.sum().backward()
    assert float(now.grad) == pytest.approx(1 - 0.5)  # 1 - exp(ref - logp)
    assert reference.grad is None
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_estimate(p.log()[None], q.log()[None])[0]).sum(), expected)


def test_a_mean_over_nothing_is_nan_unless_told_otherwise():
    x, mask = torch.tensor([[1.0, 3.0], [5.0, torch.nan]]), torch.tensor([[True, True], [False, False]])
    assert masked_mean(x, mask, dim=1)[0] == 2.0
    assert masked_mean(x, mask, dim=1)[1].isnan()
    assert masked_mean(x, mask, dim=1, empty=0.0).tolist() == [2.0, 0.0]
    assert masked_mean(x, mask) == 2.0
    assert masked_mean(x, mask, dim=0).tolist() == [1.0, 3.0]
