"""What every optimizer of the family promises, whatever its formula."""

import copy

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.groups import parameter_groups
from scratchlm.optim.schedule import set_learning_rate

NAMES = OPTIMIZERS.names()


def quadratic_step(optimizer, p):
    optimizer.zero_grad()
    (p - 3.0).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_it_walks_to_the_minimum_of_a_bowl(name):
    p = Parameter(torch.zeros(4, 3))
    optimizer = OPTIMIZERS.build(name, [p], lr=0.1, weight_decay=0.0)
    for step in range(600):
        # Lion and Muon have steps of fixed length: the learning rate must fall for them to arrive
        set_learning_rate(optimizer, min(1.0, 2 - step / 300))
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


def named_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    shapes = {
        "token_embeddings.weight": (9, 4),
        "layers.0.w1.weight": (6, 4),
        "layers.0.w2.weight": (4, 6),
        "layers.1.w1.weight": (6, 4),
        "layers.1.gain": (4,),
        "lm_head.weight": (9, 4),
    }
    return {name: Parameter(torch.randn(s, generator=generator, dtype=dtype)) for name, s in shapes.items()}


def random_gradients(named, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale


@pytest.mark.parametrize("settings", [{}, {"cautious_decay": True, "weight_decay": 1.0}])
@pytest.mark.parametrize("name", [name for name in NAMES if f"{name}_reference" in NAMES])
def test_it_equals_its_twin(name, settings):
    fast, plain = named_parameters(torch.float64), named_parameters(torch.float64)
    exact = {"precision": "float32"} if name == "muon" else {}
    first = OPTIMIZERS.build(name, parameter_groups(fast.items()), lr=1e-2, **settings, **exact)
    twin = OPTIMIZERS.build(f"{name}_reference", parameter_groups(plain.items()), lr=1e-2, **settings)
    for step in range(20):
        random_gradients(fast, step, scale=10.0 ** (step % 3 - 1))
        random_gradients(plain, step, scale=10.0 ** (step % 3 - 1))
        first.step()
        twin.step()
    # muon's products are float32 even for float64 parameters
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name == "muon" else {}
    for key, p in fast.items():
        torch.testing.assert_close(p, plain[key], **tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if "cautious_decay" in OPTIMIZERS.settings(name)])
def test_cautious_decay_spares_what_the_update_moves_away_from_zero(name):
    decay = {"lr": 0.1, "weight_decay": 1.0}
    outwards, inwards, plain = (Parameter(torch.tensor([2.0, -2.0])) for _ in range(3))
    outwards.grad, inwards.grad, plain.grad = (
        torch.tensor(g) for g in ([-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0])
    )
    OPTIMIZERS.build(name, [outwards], **decay, cautious_decay=True).step()
    OPTIMIZERS.build(name, [inwards], **decay, cautious_decay=True).step()
    OPTIMIZERS.build(name, [plain], **decay).step()
    torch.testing.assert_close(outwards.detach(), torch.tensor([2.1, -2.1]))
    torch.testing.assert_close(inwards.detach(), torch.tensor([1.7, -1.7]))
    torch.testing.assert_close(plain.detach(), torch.tensor([1.9, -1.9]))


@pytest.mark.parametrize("name", NAMES)
def test_state_of_every_parameter_is_tensors_and_integers(name):
    named = named_parameters()
    optimizer = OPTIMIZERS.build(name, parameter_groups(named.items()), lr=0.1)
    random_gradients(named, 0)
    optimizer.step()
    for state in optimizer.state_dict()["state"].values():
        assert {type(value) for value in state.values()} <= {torch.Tensor, int}
        assert all(value.is_contiguous() for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", NAMES)
def test_settings_out_of_range_are_refused_with_their_value(name):
    for setting, value in {"lr": -1.0, "weight_decay": -0.1, "betas": (0.9, 1.0), "momentum": 1.0}.items():
        if setting in OPTIMIZERS.settings(name):
            with pytest.raises(ValueError, match=rf"^{setting}="):
                OPTIMIZERS.build(name, [Parameter(torch.ones(2))], **{setting: value})
