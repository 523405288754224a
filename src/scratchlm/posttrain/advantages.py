r"""Rewards of groups of answers come in, how much better each is than its group goes out.

    A = (r - b) / n          over the answers to one prompt ("group")

                  baseline b    normaliser n
    GRPO          mean          std + eps         unbiased, divided by G - 1
    Dr. GRPO      mean          none
    RFT           none          none              with rewards 0 and 1: rejection-sampling fine-tuning
    MaxRL         mean          mean + eps        a rare success counts for more

The group is the baseline: no second model has to guess what a prompt's answers are worth. Answers that all
got the same reward have advantage 0 exactly, whatever rounding does to their mean, so that they can be left
out of the step. A reward that is NaN is no reward: the answer counts in no mean and has advantage 0.

Sources: GRPO: Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300, section 4.1; Dr. GRPO: Liu
et al. 2025, https://arxiv.org/abs/2503.20783, section 3; RFT: Yuan et al. 2023,
https://arxiv.org/abs/2308.01825; MaxRL and the names: Stanford CS336 2026, assignment 5.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Baseline = Literal["mean", "none"]
Normalizer = Literal["std", "mean", "none"]

ADVANTAGE_EPS = 1e-6
"""Added to what rewards are divided by; CS336's assignment 5 has the same."""


class Advantages(NamedTuple):
    """What `compute_group_normalized_rewards` found."""

    values: Float[Tensor, " rollouts"]
    """One number for each answer, in their order."""
    figures: dict[str, float]
    """reward_mean, reward_std, reward_max, reward_min over the answers that have one; flat_groups: the share
    of groups in which all rewards are equal, which teach nothing under a baseline."""


def compute_group_normalized_rewards(
    raw_rewards: Float[Tensor, " rollouts"],
    *,
    group_size: int,
    baseline: Baseline = "mean",
    advantage_eps: float = ADVANTAGE_EPS,
    advantage_normalizer: Normalizer = "std",
) -> Advantages:
    """Return the advantages of answers whose groups stand one behind the other.

    Example: rewards (1, 0, 0, 0, 1, 1) in groups of 3, mean and none -> (2/3, -1/3, -1/3, -2/3, 1/3, 1/3).

    Args:
        raw_rewards: The rewards; NaN for an answer that has none.
        group_size: Answers to each prompt.
        baseline: What is taken away.
        advantage_eps: Added to the divisor.
        advantage_normalizer: What the difference is divided by.

    Raises:
        ValueError: The answers are no whole groups, or one answer shall have a standard deviation.
    """
    _check(raw_rewards, group_size, baseline, advantage_normalizer)
    groups_PG = raw_rewards.float().reshape(-1, group_size)
    valid_PG = ~groups_PG.isnan()
    rewards_PG = torch.where(valid_PG, groups_PG, 0.0)
    num_P1 = valid_PG.sum(dim=1, keepdim=True)
    mean_P1 = rewards_PG.sum(dim=1, keepdim=True) / num_P1.clamp(min=1)
    apart_PG = torch.where(valid_PG, rewards_PG - mean_P1, 0.0)
    flat_P1 = _all_equal(groups_PG, valid_PG)
    values_PG = torch.where(flat_P1, 0.0, apart_PG) if baseline == "mean" else rewards_PG
    if advantage_normalizer == "std":
        variance_P1 = apart_PG.square().sum(dim=1, keepdim=True) / (num_P1 - 1).clamp(min=1)
        values_PG = values_PG / (torch.where(flat_P1, 0.0, variance_P1).sqrt() + advantage_eps)
    elif advantage_normalizer == "mean":
        values_PG = values_PG / (mean_P1 + advantage_eps)
    return Advantages(values_PG.reshape(-1), _figures(groups_PG[valid_PG], flat_P1))


def _check(rewards: Tensor, group_size: int, baseline: str, normalizer: str) -> None:
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(
            f"group_size={group_size}: {len(rewards)} rewards are no whole groups; give all answers to a "
            "prompt one behind the other."
        )
    if group_size == 1 and normalizer == "std":
        raise ValueError("group_size=1: one reward has no standard deviation; take more, or none.")
    for what, name, known in (
        ("baseline", baseline, ("mean", "none")),
        ("advantage_normalizer", normalizer, ("std", "mean", "none")),
    ):
        if name not in known:
            raise ValueError(f"{what}={name!r}: must be one of {', '.join(known)}.")


def _all_equal(groups_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Which groups have one reward only: their mean may differ from it by a rounding."""
    highest = torch.where(valid_PG, groups_PG, -torch.inf).amax(dim=1, keepdim=True)
    lowest = torch.where(valid_PG, groups_PG, torch.inf).amin(dim=1, keepdim=True)
    return highest <= lowest  # a group without any reward has -inf and inf


def _figures(rewards: Tensor, flat_P1: Tensor) -> dict[str, float]:
    if len(rewards) == 0:
        rewards = torch.full((1,), torch.nan)
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "reward_max": float(rewards.max()),
        "reward_min": float(rewards.min()),
        "flat_groups": float(flat_P1.float().mean()) if len(flat_P1) else 0.0,
    }
