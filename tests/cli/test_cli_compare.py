"""`train --compare-to`: each validation says whether the loss is normal, and so does the report."""

import json
from pathlib import Path

import pytest
from tiny_settings import TINY, TINY_STORIES

DEMO = ["train", "demo", *TINY, *TINY_STORIES]


@pytest.fixture
def curve(cli, finished_run):
    """A curve of one run, expected losses by step: a file, and how to move it."""
    assert cli("runs", "curve", finished_run, "-o", "curve.json").code == 0

    def move(**factors):
        tree = json.loads(Path("curve.json").read_text(encoding="utf-8"))
        for point in tree["points"]:
            factor = factors.get(f"step{point['step']}", 1.0)
            point["losses"] = [loss * factor for loss in point["losses"]]
        Path("curve.json").write_text(json.dumps(tree), encoding="utf-8")

    return move


def verdicts(out):
    return [line for line in out.splitlines() if line.startswith("Compared to ")]


def test_an_equal_run_is_told_twice_that_its_loss_is_normal(cli, curve):
    found = cli(*DEMO, "--folder", "run", "--compare-to", "curve.json")
    assert found.code == 0, found.err
    first, second = verdicts(found.out)
    assert first.startswith("Compared to demo: normal: ")
    assert " at step 2, where the reference gave " in first
    assert " at step 4, where the reference gave " in second
    assert "Yes, this loss is normal" in Path("run/report.html").read_text(encoding="utf-8")


def test_a_run_above_the_curve_is_told_from_which_step_on(cli, curve):
    curve(step4=0.8)
    found = cli(*DEMO, "--folder", "run", "--compare-to", "curve.json")
    assert found.code == 0, found.err
    first, second = verdicts(found.out)
    assert first.startswith("Compared to demo: normal: ")
    assert second.startswith("Compared to demo: too high from step 4 on: ")
    assert "No, this loss is too high, from step 4 on" in Path("run/report.html").read_text(encoding="utf-8")


def test_another_runs_folder_is_a_curve_too(cli, finished_run):
    found = cli(*DEMO, "--folder", "run", "--compare-to", finished_run)
    assert found.code == 0, found.err
    assert [": normal: " in line for line in verdicts(found.out)] == [True, True]


def test_a_run_with_other_settings_is_told_which(cli):
    found = cli(*DEMO, "--folder", "run", "--compare-to", "demo")
    assert "not comparable: settings differ: corpus.num_train 40 instead of 30000" in verdicts(found.out)[0]


def test_a_curve_that_is_not_there_is_one_line_before_anything_is_made(cli):
    found = cli(*DEMO, "--folder", "run", "--compare-to", "nothing")
    assert "nothing: nothing to compare with; give a run folder" in found.error
    assert not Path("run").exists()


def test_a_run_begins_with_batch_tokens_epochs_and_tokens_per_parameter(cli):
    found = cli(*DEMO, "--folder", "run")
    (line,) = (line for line in found.out.splitlines() if " parameters, " in line)
    tokens, parameters = 1024, int(line.split()[0].replace(",", ""))
    assert f"1,024 tokens ({tokens / parameters:.1f} per parameter, " in line
    assert " epochs), 256 a step, 256 at once" in line
