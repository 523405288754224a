"""The guard: what is not usable is left out, what is not usual is seen, what is remembered comes back."""

import json
import math

import pytest

from scratchlm.train.guard import Guard, GuardConfig, Judgement, LeftOut


def judge(guard: Guard, loss: float, grad_norm: float, step: int = 1) -> Judgement:
    """What the guard says of a step whose number does not matter."""
    return guard.judge(loss, grad_norm, step=step, data_step=step - 1)


def filled(**settings) -> Guard:
    """A guard that has seen ten losses between 2.9 and 3.1, norms between 0.9 and 1.1."""
    guard = Guard(GuardConfig(window=10, **settings))
    for number in range(10):
        offset = 0.1 * (-1) ** number
        assert judge(guard, 3.0 + offset, 1.0 + offset).action == "apply"
    return guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "gradient norm"])
def test_a_number_that_is_not_finite_leaves_the_step_out(bad, which):
    guard = Guard(GuardConfig())
    judgement = judge(guard, *((bad, 1.0) if which == "loss" else (3.0, bad)))
    assert judgement.action == "skip"
    assert judgement.reason == f"the {which} is {bad}"
    assert guard.num_skipped == 1


def test_a_run_that_leaves_out_too_many_steps_in_a_row_stops():
    guard = Guard(GuardConfig(max_skipped=3))
    actions = [judge(guard, math.nan, 1.0).action for _ in range(3)]
    assert actions == ["skip", "skip", "stop"]


def test_a_good_step_ends_the_row_of_bad_ones():
    guard = Guard(GuardConfig(max_skipped=2))
    losses = [math.nan, 3.0, math.nan, 3.0, math.nan]
    assert [judge(guard, loss, 1.0).action for loss in losses] == ["skip", "apply"] * 2 + ["skip"]


def test_stop_stops_at_the_first_bad_step():
    assert judge(Guard(GuardConfig(on_nonfinite="stop")), math.nan, 1.0).action == "stop"


def test_nothing_is_a_spike_before_the_window_is_full():
    guard = Guard(GuardConfig(window=8))
    for _ in range(7):
        judge(guard, 3.0, 1.0)
    assert judge(guard, 1000.0, 1.0).reason == ""


@pytest.mark.parametrize(
    ("on_spike", "action"), [("record", "apply"), ("skip", "skip"), ("rollback", "rollback")]
)
def test_a_spike_is_six_standard_deviations_above_the_window(on_spike, action):
    guard = filled(on_spike=on_spike)  # mean 3.0, standard deviation 0.1
    assert judge(guard, 3.55, 1.0).reason == ""
    guard = filled(on_spike=on_spike)
    judgement = judge(guard, 3.65, 1.0)
    assert judgement.action == action
    assert judgement.spike.what == "loss"
    assert judgement.spike.mean == pytest.approx(3.0)
    assert judgement.spike.sigma == pytest.approx(0.1)
    assert "more than 6 standard deviations" in judgement.reason


def test_a_spike_of_the_gradient_counts_too():
    assert judge(filled(), 3.0, 1.65).spike.what == "gradient norm"


def test_after_enough_rollbacks_spikes_are_only_recorded():
    guard = filled(on_spike="rollback", max_rollbacks=1)
    assert judge(guard, 9.0, 1.0).action == "rollback"
    guard.num_rollbacks = 1
    assert judge(guard, 9.0, 1.0).action == "apply"


def test_a_restored_guard_decides_as_the_first_would_have():
    guard = filled(on_spike="skip")
    judge(guard, math.nan, 1.0)
    other = Guard(guard.config)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    for loss in (3.05, 3.7, 2.9, math.inf):
        assert judge(other, loss, 1.0) == judge(guard, loss, 1.0)


def test_the_steps_left_out_in_a_row_are_known_by_step_and_batch():
    guard = Guard(GuardConfig(max_skipped=3))
    numbers = [(math.nan, 1.0), (3.0, 1.0), (3.0, math.inf), (math.nan, 1.0)]
    for step, (loss, norm) in enumerate(numbers, start=1):
        guard.judge(loss, norm, step=step, data_step=step + 10)
    row = [LeftOut(3, 13, "the gradient norm is inf"), LeftOut(4, 14, "the loss is nan")]
    assert guard.left_out == row
    other = Guard(guard.config)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.left_out == row
    assert other.judge(math.nan, 1.0, step=5, data_step=15).action == "stop"


def test_a_guard_of_an_older_checkpoint_begins_its_row_anew():
    guard = filled()
    older = guard.state() | {"skipped_in_a_row": 2}
    del older["left_out"]
    guard.restore(older)
    assert guard.left_out == []


def test_a_rollback_to_nowhere_counts_as_a_step_left_out():
    guard = filled(on_spike="rollback", max_skipped=2)
    for step, action in ((11, "skip"), (12, "stop")):
        judgement = judge(guard, 9.0, 1.0, step)
        assert judgement.action == "rollback"
        assert guard.leave_out(judgement, step=step, data_step=step).action == action
    assert guard.num_skipped == 2
    assert [left.step for left in guard.left_out] == [11, 12]
