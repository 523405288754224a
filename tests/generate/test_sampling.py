"""Sampling: each filter on a worked example, and draws that follow the probabilities."""

import pytest
import torch

from scratchlm.generate.sampling import (
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    sample,
)

PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3]])
NOTHING = torch.zeros(1, 0, dtype=torch.long)


def draws(probabilities, count=20_000, **settings):
    """Shares of each token among `count` draws."""
    logits = probabilities.log().expand(count, -1)
    previous = torch.zeros(count, 0, dtype=torch.long)
    ids = sample(logits, SamplingConfig(**settings), torch.Generator().manual_seed(0), previous)
    return torch.bincount(ids, minlength=probabilities.shape[-1]) / count


def test_filters_on_a_worked_example():
    expected = torch.tensor([[0.0, 0.625, 0.375]])
    torch.testing.assert_close(keep_top_k(PROBABILITIES, 2), expected)
    torch.testing.assert_close(keep_top_p(PROBABILITIES, 0.6), expected)
    torch.testing.assert_close(keep_min_p(PROBABILITIES, 0.5), expected)


@pytest.mark.parametrize(("p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 3)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    exact = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    assert (keep_top_p(exact, p) > 0).sum() == kept


def test_filters_that_keep_everything_change_nothing():
    torch.testing.assert_close(keep_top_k(PROBABILITIES, 10), PROBABILITIES)
    torch.testing.assert_close(keep_top_p(PROBABILITIES, 1.0), PROBABILITIES)
    torch.testing.assert_close(keep_min_p(PROBABILITIES, 0.0), PROBABILITIES)


def test_top_k_keeps_exactly_k_of_equal_tokens():
    assert (keep_top_k(torch.full((1, 5), 0.2), 2) > 0).sum() == 2


def test_draws_follow_the_probabilities():
    torch.testing.assert_close(draws(PROBABILITIES), PROBABILITIES[0], atol=0.015, rtol=0)


def test_temperature_sharpens_and_flattens():
    squared = PROBABILITIES[0] ** 2 / (PROBABILITIES[0] ** 2).sum()
    torch.testing.assert_close(draws(PROBABILITIES, temperature=0.5), squared, atol=0.015, rtol=0)
    third = torch.full((3,), 1 / 3)
    torch.testing.assert_close(draws(PROBABILITIES, temperature=1e4), third, atol=0.015, rtol=0)


def test_filters_work_one_after_the_other():
    expected = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(draws(PROBABILITIES, top_k=2, top_p=0.6), expected)
    torch.testing.assert_close(draws(PROBABILITIES, top_p=0.9, min_p=0.9), expected)


def test_a_filtered_token_is_never_drawn():
    assert draws(torch.tensor([[1e-9, 0.6, 0.4 - 1e-9]]), top_k=2)[0] == 0
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(1000, -1)
    ids = sample(
        logits, SamplingConfig(), torch.Generator().manual_seed(1), torch.zeros(1000, 0, dtype=torch.long)
    )
    assert (ids == 1).all()


def test_temperature_zero_takes_the_likeliest():
    config = SamplingConfig(temperature=0.0, top_k=1, top_p=0.1)
    assert sample(torch.tensor([[1.0, 3.0, 2.0]]), config, torch.Generator(), NOTHING).tolist() == [1]


def test_rows_are_drawn_apart():
    logits = torch.tensor([[0.0, 99.0], [99.0, 0.0]])
    previous = torch.zeros(2, 0, dtype=torch.long)
    assert sample(logits, SamplingConfig(), torch.Generator(), previous).tolist() == [1, 0]


def test_the_same_seed_draws_the_same():
    logits = torch.zeros(1, 1000)
    first, second = (
        sample(logits, SamplingConfig(), torch.Generator().manual_seed(3), NOTHING) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    seen = torch.tensor([[0, 1, 0]])
    torch.testing.assert_close(penalise(logits, seen, 2.0), torch.tensor([[1.0, -4.0, 1.0]]))
    assert penalise(logits, seen, 1.0) is logits
    assert penalise(logits, NOTHING, 2.0) is logits


def test_the_penalty_acts_on_greedy_choices():
    config = SamplingConfig(temperature=0.0, repetition_penalty=3.0)
    assert sample(torch.tensor([[3.0, 2.0]]), config, torch.Generator(), torch.tensor([[0]])).tolist() == [1]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2}, {"max_new_tokens": -1}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SamplingConfig(**settings)
