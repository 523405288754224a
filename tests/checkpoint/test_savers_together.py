"""Several savers, one checkpoint: whole on all, or given up on all with the name of who failed."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from savers_together import equal, new_store, save_together, tensors_of, together

from scratchlm.checkpoint import (
    CheckpointError,
    Coordinator,
    Piece,
    Saver,
    folder,
    latest,
    load_checkpoint,
    save_checkpoint,
    verify,
)
from scratchlm.distributed.process import ProcessError

BACKGROUND = pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])


@BACKGROUND
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_what_several_save_is_what_one_would(tmp_path, how, world_size, background):
    assert (
        save_together(tmp_path, [1, 2, 3], world_size, how=how, background=background) == [None] * world_size
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000003"]
    found = load_checkpoint(latest(tmp_path))
    assert equal(found.tensors, 3)
    assert found.state == {"done": 3, "rank": 0}, "the first one's"
    assert found.identity == {"world_size": world_size}


def test_a_checkpoint_of_several_says_whose_files_are_whose(tmp_path):
    save_together(tmp_path, [1], 2)
    manifest = verify(latest(tmp_path))
    assert manifest.groups == {
        "model": ("model-r00001-of-00002.safetensors", "model-r00002-of-00002.safetensors"),
        "optimizer": ("optimizer-r00001-of-00002.safetensors", "optimizer-r00002-of-00002.safetensors"),
        "random": ("random-r00001-of-00002.safetensors",),
    }
    rows = {"model-r00001-of-00002.safetensors": (0, 19), "model-r00002-of-00002.safetensors": (19, 37)}
    assert manifest.tensors["model"]["embeddings"] == ("F32", (37, 5), rows)


def test_large_shares_are_cut_into_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.write_checkpoint, "__defaults__", (None, 400))
    save_together(tmp_path, [1], 2)
    names = verify(latest(tmp_path)).groups["optimizer"]
    assert names == ("optimizer-r00001-of-00002.safetensors", "optimizer-r00002-of-00002.safetensors")
    monkeypatch.setattr(folder.write_checkpoint, "__defaults__", (None, 100))
    save_together(tmp_path, [2], 2, how="ddp")
    names = verify(latest(tmp_path)).groups["model"]
    assert "model-r00001-of-00002-00002.safetensors" in names
    assert equal(load_checkpoint(latest(tmp_path)).tensors, 2)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is flushed")
def test_each_process_flushes_its_files_before_it_says_so_and_the_name_comes_last(tmp_path, monkeypatch):
    calls, fsync, deliver, rename = [], os.fsync, Coordinator.deliver, os.rename

    def recorded_fsync(descriptor):
        calls.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def recorded_deliver(coordinator, part):
        calls.append(("deliver", coordinator.rank))
        deliver(coordinator, part)

    def recorded_rename(source, target):
        calls.append(("rename", os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Coordinator, "deliver", recorded_deliver)
    monkeypatch.setattr(os, "rename", recorded_rename)
    save_together(tmp_path, [1], 2)
    delivered, named = calls.index(("deliver", 1)), calls.index(("rename", "step-0000001"))
    for group in ("model", "optimizer"):
        assert ("flush", f"{group}-r00002-of-00002.safetensors") in calls[:delivered]
    assert delivered < named
    for name in ("model-r00001-of-00002.safetensors", "state.json", "manifest.json"):
        assert ("flush", name) in calls[:named]


def test_a_later_step_never_leaks_in(tmp_path):
    def work(rank, coordinator):
        weight = torch.zeros(64)
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, {"model": {"w": weight, "own": Piece(weight, 64 * rank, 128)}}, {})
            weight += 1

    assert together(work, 2) == [None, None]
    found = load_checkpoint(latest(tmp_path)).tensors["model"]
    assert not found["w"].any()
    assert not found["own"].any()


def test_training_goes_on_while_another_still_writes(tmp_path, monkeypatch):
    gate, write = threading.Event(), folder.write_tensors

    def waits(file, tensors):
        assert "r00002" not in file.name or gate.wait(20)
        return write(file, tensors)

    monkeypatch.setattr(folder, "write_tensors", waits)

    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, tensors_of(1, rank, 2), {})
            assert latest(tmp_path) is None, "save came back before the disk was done"
            gate.set()
            saver.wait()
            assert latest(tmp_path).name == "step-0000001", "wait came back on each with all on the disk"

    assert together(work, 2) == [None, None]


def test_only_the_first_removes_and_reports(tmp_path):
    heard = []
    (tmp_path / ".step-0000009.abc.tmp").mkdir()

    def work(rank, coordinator):
        watcher = lambda step, path: heard.append((rank, step, verify(path).step))  # noqa: E731
        with Saver(tmp_path, newest=1, coordinator=coordinator, on_saved=watcher) as saver:
            for step in (2, 4, 3):
                saver.save(step, tensors_of(step, rank, 3), {})

    assert together(work, 3) == [None] * 3
    assert heard == [(0, 2, 2), (0, 4, 4), (0, 3, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000003"]


@BACKGROUND
@pytest.mark.parametrize("failing", [0, 2])
def test_a_full_disk_of_one_is_raised_on_all_and_the_old_one_stays(
    tmp_path, monkeypatch, failing, background
):
    save_together(tmp_path, [1], 3)
    write = folder.write_tensors

    def full(file, tensors):
        if f"r0000{failing + 1}" in file.name:
            raise OSError(28, "No space left on device", str(file))
        return write(file, tensors)

    monkeypatch.setattr(folder, "write_tensors", full)
    outcomes = save_together(tmp_path, [2], 3, background=background)
    for rank, error in enumerate(outcomes):
        assert isinstance(error, OSError)
        who = "" if rank == failing else f"process {failing}: "
        assert error.strerror == f"the checkpoint of step 2 was not saved: {who}No space left on device"
        assert error.errno == 28
        assert error.filename == str(tmp_path / "step-0000002")
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


def test_what_another_wrote_while_the_first_removed_the_folder_goes_too(tmp_path, monkeypatch):
    write, writing = folder.write_tensors, threading.Semaphore(0)

    def late(file, tensors):
        if "r00001" in file.name:
            assert writing.acquire(timeout=20)
            raise OSError(28, "No space left on device", str(file))
        if "model" in file.name:  # the first of its files
            writing.release()
            deadline = time.monotonic() + 20
            while file.parent.exists():
                assert time.monotonic() < deadline, "the first did not remove the folder"
                time.sleep(0.001)
            # a file made between the removal's look and its end keeps the folder
            file.parent.mkdir()
        return write(file, tensors)

    monkeypatch.setattr(folder, "write_tensors", late)
    assert all(isinstance(error, OSError) for error in save_together(tmp_path, [1], 2))
    assert list(tmp_path.iterdir()) == []


def test_after_a_failed_save_the_next_one_works(tmp_path, monkeypatch):
    write = folder.write_tensors

    def full_once(file, tensors):
        if ".step-0000001." in str(file) and "r00002" in file.name:
            raise OSError(28, "No space left on device", str(file))
        return write(file, tensors)

    monkeypatch.setattr(folder, "write_tensors", full_once)

    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, tensors_of(1, rank, 2), {})
            with pytest.raises(OSError, match="step 1 was not saved"):
                saver.wait()
            saver.save(2, tensors_of(2, rank, 2), {})

    assert together(work, 2) == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


def test_a_process_that_ended_before_its_part_was_written_is_named(tmp_path):
    save_together(tmp_path, [1], 3)

    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            if rank != 1:
                saver.save(2, tensors_of(2, rank, 3), {})

    first, second, third = together(work, 3)
    assert second is None
    for error in (first, third):
        assert isinstance(error, ProcessError)
        assert "process 1 of 3 ended while the checkpoint of step 2 was being saved" in str(error)
        assert "go on from there with --resume" in str(error).lower()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_falls_silent_is_named_in_bounded_time(tmp_path, silent):
    def work(rank, coordinator):
        if rank == silent:
            return None  # it never shows a sign of life
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, tensors_of(1, rank, 2), {})

    started = time.monotonic()
    outcomes = together(work, 2, patience_seconds=1.0)
    assert 1 <= time.monotonic() - started < 5
    error = outcomes[1 - silent]
    assert isinstance(error, ProcessError)
    assert f"process {silent} of 2 has not been heard of for 1 s" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_no_loss(tmp_path, monkeypatch):
    write = folder.write_tensors

    def slow(file, tensors):
        time.sleep(3.5 if "model-r00002" in file.name else 0)
        return write(file, tensors)

    monkeypatch.setattr(folder, "write_tensors", slow)

    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, tensors_of(1, rank, 2), {})

    assert together(work, 2, patience_seconds=2.0) == [None, None]
    assert equal(load_checkpoint(latest(tmp_path)).tensors, 1)


class Hanging:
    """A store of which no call comes back, from a moment on."""

    def __init__(self, store):
        self.store, self.hangs = store, threading.Event()

    def __getattr__(self, name):
        def call(*arguments):
            if self.hangs.is_set():
                time.sleep(60)
            return getattr(self.store, name)(*arguments)

        return call


@BACKGROUND
def test_a_store_that_does_not_answer_keeps_nobody_for_ever(tmp_path, background):
    coordinator = Coordinator(new_store(), 1, 2, patience_seconds=0.5)
    coordinator._store = Hanging(coordinator._store)
    saver = Saver(tmp_path, newest=2, background=background, coordinator=coordinator)
    coordinator._store.hangs.set()

    def save():
        saver.save(1, tensors_of(1, 1, 2), {})
        saver.wait()

    started = time.monotonic()
    with pytest.raises(ProcessError, match=r"process 1 of 2 cannot reach the others \(no answer\)"):
        save()
    assert time.monotonic() - started < 5


def test_a_store_that_is_gone_is_said_so(tmp_path):
    class Gone:
        def __getattr__(self, name):
            def call(*arguments):
                raise RuntimeError("Connection reset by peer")

            return call

    coordinator = Coordinator(new_store(), 1, 2)
    coordinator._store = Gone()
    saver = Saver(tmp_path, newest=2, coordinator=coordinator)
    saver.save(1, {}, {})
    with pytest.raises(
        ProcessError, match=r"cannot reach the others \(Connection reset by peer\).*step 1 may"
    ):
        saver.wait()


def test_processes_with_different_models_are_refused(tmp_path):
    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, {"model": {"w": Piece(torch.zeros(4, 3 + rank), 4 * rank, 8)}}, {})

    for error in together(work, 2):
        assert isinstance(error, CheckpointError)
        assert "model, w: F32 [8, 3] in model-r00001-of-00002.safetensors, but F32 [8, 4] in" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Piece(torch.zeros(4), 2, 8), "w: rows 2 to 4 are in model-r00001-of-.* and in model-r00002-of-"),
        (Piece(torch.zeros(3), 5, 8), "w: of 8 rows the first 4 are there, up to model-r00001-of-"),
        (Piece(torch.zeros(3), 4, 8), "w: of 8 rows the first 7 are there, up to model-r00002-of-"),
    ],
    ids=["twice", "gap", "end"],
)
def test_rows_that_are_missing_or_written_twice_never_become_a_checkpoint(tmp_path, second, said):
    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            saver.save(1, {"model": {"w": second if rank else Piece(torch.zeros(4), 0, 8)}}, {})

    for error in together(work, 2):
        with pytest.raises(CheckpointError, match=said):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_the_same_for_all_is_refused(tmp_path):
    def work(rank, coordinator):
        with Saver(tmp_path / str(rank), newest=2, coordinator=coordinator) as saver:
            saver.save(1, tensors_of(1, rank, 2), {})

    outcomes = together(work, 2)
    for error in outcomes:
        with pytest.raises(
            FileNotFoundError, match="is not the folder that process 0 sees; all processes must"
        ):
            raise error
    assert "process 1: " in str(outcomes[0])


def test_keys_do_not_pile_up_in_the_store(tmp_path):
    store = new_store()
    counts = []

    def work(rank, coordinator):
        with Saver(tmp_path, newest=2, coordinator=coordinator) as saver:
            for step in range(1, 8):
                saver.save(step, tensors_of(step, rank, 3), {})
                saver.wait()
                if rank == 0:
                    counts.append(store.num_keys())

    assert together(work, 3, store) == [None] * 3
    assert max(counts) <= counts[1] + 2


def test_a_second_run_of_the_same_processes_has_keys_of_its_own(tmp_path):
    store = new_store()

    def work(rank, coordinator):
        for name in ("a", "b"):
            with Saver(tmp_path / name, newest=2, coordinator=coordinator) as saver:
                saver.save(1, tensors_of(1, rank, 2), {})
            coordinator = Coordinator(store, rank, 2, patience_seconds=1.0)

    assert together(work, 2, store) == [None, None]
    assert equal(load_checkpoint(latest(tmp_path / "b")).tensors, 1)


def test_a_checkpoint_of_several_is_replaced_by_one_of_one(tmp_path):
    save_together(tmp_path, [1], 4)
    save_checkpoint(tmp_path, 1, tensors_of(1, 0, 1, "ddp"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert equal(load_checkpoint(latest(tmp_path)).tensors, 1)
