"""Claims about tables of runs: which are read, how they are grouped, what is wrong with others."""

import re

import pytest
from synthetic_runs import make_runs, write_json
from synthetic_study import row

from scratchlm.lab.rows import write_rows
from scratchlm.lab.scaling_runs import Trained, groups_of, read_runs


def test_rows_of_a_study_are_read_and_those_without_a_loss_are_counted(tmp_path):
    rows = [row("a", 1, 2.5), row("b", 1, None), row("c", 1, float("nan"))]
    write_rows(tmp_path / "rows.csv", rows)
    for place in (tmp_path, tmp_path / "rows.csv"):
        found = read_runs(place)
        assert found.runs == [Trained(1000, 102400, 1e9, 2.5, "a", floor=0.4)]
        assert found.num_left_out == 2


def test_the_json_of_a_course_is_read_with_tokens_that_the_budget_pays_for(tmp_path):
    runs = make_runs()
    found = read_runs(write_json(tmp_path / "isoflops_curves.json", runs)).runs
    assert [run.tokens for run in found] == pytest.approx([run.tokens for run in runs])
    assert [run._replace(tokens=0) for run in found] == [run._replace(tokens=0) for run in runs]


def test_costs_that_lie_close_together_are_one_budget():
    runs = [Trained(size, 1.0, cost, 1.0) for size, cost in ((2, 0.98e12), (1, 1e12), (1, 4e12))]
    groups = groups_of(runs)
    assert [group.budget for group in groups] == [pytest.approx(0.98995e12, rel=1e-5), pytest.approx(4e12)]
    assert [run.parameters for run in groups[0].runs] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "label,final_loss\nx,1\n", "no column 'parameters'; known: label, final_loss."),
        ("a.csv", "", "no column 'parameters'; known: ."),
        ("a.csv", "parameters,final_loss\n1,2\n", "line 2: neither flops (or compute_budget) nor tokens"),
        ("a.csv", "parameters,tokens,final_loss\n1,2,-3\n", "line 2: final_loss=-3; a law of powers needs"),
        ("a.csv", "parameters,tokens,final_loss\n1,,3\n", "neither flops"),
        ("a.csv", "parameters,tokens,final_loss\nmany,2,3\n", "line 2: parameters='many' is no number."),
        ("a.json", "{", "no JSON"),
        ("a.json", '{"a": 1}', "expected a list of runs"),
        ("a.json", "[1]", "expected a list of runs"),
        ("a.json", '[{"parameters": 1, "compute_budget": 6}]', "run 1: final_loss=None is no number."),
        ("a.json", '[{"parameters": 1, "compute_budget": 6, "final_loss": NaN}]', "run 1: final_loss=nan"),
        ("a.json", '[{"parameters": 0, "compute_budget": 6, "final_loss": 1}]', "run 1: parameters=0"),
    ],
)
def test_a_table_that_is_wrong_is_told_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_runs(tmp_path / name)


def test_a_table_that_is_missing_is_told(tmp_path):
    with pytest.raises(ValueError, match="no such file; give a study's folder"):
        read_runs(tmp_path / "rows.csv")
