"""Claims about how cells are found: labels for people, and proposals that depend on results alone."""

import math

import pytest

from scratchlm.config import parse_override
from scratchlm.lab.search import points, shown, toml
from scratchlm.lab.spec import Study


def study_of(**search):
    return Study(name="s", question="?", **search)


def test_labels_say_what_differs():
    assert shown(0.001) == "0.001"
    assert shown({"name": "rope", "theta": 1e4}) == "rope (theta 10000)"
    found = points(study_of(grid={"model": {"d_model": [64]}, "optimizer.lr": [0.1, 0.01]}), {})
    assert [point.label for point in found] == ["d_model 64, lr 0.1", "d_model 64, lr 0.01"]
    assert found[0].settings == ("model.d_model=64", "optimizer.lr=0.1")


@pytest.mark.parametrize("value", [1, 1e-5, True, "none", "a b", [0.9, 0.98], {"name": "lion", "lr": 1e-4}])
def test_a_value_is_read_back_from_its_word(value):
    assert parse_override(f"x={toml(value)}")[1] == value


def test_a_grid_that_would_take_for_ever_is_refused():
    with pytest.raises(ValueError, match="1,000,000 cells; at most 10,000"):
        points(study_of(grid={"a": list(range(1000)), "b": list(range(1000))}), {})


def test_proposals_come_in_rounds_that_wait_for_results_and_find_the_bottom():
    pytest.importorskip("optuna")
    space = {"optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True}}
    study = study_of(optuna={"trials": 24, "at_once": 4, "seed": 1, "space": space})
    first = points(study, {})
    assert len(first) == 4
    assert points(study, {first[0].label: 1.0}) == first
    results: dict[str, float] = {}
    while len(found := points(study, results)) > len(results):
        assert found[: len(results)] == [point for point in found if point.label in results]
        results |= {point.label: (math.log10(float(point.label)) + 2) ** 2 for point in found}
    assert len(results) == 24
    assert min(results.values()) < 0.01
    assert points(study, dict(reversed(results.items()))) == found
    assert points(study, {**results, first[0].label: math.inf, first[1].label: math.nan})
