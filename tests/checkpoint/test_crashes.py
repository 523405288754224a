"""Processes that die or meet a full disk while they save: what `latest` names is whole, always."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from scratchlm.checkpoint import latest, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).with_name("saving_process.py")
MEMORY = Path("/dev/shm")


def run_modes(**folders):
    """Run each mode of the script in its folder and return what it found, by mode."""
    words = [f"{mode.replace('_', '-')}={folder}" for mode, folder in folders.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=450, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    return {result.pop("mode").replace("-", "_"): result for result in found}


@pytest.fixture(scope="module")
def make_folder():
    """Makes folders that any user may reach (unlike pytest's own), in memory or on the disk.

    In memory a killed process loses nothing that a disk would keep, and a flush costs nothing.
    """
    made = []

    def make(*, in_memory=False):
        place = MEMORY if in_memory and MEMORY.is_dir() else None
        made.append(Path(tempfile.mkdtemp(prefix="scratchlm-test-", dir=place)))
        made[-1].chmod(0o755)
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def crashes(make_folder):
    return run_modes(
        kill_at_random=make_folder(),
        kill_at_any_line=make_folder(in_memory=True),
        kill_a_replacement=make_folder(in_memory=True),
        disk_full=make_folder(),
        read_only=make_folder(),
        leave_at_once=make_folder(),
    )


def test_fifty_kills_at_random_moments_cost_no_finished_checkpoint(crashes):
    found = crashes["kill_at_random"]
    assert found["rounds"] == 50
    assert found["in_the_middle"] >= 5, "the kills missed the saves: nothing was tested"
    assert found["saved"] > 3
    assert [name for name in found["names"] if not re.fullmatch(r"step-\d{7}", name)] == []


def test_a_kill_at_any_line_of_a_save_leaves_the_old_or_the_new_one(crashes):
    found = crashes["kill_at_any_line"]
    assert found["lines"] > 300
    assert found["after_kill"] == found["after_opening"] == [2, 3]


def test_a_kill_at_any_line_of_a_replacement_keeps_the_step(crashes):
    found = crashes["kill_a_replacement"]
    assert found["lines"] > 300
    assert found["after_opening"] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "steps"), [("kill_at_every_line", [2, 3]), ("kill_every_replacement", [2])])
def test_a_kill_at_every_single_line(make_folder, mode, steps):
    found = run_modes(**{mode: make_folder(in_memory=True)})
    assert found[mode]["after_opening"] == steps


def test_a_full_disk_is_named_and_costs_nothing_but_that_checkpoint(crashes):
    error = ["EFBIG", "the checkpoint of step 2 was not saved: File too large", "step-0000002"]
    assert crashes["disk_full"] == {"errors": [error, error]}


def test_a_folder_that_may_not_be_written_is_named(crashes):
    error = ["PermissionError", "the checkpoint of step 2 was not saved: Permission denied", "step-0000002"]
    assert crashes["read_only"] == {"errors": [error, error]}


def test_an_interrupted_process_does_not_wait_for_a_slow_disk(crashes):
    found = crashes["leave_at_once"]
    assert found["failed"]
    assert found["seconds"] < 30, "it waited for the write of 60 seconds"
    assert found["left"] == 1, "the write was not under way"
    assert (found["latest"], found["names"]) == (1, ["step-0000001"])


def test_a_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"step 1 was not saved.*file/checkpoints/step-0000001"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, {}, {})


@pytest.fixture
def disk_calls(monkeypatch, tmp_path):
    """Every flush and rename in order: ("flush", "checkpoints/.step-0000001.*.tmp/state.json")."""
    calls = []
    fsync, rename = os.fsync, os.rename

    def place(path):
        text = os.path.relpath(path, tmp_path)
        return re.sub(r"(\.step-\d+\.)[^.]+(\.tmp)", r"\1*\2", text)

    def recorded_fsync(descriptor):
        calls.append(("flush", place(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def recorded_rename(source, target):
        calls.append(("rename", place(source), place(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    return calls


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is flushed")
def test_what_a_power_cut_must_not_reorder_is_flushed_in_order(tmp_path, disk_calls):
    folder = tmp_path / "run" / "checkpoints"
    save_checkpoint(folder, 1, {"model": {"weight": torch.ones(3)}}, {})
    temporary = "run/checkpoints/.step-0000001.*.tmp"
    files = {"model.safetensors", "state.json", "manifest.json"}
    assert disk_calls[:2] == [("flush", "."), ("flush", "run")], "new folders are flushed into their parents"
    assert set(disk_calls[2:5]) == {("flush", f"{temporary}/{name}") for name in files}
    assert disk_calls[5:] == [
        ("flush", temporary),
        ("rename", temporary, "run/checkpoints/step-0000001"),
        ("flush", "run/checkpoints"),
    ]


def test_a_failed_replacement_puts_the_old_one_back(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"model": {"weight": torch.ones(3)}}, {})
    rename = os.rename

    def full(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="step 1 was not saved: No space left"):
        save_checkpoint(tmp_path, 1, {"model": {"weight": torch.zeros(3)}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert load_checkpoint(latest(tmp_path)).tensors["model"]["weight"].tolist() == [1, 1, 1]
