"""Resuming with other settings: what changes the meaning is refused with a diff, the rest is recorded."""

import json
import shutil

import pytest
from real_runs import checkpoint, rows_of


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, never_stopped):
    """A run stopped in its fifth step."""
    assert never_stopped.train("stopped", harm="SIGTERM@17").code == 143
    return never_stopped


@pytest.fixture
def copied(stopped, place):
    """The place of a copy of that run, "run", to do with what one likes."""
    shutil.copytree(stopped / "stopped", place / "run")
    return place


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("settings", "diff"),
    [
        (["model.d_model=32"], ["model.d_model: 16 -> 32"]),
        (["tokenizer.unknown=drop"], ["tokenizer", "drop"]),
        (
            ["model.num_layers=2", "train.batch_tokens=512", "seed=4"],
            ["model.num_layers: 1 -> 2", "train.batch_tokens: 256 -> 512", "seed: 3 -> 4"],
        ),
    ],
    ids=["d_model", "tokenizer", "several"],
)
def test_a_setting_that_changes_the_meaning_is_refused_with_a_diff_and_nothing_is_touched(
    copied, settings, diff
):
    before = content(copied / "run")
    error = copied.train("run", *settings, "--resume").error
    assert str(copied / "run") in error
    assert [part for part in diff if part not in error] == []
    after = content(copied / "run")
    assert {path.name for path in after.keys() - before.keys()} <= {".run.lock"}
    assert {path: after[path] for path in before if path.name != ".run.lock"} == {
        path: text for path, text in before.items() if path.name != ".run.lock"
    }


def test_length_and_intervals_may_change_and_the_change_is_recorded(copied):
    at = checkpoint(copied / "run").step
    copied.done("run", "train.steps=14", "train.log_every=2", "--resume")
    folder = copied / "run"
    assert checkpoint(folder).step == 14
    (resumed,) = rows_of(folder, "resume")
    assert resumed["step"] == at
    assert resumed["changes"] == {"train.log_every": [1, 2], "train.steps": [12, 14]}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["train"]["steps"], config["train"]["log_every"]) == (14, 2)
    assert [row["step"] for row in rows_of(folder, "train")] == [1, 2, 3, 4, 6, 8, 10, 12, 14]
