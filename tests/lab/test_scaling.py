"""Claims about scaling laws: known exponents come back within their intervals, predictions are checked."""

import json
import re

import numpy as np
import pytest
from synthetic_runs import BUDGETS, CHINCHILLA, best_size, law, make_runs

from scratchlm.lab.chinchilla import fit_chinchilla
from scratchlm.lab.isoflop import fit_isoflop
from scratchlm.lab.scaling import check_statement, fit_scaling, write_statement
from scratchlm.lab.scaling_runs import Trained, groups_of

SIZE_EXPONENT = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])


def holds(found, truth):
    return found.low <= truth <= found.high


def test_parabolas_find_the_exponents_of_a_law_without_noise():
    # every budget sees the same curve, shifted: the exponents are exact although no curve is a parabola
    found = fit_isoflop(groups_of(make_runs()))
    assert found.parameters.exponent.value == pytest.approx(SIZE_EXPONENT, abs=1e-9)
    assert found.tokens.exponent.value == pytest.approx(1 - SIZE_EXPONENT, abs=1e-9)
    assert found.parameters.at(1e21).value == pytest.approx(best_size(1e21), rel=0.05)


def test_a_true_parabola_has_its_bottom_where_it_was_put():
    runs = [
        Trained(size, budget / (6 * size), budget, 2.0 + 0.1 * np.log(size / best) ** 2)
        for budget, best in ((6e9, 1e4), (6e11, 1e5))
        for size in best * np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    ]
    found = fit_isoflop(groups_of(runs))
    assert [valley.parameters.value for valley in found.valleys] == pytest.approx([1e4, 1e5])
    assert [valley.tokens.value for valley in found.valleys] == pytest.approx([1e5, 1e6])
    assert [valley.loss for valley in found.valleys] == pytest.approx([2.0, 2.0])
    assert found.parameters.exponent.value == pytest.approx(0.5)
    assert found.parameters.coefficient == pytest.approx(1e4 / 6e9**0.5)


def test_the_intervals_of_parabolas_hold_the_truth_about_as_often_as_they_say():
    seeds = range(40)
    held = [
        holds(fit_isoflop(groups_of(make_runs(noise=0.003, seed=seed))).parameters.exponent, SIZE_EXPONENT)
        for seed in seeds
    ]
    assert sum(held) >= 34  # 95 % of 40 are 38; 33 or fewer would come by chance once in 700


