"""Claims about finding runs, what tables say of them, and where their settings differ."""

import json
import os

import pytest
from several_runs import BATCH, write_small_run

from scratchlm.lock import run_lock
from scratchlm.study import compare
from scratchlm.study.compare import (
    MISSING,
    differences,
    facts,
    find_runs,
    flattened,
    read_runs,
    same_settings,
    short_names,
)
from scratchlm.study.run_record import read_run
from scratchlm.study.run_sheet import sheet


def test_runs_are_found_three_folders_deep_the_newest_first(tmp_path):
    for age, name in enumerate(("new", "a/middle", "a/b/old", "a/b/c/too-deep", ".hidden/run")):
        folder = write_small_run(tmp_path / name, until=100)
        for file in folder.glob("*.json*"):
            os.utime(file, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["x"]}', encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{", encoding="utf-8")
    names = [str(run.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert names == ["new", "a/middle", "a/b/old"]
    assert find_runs(tmp_path / "new") == [tmp_path / "new"]
    with pytest.raises(ValueError, match="nowhere: no such folder; give a folder of runs"):
        find_runs(tmp_path / "nowhere")


def test_a_run_is_finished_interrupted_or_running(tmp_path):
    run = write_small_run(tmp_path / "run")
    assert facts(read_run(run)).status == "finished"
    with run_lock(run):
        assert facts(read_run(run)).status == "running"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").write_text(json.dumps({**summary, "stopped_early": True}), encoding="utf-8")
    assert facts(read_run(run)).status == "interrupted"
    (run / "summary.json").unlink()
    assert facts(read_run(run)).status == "interrupted"


def test_facts_of_a_finished_run_are_its_summary(tmp_path):
    one = facts(read_run(write_small_run(tmp_path / "run", seed=3)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert (one.loss, one.best_loss) == (summary["valid_loss"], summary["best_valid_loss"])
    assert (one.steps, one.planned_steps, one.tokens, one.seed) == (1200, 1200, 1200 * BATCH, 3)
    assert one.epochs == pytest.approx(1200 * BATCH / 2_400_000)
    assert one.tokens_per_parameter == pytest.approx(1200 * BATCH / 2_164_416)


def test_facts_of_a_run_without_a_summary_are_those_of_its_rows(tmp_path):
    one = facts(read_run(write_small_run(tmp_path / "run", until=510)))
    assert (one.steps, one.planned_steps, one.tokens) == (510, 1200, 510 * BATCH)
    assert one.loss is not None
    assert one.tokens_per_second == pytest.approx(BATCH / 0.13)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    one = facts(read_run(tmp_path / "run"))
    assert (one.loss, one.steps, one.tokens, one.seconds, one.epochs) == (None, None, None, None, None)


def test_a_run_that_goes_on_after_a_stop_shows_its_rows_not_the_summary_of_the_stop(tmp_path):
    run = write_small_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    summary |= {"stopped_early": True, "steps": 300, "valid_loss": 9.0}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with run_lock(run):
        one = facts(read_run(run))
    assert (one.steps, one.status) == (1200, "running")
    assert one.loss < 2


def test_differences_name_every_setting_that_is_not_the_same():
    first = {"name": "a", "optimizer": {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0}
    second = {"name": "b", "optimizer": {"name": "sgd", "lr": 0.1}, "seed": 0}
    found = {difference.key: difference.values for difference in differences([first, second, first])}
    assert found == {
        "optimizer": ["adamw", "sgd", "adamw"],
        "optimizer.betas": [[0.9, 0.95], MISSING, [0.9, 0.95]],
    }
    assert differences([first, first]) == []
    assert repr(MISSING) == "-"


def test_a_tree_becomes_dotted_keys():
    tree = {"a": 1, "norm": {"name": "rmsnorm", "eps": 1e-5}, "x": {"y": {"z": [1]}}}
    assert flattened(tree) == {"a": 1, "norm": "rmsnorm", "norm.eps": 1e-5, "x.y.z": [1]}


def test_settings_of_a_plugin_are_compared_as_they_were_saved():
    tree = {"model": {"name": "mine", "depth": 3}, "seed": 1, "train": {"steps": 2, "track": ["wandb"]}}
    assert same_settings(tree) == {"model": "mine", "model.depth": 3, "train.steps": 2}


def test_a_setting_without_influence_is_a_setting_that_exists():
    """A renamed setting would silently decide again whether runs are equal."""
    from scratchlm.train.config import RunConfig
    from scratchlm.train.recipes import read

    known = [key for name in ("quick", "wikitext-2") for key in flattened(read(name).model_dump(mode="json"))]
    for name in compare.WITHOUT_INFLUENCE:
        assert name in RunConfig.model_fields or any(
            key == name or key.startswith(f"{name}.") for key in known
        ), name


def test_names_are_as_long_as_they_must_be(tmp_path):
    folders = [tmp_path / "a" / "demo", tmp_path / "b" / "demo", tmp_path / "c"]
    assert short_names(folders) == ["a/demo", "b/demo", "c"]
    assert short_names([tmp_path / "c", tmp_path / "c"]) == ["c", "c"]


def test_a_folder_of_runs_stands_for_its_runs(tmp_path):
    for name in ("a", "b"):
        write_small_run(tmp_path / "runs" / name, until=100)
    (tmp_path / "empty").mkdir()
    names = {record.folder.name for record in read_runs([tmp_path / "runs", tmp_path / "runs" / "a"])}
    assert names == {"a", "b"}
    assert len(read_runs([tmp_path / "runs", tmp_path / "runs" / "a"])) == 2
    with pytest.raises(ValueError, match="empty: no run folder and none below it"):
        read_runs([tmp_path / "empty"])


def test_the_sheet_of_a_run_says_what_one_would_ask(tmp_path):
    run = write_small_run(tmp_path / "run", seed=3)
    events = [
        {"kind": "skip", "step": 40, "reason": "loss nan"},
        {"kind": "skip", "step": 90, "reason": "loss nan"},
        {"kind": "resume", "step": 500, "changes": {"train.steps": [1000, 1200]}},
        {"kind": "spike", "step": "x"},
    ]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in events))
    lines = {line.name: line for group in sheet(read_run(run)).values() for line in group}
    assert (lines["effective batch"].value, lines["effective batch"].detail) == (
        "4,096 tokens", "16 rows of 256 tokens",
    )  # fmt: skip
    assert (lines["tokens seen"].value, lines["seed"].value, lines["commit"].value) == (
        "4,915,200",
        "3",
        "32a5ac9",
    )
    assert (lines["epochs"].value, lines["epochs"].detail) == ("2.05", "of 2,400,000 training tokens")
    assert lines["tokens per parameter"].value == "2.3"
    assert lines["processor"].detail == "2 cores, 2 threads"
    assert (lines["steps left out"].value, lines["steps left out"].detail) == ("2", "the last at step 90")
    assert (lines["resumed"].value, lines["resumed"].detail) == ("at step 500", "train.steps 1000 -> 1200")
    assert "spikes" not in lines


def test_the_sheet_of_a_run_that_recorded_nothing_is_no_error(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {}, "model": 3, "optimizer": []}', encoding="utf-8")
    assert sheet(read_run(tmp_path)) == {}
