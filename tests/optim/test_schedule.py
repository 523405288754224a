import itertools
import math

import pytest
import torch

from scratchlm.optim import SCHEDULES
from scratchlm.optim.schedule import cosine_with_warmup, set_learning_rate
from scratchlm.optim.sgd import SGD

TOTAL = 100
ALL = ["constant", "cosine", "linear", "wsd"]


def test_all_schedules_are_found_by_name():
    assert SCHEDULES.names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_multipliers_lie_between_zero_and_one_and_never_start_at_zero(name):
    schedule = SCHEDULES.build(name, TOTAL, warmup=10)
    values = [schedule(step) for step in range(TOTAL)]
    assert all(0 <= value <= 1 for value in values)
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(values) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_last_update_has_the_floor_and_so_has_everything_after(name):
    schedule = SCHEDULES.build(name, TOTAL, warmup=0.1, floor=0.25)
    assert schedule(TOTAL - 2) > 0.25
    assert [schedule(TOTAL - 1), schedule(TOTAL), schedule(10 * TOTAL)] == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("name", ALL)
def test_a_fraction_and_its_number_of_steps_are_the_same(name):
    by_fraction = SCHEDULES.build(name, TOTAL, warmup=0.07)
    by_steps = SCHEDULES.build(name, TOTAL, warmup=7)
    assert [by_fraction(step) for step in range(TOTAL)] == [by_steps(step) for step in range(TOTAL)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_very_short_runs_have_a_schedule(name, total):
    values = [SCHEDULES.build(name, total, warmup=0.5)(step) for step in range(total)]
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize("name", ALL)
def test_warmup_over_the_whole_run_ends_at_the_full_rate(name):
    settings = {"decay": 0} if name == "wsd" else {}
    values = [SCHEDULES.build(name, 4, warmup=1.0, **settings)(step) for step in range(4)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_wsd_is_flat_until_its_last_steps(shape):
    schedule = SCHEDULES.build("wsd", TOTAL, warmup=10, decay=20, shape=shape)
    values = [schedule(step) for step in range(TOTAL)]
    assert values[9:80] == [1.0] * 71
    assert all(later < earlier for earlier, later in itertools.pairwise(values[79:]))
    half = {"linear": 0.5, "cosine": 0.5, "sqrt": 1 - math.sqrt(0.5)}[shape]
    assert values[89] == pytest.approx(half)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_floor_of_zero_ends_at_zero(name):
    schedule = SCHEDULES.build(name, TOTAL, warmup=10, floor=0.0)
    assert schedule(TOTAL - 1) == pytest.approx(0.0, abs=1e-15)
    assert 0 < schedule(TOTAL - 2) < 0.06


def test_cosine_equals_the_worked_example():
    values = [cosine_with_warmup(step, 1.0, 0.1, 2, 6) for step in range(8)]
    assert values == pytest.approx([0, 0.5, 1, 0.8682, 0.55, 0.2318, 0.1, 0.1], abs=1e-4)


def test_cosine_after_warmup_equals_torchs_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert cosine_with_warmup(step, 1.0, 0.1, 0, 50) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_learning_rate_is_set_from_the_initial_one_in_every_group():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.1)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)
    assert set_learning_rate(optimizer, 0.1) == pytest.approx(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05])

    restored = SGD([{"params": [first]}, {"params": [second]}], lr=9.0)
    restored.load_state_dict(optimizer.state_dict())
    set_learning_rate(restored, 1.0)
    assert [group["lr"] for group in restored.param_groups] == pytest.approx([0.1, 0.5])


@pytest.mark.parametrize(
    ("name", "total", "settings", "message"),
    [
        ("cosine", 0, {}, "total_steps=0: a schedule needs at least one step"),
        ("cosine", 10, {"warmup": 11}, "warmup=11: give a number of steps from 0 to 10"),
        ("linear", 10, {"warmup": 1.5}, "warmup=1.5: give a number"),
        ("constant", 10, {"warmup": -1}, "warmup=-1: give a number"),
        ("cosine", 10, {"floor": 1.5}, "floor=1.5: the floor is a fraction"),
        ("wsd", 10, {"warmup": 6, "decay": 6}, "do not fit into 10 steps"),
        ("wsd", 10, {"shape": "cliff"}, "shape='cliff'"),
    ],
)
def test_impossible_schedules_are_refused(name, total, settings, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULES.build(name, total, **settings)
