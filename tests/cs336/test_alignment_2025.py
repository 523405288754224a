"""The course's functions of assignment 5, 2025: worked examples and the gradients of its micro-batches."""

import math

import pytest
import torch

from scratchlm.cs336.alignment_2025 import (
    run_compute_entropy,
    run_compute_group_normalized_rewards,
    run_compute_grpo_clip_loss,
    run_compute_naive_policy_gradient_loss,
    run_compute_policy_gradient_loss,
    run_grpo_microbatch_train_step,
    run_masked_mean,
    run_masked_normalize,
    run_sft_microbatch_train_step,
)


@pytest.fixture
def batch():
    return {
        "log_probs": (-torch.rand(3, 7)).requires_grad_(),
        "old": -torch.rand(3, 7),
        "advantages": torch.tensor([[1.0], [-0.5], [0.25]]),
        "rewards": torch.tensor([[1.0], [0.0], [1.0]]),
        "mask": torch.arange(7) < torch.tensor([[7], [3], [1]]),
    }


def test_rewards_are_normalised_in_their_groups_and_returned_raw_as_well():
    def reward(response, truth):
        return {"reward": float(response == truth), "format_reward": 1.0, "answer_reward": 0.0}

    arguments = (reward, ["a", "b", "a", "b", "b", "b"], ["a"] * 6, 3, 1e-6)
    advantages, rewards, figures = run_compute_group_normalized_rewards(*arguments, True)
    assert rewards.tolist() == [1, 0, 1, 0, 0, 0]
    std = math.sqrt(1 / 3)  # of (1, 0, 1), divided by 3 - 1
    expected = torch.tensor([1 / 3, -2 / 3, 1 / 3, 0, 0, 0])
    torch.testing.assert_close(advantages, expected / (std + 1e-6))
    assert figures["format_reward"] == 1.0
    torch.testing.assert_close(run_compute_group_normalized_rewards(*arguments, False)[0], expected)


def test_entropy_is_that_of_the_softmax_and_survives_large_logits():
    assert float(run_compute_entropy(torch.zeros(8))) == pytest.approx(math.log(8))
    assert run_compute_entropy(torch.tensor([[1e3, 0.0], [1e3, 1e3]])).tolist() == pytest.approx(
        [0.0, math.log(2)],
        abs=1e-4,  # float32 holds 1,000 to 6e-5
    )


def test_the_mean_over_nothing_is_no_number_and_the_sum_is_divided_by_a_constant():
    table, mask = torch.arange(6.0).reshape(2, 3), torch.tensor([[True, False, True], [False] * 3])
    assert run_masked_mean(table, mask).item() == 1.0
    by_row = run_masked_mean(table, mask, 1)
    assert by_row[0].item() == 1.0
    assert by_row[1].isnan()
    assert run_masked_mean(table, mask, 0).isnan().tolist() == [False, True, False]
    assert run_masked_normalize(table, mask, 1, 4.0).tolist() == [0.5, 0.0]
    assert run_masked_normalize(table, mask).item() == 2.0


def test_policy_losses_by_name(batch):
    logp, old, advantages = batch["log_probs"].detach(), batch["old"], batch["advantages"]
    ratio = (logp - old).exp()
    clipped = -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages)
    expected = {
        "no_baseline": -batch["rewards"] * logp,
        "reinforce_with_baseline": -advantages * logp,
        "grpo_clip": clipped,
    }
    for name, losses in expected.items():
        found, _ = run_compute_policy_gradient_loss(logp, name, batch["rewards"], advantages, old, 0.1)
        torch.testing.assert_close(found, losses)
    torch.testing.assert_close(run_compute_naive_policy_gradient_loss(advantages, logp), -advantages * logp)
    found, figures = run_compute_grpo_clip_loss(advantages, logp, old, 0.1)
    torch.testing.assert_close(found, clipped)
    assert figures["clipped"].shape == logp.shape


def test_what_a_policy_loss_misses_is_named(batch):
    with pytest.raises(ValueError, match="'grpo_clip' needs old_log_probs, cliprange"):
        run_compute_policy_gradient_loss(batch["log_probs"], "grpo_clip", advantages=batch["advantages"])
    with pytest.raises(ValueError, match="loss_type='ppo': must be one of no_baseline, reinforce"):
        run_compute_policy_gradient_loss(batch["log_probs"], "ppo")


@pytest.mark.parametrize("constant", [1.0, 42.0])
def test_micro_batches_of_sft_add_their_gradients_up(batch, constant):
    for _ in range(3):
        loss, _ = run_sft_microbatch_train_step(batch["log_probs"], batch["mask"], 2, constant)
    kept = batch["mask"].float()
    assert loss.item() == pytest.approx(
        -float((batch["log_probs"].detach() * kept).sum()) / (3 * 2 * constant)
    )
    torch.testing.assert_close(batch["log_probs"].grad, -3 * kept / (3 * 2 * constant))


def test_micro_batches_of_grpo_take_each_responses_mean_first(batch):
    logp, mask = batch["log_probs"], batch["mask"]
    loss, _ = run_grpo_microbatch_train_step(
        logp, mask, 4, "grpo_clip", batch["rewards"], batch["advantages"], batch["old"], 0.2
    )
    twin = logp.detach().clone().requires_grad_()
    ratio = (twin - batch["old"]).exp()
    losses = -torch.minimum(ratio * batch["advantages"], ratio.clamp(0.8, 1.2) * batch["advantages"])
    expected = torch.stack([row[kept].mean() for row, kept in zip(losses, mask, strict=True)]).mean() / 4
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(logp.grad, twin.grad)
