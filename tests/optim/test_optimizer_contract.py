"""What every optimizer of the family promises, whatever its formula."""

import copy

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS

NAMES = OPTIMIZERS.names()


def quadratic_step(optimizer, p):
    optimizer.zero_grad()
    (p - 3.0).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_it_walks_to_the_minimum_of_a_bowl(name):
    p = Parameter(torch.zeros(4, 3))
    optimizer = OPTIMIZERS.build(name, [p], lr=0.1, weight_decay=0.0)
    for _ in range(300):
        quadratic_step(optimizer, p)
    torch.testing.assert_close(p.detach(), torch.full((4, 3), 3.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_zero_changes_nothing(name):
    p = Parameter(torch.ones(4, 3))
    optimizer = OPTIMIZERS.build(name, [p], lr=0.0)
    quadratic_step(optimizer, p)
    assert torch.equal(p.detach(), torch.ones(4, 3))


@pytest.mark.parametrize("name", NAMES)
def test_state_has_integer_steps_and_loads_back_equal(name):
    p = Parameter(torch.zeros(4, 3))
    optimizer = OPTIMIZERS.build(name, [p], lr=0.1)
    for _ in range(3):
        quadratic_step(optimizer, p)
    twin_p = Parameter(p.detach().clone())
    twin = OPTIMIZERS.build(name, [twin_p])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert twin.param_groups[0]["lr"] == 0.1
    assert all(type(state["step"]) is int for state in twin.state.values())
    for _ in range(3):
        quadratic_step(optimizer, p)
        quadratic_step(twin, twin_p)
    assert torch.equal(p, twin_p)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradients_are_left_alone(name):
    used, unused = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer = OPTIMIZERS.build(name, [used, unused], lr=0.1, weight_decay=0.1)
    quadratic_step(optimizer, used)
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    assert unused not in optimizer.state


@pytest.mark.parametrize("name", NAMES)
def test_docstring_begins_with_one_line_for_the_help(name):
    assert OPTIMIZERS.get(name).__doc__.splitlines()[0].endswith(".")