def test_the_published_law_comes_back_from_losses_without_noise():
    found = fit_chinchilla(make_runs())
    for name, truth in CHINCHILLA.items():
        assert found.numbers[name].value == pytest.approx(truth, rel=1e-4), name
    assert found.size_exponent.value == pytest.approx(SIZE_EXPONENT, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_number_of_the_law_lies_in_its_interval(seed):
    found = fit_chinchilla(make_runs(noise=0.003, seed=seed))
    missed = [name for name, truth in CHINCHILLA.items() if not holds(found.numbers[name], truth)]
    assert not missed, found.numbers
    assert holds(found.size_exponent, SIZE_EXPONENT)


def test_no_start_is_needed_for_a_law_of_another_shape():
    truth = {"E": 0.4, "A": 20.0, "B": 900.0, "alpha": 0.22, "beta": 0.61}
    runs = [
        Trained(size, tokens, 6 * size * tokens, law(size, tokens, **truth))
        for size in np.geomspace(1e4, 2e6, 6)
        for tokens in np.geomspace(1e5, 2e7, 6)
    ]
    found = fit_chinchilla(runs)
    for name, value in truth.items():
        assert found.numbers[name].value == pytest.approx(value, rel=1e-3), name


def test_a_floor_below_the_truth_changes_nothing_and_one_above_holds():
    runs = make_runs()
    below = fit_chinchilla([run._replace(floor=1.0) for run in runs])
    assert below.numbers["E"].value == pytest.approx(CHINCHILLA["E"], rel=1e-4)
    above = fit_chinchilla([run._replace(floor=1.8) for run in runs])
    assert above.numbers["E"].low == pytest.approx(1.8)
    assert above.numbers["alpha"].value > CHINCHILLA["alpha"]


def test_one_wild_run_hardly_moves_the_fit():
    runs = make_runs()
    runs[20] = runs[20]._replace(loss=runs[20].loss * 1.3)
    assert fit_chinchilla(runs).size_exponent.value == pytest.approx(SIZE_EXPONENT, abs=2e-3)


def test_the_largest_budget_is_predicted_from_the_others_and_checked():
    found = fit_scaling(make_runs(noise=0.003, seed=3), at=[1e21])
    held = found.held_out
    assert held.budgets == [pytest.approx(BUDGETS[-1])]
    assert held.num_inside >= 7, [(check.stated, check.run.loss) for check in held.checks]
    assert any("Stated from the 5 smaller budgets and then checked at 3e+20" in s for s in found.conclusion)
    (outlook,) = found.outlooks
    assert holds(outlook.loss, law(best_size(1e21), 1e21 / 6 / best_size(1e21), **CHINCHILLA))


def test_a_larger_run_that_broke_the_law_is_told():
    runs = [run._replace(loss=run.loss * (1.1 if run.flops == BUDGETS[-1] else 1)) for run in make_runs()]
    held = fit_scaling(runs).held_out
    assert held.num_inside == 0
    assert held.checks[0].stated.value < held.checks[0].run.loss


def test_a_statement_is_written_down_and_checked_when_the_runs_are_there(tmp_path):
    early = make_runs(noise=0.003, budgets=BUDGETS[:4], seed=4)
    write_statement(fit_scaling(early, at=[3e20]), tmp_path / "scaling.json")
    runs = [*early, *make_runs(noise=0.003, budgets=BUDGETS[4:], seed=5)]
    held = check_statement(fit_isoflop(groups_of(runs)), runs, tmp_path / "scaling.json")
    assert held.budgets == pytest.approx(BUDGETS[4:])
    assert held.num_inside >= 14
    ((budget, stated, measured),) = held.best
    assert budget == pytest.approx(3e20)
    assert holds(stated, best_size(3e20))
    assert holds(measured, best_size(3e20))
    with pytest.raises(ValueError, match="no run here is larger"):
        check_statement(fit_isoflop(groups_of(early)), early, tmp_path / "scaling.json")


HALF = json.dumps({"date": "", "largest_budget": 1, "chinchilla": {"best": [1]}})


@pytest.mark.parametrize("content", [None, "", "{}", "[]", HALF])
def test_a_statement_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "scaling.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        check_statement(fit_isoflop(groups_of(make_runs())), make_runs(), path)


def only(runs, budget):
    return [run for run in runs if run.flops == budget]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "0 budgets of compute: a power law needs runs at two or more"),
        (only(make_runs(), BUDGETS[0]), "1 budget of compute: a power law needs runs at two or more"),
        (make_runs(sizes=2), "6e+18 FLOPs: 2 sizes; a parabola needs 3"),
        ([run for run in make_runs() if run.parameters < best_size(run.flops) / 2], "add larger ones"),
        ([run._replace(loss=9 - run.loss) for run in make_runs()], "the losses bend the other way"),
    ],
    ids=["none", "one budget", "two points", "one side", "upside down"],
)
def test_runs_that_say_nothing_are_refused(runs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_scaling(runs)


def test_a_budget_without_a_bottom_is_left_out_of_the_line_and_named():
    runs = [run for run in make_runs() if run.flops != 3e19 or run.parameters < best_size(3e19) / 2]
    found = fit_scaling(runs, hold_out=0)
    assert found.isoflop.parameters.exponent.value == pytest.approx(SIZE_EXPONENT, abs=1e-9)
    words = "3e+19 FLOPs: the lowest point lies outside of the sizes; add larger ones."
    assert found.conclusion[-1].endswith(words)


def test_two_budgets_of_three_sizes_have_a_line_and_no_interval():
    found = fit_scaling(make_runs(budgets=BUDGETS[:2], sizes=3, span=4.0))
    assert found.isoflop.parameters.exponent.low is None
    assert found.isoflop.parameters.exponent.value == pytest.approx(SIZE_EXPONENT, abs=1e-6)
    with pytest.raises(ValueError, match=re.escape("hold_out=1: with 2 budgets choose 0 to 0")):
        fit_scaling(make_runs(budgets=BUDGETS[:2]), hold_out=1)


def test_too_few_runs_for_the_law_leave_the_parabolas():
    runs = [run._replace(tokens=1e6) for run in make_runs()]
    found = fit_scaling(runs)
    assert found.chinchilla is None
    assert found.held_out is None
    assert "three lengths or more; here are 54 with 54 sizes and 1 lengths" in found.problem
