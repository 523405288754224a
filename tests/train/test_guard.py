"""The guard: what is not usable is left out, what is not usual is seen, what is remembered comes back."""

import json
import math

import pytest

from scratchlm.train.guard import Guard, GuardConfig


def filled(**settings) -> Guard:
    """A guard that has seen ten losses between 2.9 and 3.1, norms between 0.9 and 1.1."""
    guard = Guard(GuardConfig(window=10, **settings))
    for number in range(10):
        offset = 0.1 * (-1) ** number
        assert guard.judge(3.0 + offset, 1.0 + offset).action == "apply"
    return guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "gradient norm"])
def test_a_number_that_is_not_finite_leaves_the_step_out(bad, which):
    guard = Guard(GuardConfig())
    judgement = guard.judge(*((bad, 1.0) if which == "loss" else (3.0, bad)))
    assert judgement.action == "skip"
    assert judgement.reason == f"the {which} is {bad}"
    assert guard.num_skipped == 1


def test_a_run_that_leaves_out_too_many_steps_in_a_row_stops():
    guard = Guard(GuardConfig(max_skipped=3))
    actions = [guard.judge(math.nan, 1.0).action for _ in range(3)]
    assert actions == ["skip", "skip", "stop"]


def test_a_good_step_ends_the_row_of_bad_ones():
    guard = Guard(GuardConfig(max_skipped=2))
    losses = [math.nan, 3.0, math.nan, 3.0, math.nan]
    assert [guard.judge(loss, 1.0).action for loss in losses] == ["skip", "apply"] * 2 + ["skip"]


def test_stop_stops_at_the_first_bad_step():
    assert Guard(GuardConfig(on_nonfinite="stop")).judge(math.nan, 1.0).action == "stop"


def test_nothing_is_a_spike_before_the_window_is_full():
    guard = Guard(GuardConfig(window=8))
    for _ in range(7):
        guard.judge(3.0, 1.0)
    assert guard.judge(1000.0, 1.0).reason == ""


@pytest.mark.parametrize(
    ("on_spike", "action"), [("record", "apply"), ("skip", "skip"), ("rollback", "rollback")]
)
def test_a_spike_is_six_standard_deviations_above_the_window(on_spike, action):
    guard = filled(on_spike=on_spike)  # mean 3.0, standard deviation 0.1
    assert guard.judge(3.55, 1.0).reason == ""
    guard = filled(on_spike=on_spike)
    judgement = guard.judge(3.65, 1.0)
    assert judgement.action == action
    assert judgement.spike.what == "loss"
    assert judgement.spike.mean == pytest.approx(3.0)
    assert judgement.spike.sigma == pytest.approx(0.1)
    assert "more than 6 standard deviations" in judgement.reason


def test_a_spike_of_the_gradient_counts_too():
    assert filled().judge(3.0, 1.65).spike.what == "gradient norm"


def test_after_enough_rollbacks_spikes_are_only_recorded():
    guard = filled(on_spike="rollback", max_rollbacks=1)
    assert guard.judge(9.0, 1.0).action == "rollback"
    guard.num_rollbacks = 1
    assert guard.judge(9.0, 1.0).action == "apply"


def test_a_restored_guard_decides_as_the_first_would_have():
    guard = filled(on_spike="skip")
    guard.judge(math.nan, 1.0)
    other = Guard(guard.config)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    for loss in (3.05, 3.7, 2.9, math.inf):
        assert other.judge(loss, 1.0) == guard.judge(loss, 1.0)
