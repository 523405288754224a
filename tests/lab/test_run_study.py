"""Claims about studies that are really run: each cell once, whatever happens to some of them."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratchlm.lab.rows import read_rows
from scratchlm.lab.runner import run_study
from scratchlm.lab.spec import Study
from scratchlm.lock import lock_holder
from scratchlm.registry import load_plugin

PLUGIN = Path(__file__).with_name("slow_optimizers.py")
TINY = (
    "corpus={ name = 'stories', num_train = 20, num_valid = 2, seed = 1 }",
    "tokenizer='chars'",
    "model={ name = 'transformer', context_length = 32, d_model = 16, num_layers = 1, num_heads = 2 }",
    "optimizer={ name = 'patient' }",
    "train={ batch_tokens = 256, compile = false, eval_tokens = 512 }",
    "sampling.max_new_tokens=4",
)
GOOD = (
    {"label": "slow", "settings": ["optimizer.lr=1e-3"]},
    {"label": "fast", "settings": ["optimizer.lr=1e-2"]},
)
BAD = (
    {
        "label": "diverging",
        "settings": ["optimizer={ name = 'sgd', lr = 1e30 }", "train.grad_clip=0", "model.placement='none'"],
    },
    {"label": "no text", "settings": ["corpus={ name = 'files', paths = ['nothing.txt'] }"]},
    {"label": "killed", "settings": ["optimizer='killed'"]},
)


def study_of(*cells):
    return Study(
        name="two",
        question="Which?",
        recipe="demo",
        settings=TINY,
        cells=cells,
        budget={"tokens": 100 * 256},
        base="slow",
    )


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.distributed
def test_what_was_interrupted_goes_on_and_what_fails_is_a_row(tmp_path):
    """One study in three calls: stopped in the middle, continued, and prolonged by cells that fail."""

    sent = []

    def stop_in_the_middle(snapshot):
        if any(view.progress.get("step") for view in snapshot.cells) and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    load_plugin(PLUGIN)
    study, folder = study_of(*GOOD), tmp_path / "study"
    stopped = run_study(study, folder, jobs=1, plugins=[PLUGIN], watch=stop_in_the_middle)
    assert stopped.stopped_by == "SIGINT"
    assert stopped.num_left == 2
    assert list((folder / "cells").glob("slow*/checkpoints/step-*")), "it saved where it was"

    again = run_study(study_of(*GOOD, *BAD), folder, jobs=2, plugins=[PLUGIN])
    rows = {row.label: row for row in again.results}
    assert again.stopped_by is None
    assert again.num_left == 0
    assert [row.state for row in again.results] == ["finished", "finished", "diverged", "failed", "failed"]
    assert rows["fast"].steps == rows["slow"].steps == 100
    assert rows["diverging"].diverged
    assert not math.isfinite(rows["diverging"].final_loss) or rows["diverging"].final_loss > 10
    assert "nothing.txt" in rows["no text"].error
    assert "ended by SIGKILL" in rows["killed"].error
    assert read_rows(folder / "rows.csv")[0] == rows["slow"]

    alone = run_study(study_of(GOOD[0]), tmp_path / "undisturbed", jobs=1, plugins=[PLUGIN]).results[0]
    assert (alone.final_loss, alone.cell) == (rows["slow"].final_loss, rows["slow"].cell)

    written = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/summary.json")}
    third = run_study(study, folder, jobs=2, plugins=[PLUGIN])
    assert [row.final_loss for row in third.results] == [rows["slow"].final_loss, rows["fast"].final_loss]
    assert written == {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/summary.json")}


@pytest.mark.slow
@pytest.mark.distributed
def test_a_study_that_is_killed_leaves_no_process_and_goes_on(tmp_path):
    folder, code = (
        tmp_path / "study",
        f"""
import sys; sys.path.insert(0, {str(PLUGIN.parent)!r})
from pathlib import Path
from test_run_study import GOOD, PLUGIN, load_plugin, run_study, study_of
load_plugin(PLUGIN)
run_study(study_of(GOOD[0]), Path({str(tmp_path / "study")!r}), plugins=[PLUGIN], jobs=1)
""",
    )
    runner = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: list(folder.glob("cells/slow*/metrics.jsonl")))
    runner.kill()
    runner.wait()
    cell = next(folder.glob("cells/slow*"))
    wait_for(lambda: lock_holder(cell) is None)
    assert list(cell.glob("checkpoints/step-*")), "its process saw that the runner was gone, and saved"

    load_plugin(PLUGIN)
    done = run_study(study_of(GOOD[0]), folder, jobs=1, plugins=[PLUGIN])
    assert [(row.state, row.steps) for row in done.results] == [("finished", 100)]


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    load_plugin(PLUGIN)
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty and holds no study"):
        run_study(study_of(*GOOD), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "thesis.tex"]
    with pytest.raises(ValueError, match="jobs=0: at least one cell"):
        run_study(study_of(*GOOD), tmp_path, jobs=0)
