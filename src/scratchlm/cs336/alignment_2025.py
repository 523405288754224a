"""CS336, assignment 5 (alignment), 2025: functions of the course's tests/adapters.py, over this library.

    run_compute_entropy, run_masked_mean, run_masked_normalize      posttrain/policy_losses.py
    run_compute_group_normalized_rewards                            posttrain/advantages.py
    run_compute_naive_policy_gradient_loss, ..._grpo_clip_loss,
    run_compute_policy_gradient_loss                                posttrain/policy_losses.py
    run_sft_microbatch_train_step, run_grpo_microbatch_train_step   both: a loss, and its backward pass
    the others                                                      as in 2026: cs336/alignment_2026.py

The functions of a micro-batch call `backward` themselves; gradients add up where the log-probabilities came
from. The loss that they return is the one that was differentiated, already divided by the number of
micro-batches.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scratchlm.cs336.alignment_2026 import (
    RewardFunction,
    run_compute_rollout_rewards,
    run_get_response_log_probs,
    run_tokenize_prompt_and_output,
)
from scratchlm.cs336.alignment_supplement import (
    get_packed_sft_dataset,
    run_compute_per_instance_dpo_loss,
    run_iterate_batches,
    run_parse_gsm8k_response,
    run_parse_mmlu_response,
)
from scratchlm.posttrain.advantages import compute_group_normalized_rewards
from scratchlm.posttrain.policy_losses import (
    aggregate,
    compute_entropy,
    compute_policy_gradient_loss,
    masked_mean,
    masked_sum,
)

__all__ = [
    "get_packed_sft_dataset",
    "run_compute_entropy",
    "run_compute_group_normalized_rewards",
    "run_compute_grpo_clip_loss",
    "run_compute_naive_policy_gradient_loss",
    "run_compute_per_instance_dpo_loss",
    "run_compute_policy_gradient_loss",
    "run_get_response_log_probs",
    "run_grpo_microbatch_train_step",
    "run_iterate_batches",
    "run_masked_mean",
    "run_masked_normalize",
    "run_parse_gsm8k_response",
    "run_parse_mmlu_response",
    "run_sft_microbatch_train_step",
    "run_tokenize_prompt_and_output",
]

LossType = Literal["no_baseline", "reinforce_with_baseline", "grpo_clip"]


def run_compute_group_normalized_rewards(
    reward_fn: RewardFunction,
    rollout_responses: list[str],
    repeated_ground_truths: list[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Float[Tensor, " rollouts"], Float[Tensor, " rollouts"], dict[str, float]]:
    """Return advantages, raw rewards and figures; all three, as the course's tests unpack them."""
    rewards, means = run_compute_rollout_rewards(reward_fn, rollout_responses, repeated_ground_truths)
    advantages, figures = compute_group_normalized_rewards(
        rewards,
        group_size=group_size,
        advantage_eps=advantage_eps,
        advantage_normalizer="std" if normalize_by_std else "none",
    )
    return advantages, rewards, means | figures


def run_compute_entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each next-token distribution, in nats; large logits do not overflow."""
    return compute_entropy(logits)


def run_compute_naive_policy_gradient_loss(
    raw_rewards_or_advantages: Float[Tensor, "batch 1"], policy_log_probs: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return -A log p of each token."""
    return compute_policy_gradient_loss(raw_rewards_or_advantages, policy_log_probs).losses


def run_compute_grpo_clip_loss(
    advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    cliprange: float,
) -> tuple[Float[Tensor, "batch time"], dict[str, Tensor]]:
    """Return -min(ratio A, clip(ratio) A) of each token, and where the clip decided."""
    found = compute_policy_gradient_loss(
        advantages,
        policy_log_probs,
        importance_reweighting_method="grpo",
        old_log_probs=old_log_probs,
        cliprange=cliprange,
    )
    return found.losses, {"clipped": found.clipped}


def run_compute_policy_gradient_loss(
    policy_log_probs: Float[Tensor, "batch time"],
    loss_type: str,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch time"] | None = None,
    cliprange: float | None = None,
) -> tuple[Float[Tensor, "batch time"], dict[str, Tensor]]:
    """Return each token's loss and figures of it.

    Raises:
        ValueError: The kind of loss is not known, or misses what it needs.
    """
    needed = {
        "no_baseline": {"raw_rewards": raw_rewards},
        "reinforce_with_baseline": {"advantages": advantages},
        "grpo_clip": {"advantages": advantages, "old_log_probs": old_log_probs, "cliprange": cliprange},
    }
    if loss_type not in needed:
        raise ValueError(f"loss_type={loss_type!r}: must be one of {', '.join(needed)}.")
    missing = [name for name, value in needed[loss_type].items() if value is None]
    if missing:
        raise ValueError(f"loss_type={loss_type!r} needs {', '.join(missing)}.")
    if loss_type == "grpo_clip":
        return run_compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)
    weights = raw_rewards if loss_type == "no_baseline" else advantages
    return run_compute_naive_policy_gradient_loss(weights, policy_log_probs), {}


def run_masked_mean(tensor: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean where the mask is true; NaN where it is true nowhere."""
    return masked_mean(tensor, mask.bool(), dim=dim)


def run_masked_normalize(
    tensor: Tensor, mask: Tensor, dim: int | None = None, normalize_constant: float = 1.0
) -> Tensor:
    """Return the sum where the mask is true, divided by a constant."""
    return masked_sum(tensor, mask.bool(), dim=dim) / normalize_constant


def run_sft_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch time"],
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float | None = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Run the backward pass of one micro-batch: -sum(log p) / constant, the mean over its responses."""
    sums = run_masked_normalize(policy_log_probs, response_mask, 1, normalize_constant or 1.0)
    return _backward(-sums.mean(), gradient_accumulation_steps), {}


def run_grpo_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch time"],
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    loss_type: LossType,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch time"] | None = None,
    cliprange: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Run the backward pass of one micro-batch: each response's mean over its tokens, then over responses."""
    losses, figures = run_compute_policy_gradient_loss(
        policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange
    )
    return _backward(aggregate(losses, response_mask.bool()), gradient_accumulation_steps), figures


def _backward(loss: Tensor, gradient_accumulation_steps: int) -> Tensor:
    """Divide by the number of micro-batches, add the gradient up, and return the number alone."""
    loss = loss / gradient_accumulation_steps
    torch.autograd.backward(loss)
    return loss.detach()
