"""Which checkpoints stay: the newest complete ones, named steps, multiples; leftovers go."""

import os
import re

import pytest
import torch

from scratchlm.checkpoint import discard_after, keep_only, latest, load_checkpoint, save_checkpoint
from scratchlm.checkpoint.retention import remove_leftovers


def save_steps(folder, *steps):
    for step in steps:
        save_checkpoint(folder, step, {"model": {"w": torch.full((3,), float(step))}}, {})


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def cut(folder, step):
    file = folder / f"step-{step:07d}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_the_newest_and_named_steps_stay(tmp_path):
    save_steps(tmp_path, *range(1, 7))
    keep_only(tmp_path, 2, also=[3])
    assert steps_in(tmp_path) == [3, 5, 6]


def test_multiples_stay_for_ever(tmp_path):
    save_steps(tmp_path, *range(0, 100, 10))
    keep_only(tmp_path, 1, also=[70], every=40)
    assert steps_in(tmp_path) == [0, 40, 70, 80, 90]


def test_steps_are_compared_as_numbers(tmp_path):
    save_steps(tmp_path, 9_999_999, 10_000_000)
    assert latest(tmp_path).name == "step-10000000"
    keep_only(tmp_path, 1)
    assert steps_in(tmp_path) == [10_000_000]


def test_a_damaged_checkpoint_does_not_push_a_good_one_out(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4)
    cut(tmp_path, 4)
    cut(tmp_path, 3)
    keep_only(tmp_path, 1)
    assert steps_in(tmp_path) == [2]
    assert load_checkpoint(latest(tmp_path)).step == 2


def test_a_damaged_checkpoint_stays_while_it_is_protected(tmp_path):
    save_steps(tmp_path, 1, 2)
    cut(tmp_path, 1)
    keep_only(tmp_path, 1, also=[1])
    assert steps_in(tmp_path) == [1, 2]


def test_what_a_later_version_wrote_is_left_alone(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "step-0000002" / "manifest.json").write_text('{"format": 99}')
    keep_only(tmp_path, 1)
    assert steps_in(tmp_path) == [2, 3]


def test_other_things_in_the_folder_are_left_alone(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "step-best").mkdir()
    (tmp_path / "step-0000000").touch()
    (tmp_path / "notes.txt").touch()
    keep_only(tmp_path, 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "step-0000000", "step-0000002", "step-best"]


def test_the_newest_must_stay(tmp_path):
    with pytest.raises(ValueError, match="newest=0: at least the newest checkpoint must stay"):
        keep_only(tmp_path, 0)


def test_no_folder_has_no_checkpoint(tmp_path):
    assert latest(tmp_path / "missing") is None
    keep_only(tmp_path / "missing", 1)
    assert discard_after(tmp_path / "missing", 0) == []
    remove_leftovers(tmp_path / "missing")


def test_going_back_discards_what_came_after(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4)
    assert discard_after(tmp_path, 2) == [3, 4]
    assert steps_in(tmp_path) == [1, 2]


def test_a_removal_cut_short_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    """A process that dies inside rmtree: the name is gone by then, so nothing is half there."""
    save_steps(tmp_path, 1, 2)
    unlink = os.unlink

    def dies(path, *arguments, **settings):
        unlink(path, *arguments, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        keep_only(tmp_path, 1)
    monkeypatch.undo()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert re.fullmatch(r"\.step-0000001.*\.tmp", names[0])
    assert names[1] == "step-0000002"
    remove_leftovers(tmp_path)
    assert steps_in(tmp_path) == [2]


def test_leftovers_of_killed_saves_are_removed_and_nothing_else(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / ".step-0000002.abc123.tmp").mkdir()
    (tmp_path / ".step-0000002.abc123.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".hidden").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "step-0000001"]


def test_a_replacement_that_died_between_its_renames_is_undone(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "step-0000001").rename(tmp_path / ".step-0000001.replaced")
    assert latest(tmp_path) is None
    remove_leftovers(tmp_path)
    assert load_checkpoint(latest(tmp_path)).step == 1
