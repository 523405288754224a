"""Claims about learning rates that go with the width: whose matrices move less in a wider model."""

import pytest
import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.groups import parameter_groups
from scratchlm.optim.width import matrix_factor, with_rates_of_width
from scratchlm.train import build, recipes


def named():
    shapes = {"layers.w": (3, 3), "lm_head.weight": (9, 3), "gain": (3,)}
    return [(name, Parameter(torch.zeros(shape))) for name, shape in shapes.items()]


def groups():
    return parameter_groups(named())


def test_matrices_alone_move_less_and_decay_as_before():
    found = with_rates_of_width(groups(), 4.0, "adamw", {"lr": 0.01, "weight_decay": 0.1})
    optimizer = OPTIMIZERS.build("adamw", found, lr=0.01, weight_decay=0.1)
    rates = {group["kind"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {"matrix": (0.0025, 0.4), "embedding": (0.01, 0.1), "vector": (0.01, 0.0)}


def test_a_group_without_decay_stays_without():
    plain = parameter_groups([("layers.w", Parameter(torch.zeros(3, 3)))], without=("w",))
    (group,) = with_rates_of_width(plain, 2.0, "lion", {"lr": 0.01, "weight_decay": 0.1})
    assert (group["lr"], group["weight_decay"]) == (0.005, 0.0)


@pytest.mark.parametrize(
    ("optimizer", "settings", "factor"),
    [
        ("adamw", {}, 0.25),
        ("adamw_reference", {}, 0.25),
        ("lion", {}, 0.25),
        ("muon", {}, 0.5),
        ("muon_reference", {"scale": "adamw"}, 0.5),
        ("muon", {"scale": "spectral"}, 1.0),
        ("muon", {"scale": "none"}, 1.0),
    ],
)
def test_each_optimizer_has_its_own_rule(optimizer, settings, factor):
    assert matrix_factor(4.0, optimizer, settings) == factor


def test_at_the_base_width_groups_stay_as_they_are():
    before = groups()
    assert with_rates_of_width(before, 1.0, "adamw", {"lr": 0.01}) is before


def test_muons_step_has_one_length_in_relation_to_the_width():
    """The longest direction of an update, where the rate is multiplied as the rule says: as at width 8."""
    lengths = []
    for width in (8, 32):
        matrix = Parameter(torch.zeros(width, width))
        matrix.grad = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
        settings = {"lr": 0.1, "weight_decay": 0.0}
        found = with_rates_of_width(parameter_groups([("w", matrix)]), width / 8, "muon", settings)
        OPTIMIZERS.build("muon", found, **settings).step()
        lengths.append(float(torch.linalg.matrix_norm(matrix.detach(), 2)))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.15)


def test_a_recipe_says_it_once_and_a_wrong_optimizer_is_told_at_once():
    words = ["model.d_model=128", "model.mup_width=32", "model.num_heads=4"]
    config = recipes.read("demo", [*words, "optimizer={ name = 'adamw', lr = 0.01 }"])
    matrix, table, _ = build.groups_of(config, named())
    assert (matrix["lr"], "lr" in table) == (0.0025, False)
    with pytest.raises(
        ValueError, match="how the rates of optimizer=sgd go with the width is not known here; use"
    ):
        recipes.read("demo", [*words, "optimizer={ name = 'sgd', lr = 0.01 }"])


def test_without_a_base_width_there_is_one_rate():
    config = recipes.read("demo", ["optimizer={ name = 'sgd', lr = 0.01 }"])
    assert not any("lr" in group for group in build.groups_of(config, named()))
