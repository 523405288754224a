"""Claims about `scratchlm study`: one error line for what is wrong, and the toy from command to report."""

import csv
import json
import re
from pathlib import Path

import pytest

RATES = (("0.005", 1.0), ("0.1", 2.0))


@pytest.mark.slow
@pytest.mark.distributed
def test_the_toy_runs_from_one_command_to_its_report(cli):
    words = ("study", "run", "sgd-toy", "grid={ lr = [10.0, 100.0, 1000.0] }", "steps=8", "--folder", "toy")
    done = cli(*words, "--jobs", "3")
    assert done.code == 0, done
    assert "1000, seed 1: diverged" in done.out
    assert "The report: toy/report.html" in done.out
    text = Path("toy/rows.csv").read_text(encoding="utf-8")
    rows = {row["label"]: row for row in csv.DictReader(text.splitlines())}
    assert float(rows["100"]["final_loss"]) < 1e-6 < 1 < float(rows["10"]["final_loss"])
    assert rows["1000"]["diverged"] == "True"
    assert json.loads(rows["10"]["overrides"]) == {"lr": 10.0}
    assert cli("study", "report", "toy").code == 0
    again = cli(*words)
    assert again.code == 0
    assert "running" not in again.out


def test_every_study_is_listed_with_its_question(cli):
    out = cli("study", "list").out
    for name in ("lr-sweep", "norms", "positions", "feedforward", "optimizers", "schedules", "sgd-toy"):
        assert f"\n{name}\n" in f"\n{out}"
    assert "Does a transformer need its norms, and where?" in out
    assert "cpu: 7 cells, 3 seeds; gpu: 7 cells, 3 seeds" in out


def test_the_list_says_what_was_measured_sentence_by_sentence_and_how_to_measure(cli, monkeypatch, tmp_path):
    from scratchlm.lab import shipped

    head = "label,seed,state,overrides,final_loss"
    rows = [
        f"{label},{seed},finished,{{}},{loss + seed / 1000}" for label, loss in RATES for seed in (1, 2, 3)
    ]
    (tmp_path / "lr-sweep-cpu.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
    monkeypatch.setattr(shipped, "RESULTS", tmp_path)
    lines = cli("study", "list").out.splitlines()
    start = lines.index("lr-sweep")
    assert lines[start + 3] == "  measured (cpu): 0.005 is lowest with 1.002 (mean of 3 seeds)."
    assert lines[start + 4] == "    Worse: 0.1 (+1.000 +- 0.000)."
    assert "  no result comes along; measure: scratchlm study run norms" in lines
    assert any(line.startswith("1 of ") for line in lines)


def test_lines_of_the_list_fit_the_terminal(monkeypatch, tmp_path):
    import io
    import sys

    from scratchlm.cli import study_list
    from scratchlm.lab import shipped

    long = shipped.Shipped("x", "why " * 40, "cells", {"cpu": "it is so " * 30 + "here. And " + "more " * 40})
    monkeypatch.setattr(shipped, "shipped", lambda: [long])
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    study_list.list_studies()
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    body = lines[1 : lines.index("")]
    assert max(map(len, lines[: len(body)])) <= 70
    assert len(body) > 10
    assert all(line.startswith("  ") for line in body)
    assert next(line for line in body if "And more" in line).startswith("    And more")


def test_show_says_what_would_run(cli):
    out = cli("study", "show", "schedules").out
    assert "warm-up, stable, decay" in out
    assert "319,488" in out
    assert "12 runs (seeds 1, 2, 3): about " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "lr-swep"], "unknown study 'lr-swep'. Did you mean 'lr-sweep'?"),
        (["run", "nothing.toml"], "nothing.toml: no such file. Shipped studies: attention, "),
        (["run", "lr-sweep", "model.d_modle=3"], "unknown key 'd_modle'. Did you mean 'd_model'?"),
        (["run", "lr-sweep", "optimizer.lr=3"], "optimizer.lr=3 and the cells both set optimizer.lr"),
        (["run", "lr-sweep", "budget.tokens=5"], "budget: 5 tokens are less than one step"),
        (["run", "sgd-toy", "--jobs", "0"], "jobs=0: at least one cell must run at a time."),
        (["report", "nothing"], "nothing: no study (study.json is missing)"),
        (["show", "norms", "seeds=[]"], "seeds"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(cli, words, message):
    assert message in cli("study", *words).error


def test_a_stopped_study_says_how_to_go_on(cli, monkeypatch):
    from scratchlm.lab import runner

    monkeypatch.setattr(runner, "run_study", lambda *_, **__: runner.Outcome([], "SIGINT", 3))
    done = cli("study", "run", "sgd-toy", "steps=8", "--folder", "my toy")
    assert done.code == 130
    assert "stopped, 3 runs are left; go on with: scratchlm study run sgd-toy steps=8 " in done.err
    assert "--folder 'my toy'" in done.err


def test_the_live_table_shows_what_runs_and_counts_the_rest():
    import io

    from rich.console import Console

    from scratchlm.cli.study_live import draw
    from scratchlm.lab.cells import resolve
    from scratchlm.lab.runner import CellView, Snapshot
    from scratchlm.lab.search import points
    from scratchlm.lab.spec import read_study

    study = read_study("sgd-toy")
    cells = resolve(study, points(study, {}))
    at_work = {"phase": "training", "step": 5, "total": 10, "loss": 1.25, "seconds_left": 75.0}
    states = [("finished", {}), ("running", at_work), ("running", {"phase": "starting"}), ("missing", {})]
    views = [CellView(cell, *state) for cell, state in zip(cells, states, strict=True)]
    console = Console(width=100, file=io.StringIO())
    console.print(draw("toy", Snapshot(views, 1)))
    text = console.file.getvalue()
    assert "============------------  5 / 10" in text
    assert "1.250   1 min 15 s" in text
    assert "starting" in text
    assert "1 of 4 runs ended, 1 waiting, preparing tokenizer and data" in text
