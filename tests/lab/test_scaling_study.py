"""Claims about cells with a budget of their own, and about the shipped study of them."""

import re

import pytest

from scratchlm.config import load
from scratchlm.lab.cells import experiment_of, resolve
from scratchlm.lab.scaling_runs import Trained, groups_of
from scratchlm.lab.search import points
from scratchlm.lab.spec import Study, read_study
from scratchlm.model.accounting import num_parameters


def cells_of(study):
    return resolve(study, points(study, {}))


def write(tmp_path, case):
    path = tmp_path / "study.toml"
    head = 'name = "x"\nquestion = "?"\nrecipe = "quick"\nbudget = { tokens = 100_000 }\n'
    path.write_text(f"{head}cells = [{{ label = 'a', {case} }}, {{ label = 'b' }}]\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_budget_of_the_study_has_five_sizes_of_equal_cost(scale):
    study = read_study("scaling", scale)
    runs = []
    for cell in cells_of(study):
        need = experiment_of(study).estimate(cell.config)
        model = cell.config.model.with_vocabulary(cell.config.tokenizer.settings["vocab_size"])
        runs.append(Trained(num_parameters(model), need.tokens, need.flops, 1.0, cell.label))
    groups = groups_of(runs)
    assert [len(group.runs) for group in groups] == [5] * 4
    for group in groups:
        for run in group.runs:
            size, budget = run.label.split(", ")
            assert 0.98 * float(budget) < run.flops <= float(budget), run
            assert float(size[:-1]) * {"k": 1e3, "M": 1e6}[size[-1]] == pytest.approx(
                run.parameters, rel=0.05
            )


def test_a_cell_has_the_steps_of_its_own_budget(tmp_path):
    study = read_study(str(write(tmp_path, "budget = { tokens = 300_000 }")))
    first, second = (cell.config.train for cell in cells_of(study))
    assert first.steps == 300_000 // first.batch_tokens
    assert second.steps == 100_000 // second.batch_tokens


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("budget = { minutes = 1 }", "a: minutes are a budget of the whole study; give tokens or flops."),
        ("budget = { tokens = 1, flops = 1e9 }", "tokens and flops contradict each other"),
        ("budget = { tokens = 1 }", "budget: 1 tokens are less than one step"),
        ("budget = { tokens = 90_000 }, settings = ['train.steps=3']", "contradicts the budget"),
    ],
)
def test_a_budget_of_a_cell_that_is_wrong_is_told(tmp_path, case, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cells_of(read_study(str(write(tmp_path, case))))
    assert load(Study, write(tmp_path, "settings = []")).cells[0].budget is None
