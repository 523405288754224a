"""Advantages of groups of answers: worked examples, equal rewards, rewards that are missing."""

import pytest
import torch

from scratchlm.posttrain.advantages import compute_group_normalized_rewards as advantages

REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("baseline", "normalizer", "expected"),
    [
        # both groups have the unbiased standard deviation sqrt(1/3)
        ("mean", "std", [1.154698, -0.577349, -0.577349, -1.154698, 0.577349, 0.577349]),
        ("mean", "none", [2 / 3, -1 / 3, -1 / 3, -2 / 3, 1 / 3, 1 / 3]),
        ("none", "none", [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        ("mean", "mean", [2.0, -1.0, -1.0, -1.0, 0.5, 0.5]),
    ],
    ids=["grpo", "dr_grpo", "rft", "maxrl"],
)
def test_advantages_are_those_worked_out_by_hand(baseline, normalizer, expected):
    found = advantages(REWARDS, group_size=3, baseline=baseline, advantage_normalizer=normalizer)
    torch.testing.assert_close(found.values, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_figures_are_of_all_answers():
    found = advantages(torch.tensor([1.0, 0.0, 0.5, 0.5]), group_size=2)
    assert found.figures == {
        "reward_mean": 0.5,
        "reward_std": pytest.approx(0.125**0.5),
        "reward_max": 1.0,
        "reward_min": 0.0,
        "flat_groups": 0.5,
    }


@pytest.mark.parametrize("normalizer", ["std", "none", "mean"])
def test_equal_rewards_have_advantage_zero_exactly(normalizer):
    # the mean of three times 0.1 is not 0.1 in float32
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.0, 0.0, 0.0])
    found = advantages(rewards, group_size=3, advantage_normalizer=normalizer)
    assert found.values.tolist() == [0.0] * 9
    assert found.figures["flat_groups"] == 1.0


def test_a_missing_reward_counts_in_no_mean_and_has_advantage_zero():
    nan = float("nan")
    found = advantages(torch.tensor([1.0, nan, 0.0, nan, nan, nan]), group_size=3)
    alone = advantages(torch.tensor([1.0, 0.0]), group_size=2)
    torch.testing.assert_close(found.values[[0, 2]], alone.values)
    assert found.values[[1, 3, 4, 5]].tolist() == [0.0] * 4
    assert found.figures["reward_mean"] == 0.5
    assert found.figures["flat_groups"] == 0.5


def test_missing_rewards_alone_have_no_mean():
    found = advantages(torch.full((2,), torch.nan), group_size=2)
    assert found.values.tolist() == [0.0, 0.0]
    assert found.figures["reward_mean"] != found.figures["reward_mean"]


@pytest.mark.parametrize(
    ("group_size", "settings", "message"),
    [
        (4, {}, "group_size=4: 6 rewards are no whole groups"),
        (0, {}, "group_size=0: 6 rewards"),
        (1, {}, "one reward has no standard deviation"),
        (3, {"baseline": "median"}, "baseline='median': must be one of mean, none"),
        (3, {"advantage_normalizer": "max"}, "advantage_normalizer='max': must be one of std, mean, none"),
    ],
)
def test_what_cannot_be_computed_is_refused(group_size, settings, message):
    compute = getattr(advantages, "__wrapped__", advantages)  # past the type checker, if it is on
    with pytest.raises(ValueError, match=message):
        compute(REWARDS, group_size=group_size, **settings)
