"""Ctrl-C, SIGTERM, impatience, a full disk: the exit code says what it was, a valid checkpoint is there."""

import json
import random
import signal
import time

import pytest
from real_runs import assert_same_run, checkpoint, rows_of

from scratchlm.checkpoint import latest


def leftovers(folder):
    """Temporary files and folders anywhere in a run folder; the lock's file stays for ever."""
    return [path for path in folder.rglob(".*") if path.name != ".run.lock"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_stops_with_a_checkpoint_of_the_last_whole_step_and_says_how_to_go_on(place, name, code):
    ended = place.train("run", harm=f"{name}@7")
    assert ended.code == code, ended
    assert f"--folder {place / 'run'}" in ended.err
    assert "--resume" in ended.err
    assert "Traceback" not in ended.err
    assert checkpoint(place / "run").step in (
        1,
        2,
    )  # the second step's last micro-batch: given up or finished
    summary = json.loads((place / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["stopped_early"]
    assert not leftovers(place / "run")


def test_the_second_ctrl_c_stops_at_once_and_costs_only_what_was_not_saved(never_stopped, place):
    child = place.start("run", harm="wait@22")
    child.wait_for(place.observed("run") / "waiting")
    child.send(signal.SIGINT)
    time.sleep(0.3)
    assert child.alive()  # it waits for the end of the forward pass
    child.send(signal.SIGINT)
    ended = child.end()
    assert ended.code == 130
    assert "Traceback" not in ended.err
    newest = latest(place / "run" / "checkpoints")
    start = 0 if newest is None else checkpoint(place / "run").step
    assert start in (0, 4, 5)  # step 5 is the best validation so far; both saves may have been cut short
    place.done("run", "--resume")
    assert not leftovers(place / "run")
    assert_same_run(place, "run", never_stopped, starts=(0, start))


def begins_to_save(place, name, seconds=60):
    """Wait until a checkpoint is half-written."""
    folder = place / name / "checkpoints"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(folder.glob(".*")):
            return True
    return False


@pytest.mark.parametrize("background", ["false", "true"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_a_save_lets_the_save_end(place, name, background):
    how = ["train.save_every=1", f"train.save_in_background={background}", "train.steps=100000"]
    child = place.start("run", *how)
    assert begins_to_save(place, "run")
    child.send(getattr(signal, name))
    ended = child.end()
    assert ended.code == (143 if name == "SIGTERM" else 130), ended
    assert not leftovers(place / "run")
    saved = checkpoint(place / "run")
    assert saved.step == rows_of(place / "run", "train")[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(15))
@pytest.mark.parametrize("signals", [["SIGINT", "SIGINT"], ["SIGTERM"]], ids=["impatient", "SIGTERM"])
def test_signals_at_random_moments_of_a_run_that_always_saves(never_stopped, place, signals, number):
    draw = random.Random(number)
    child = place.start("run", "train.save_every=1", harm="wait@40")
    if number > 5:
        child.wait_for(place.observed("run") / "rank-0.jsonl")
    time.sleep(draw.uniform(0, 0.5 if number > 5 else 2))
    for name in signals:
        if child.alive():
            child.send(getattr(signal, name))
        time.sleep(draw.uniform(0, 0.02))
    (place.observed("run") / "go").touch()
    # the last three: so early that the command line had not begun to listen
    early = (-signal.SIGINT, -signal.SIGTERM, 1) if number <= 5 else ()
    assert child.end().code in (130, 143, *early)
    folder = place / "run"
    saved = latest(folder / "checkpoints")
    start = 0 if saved is None else checkpoint(folder).step
    again = ["--resume"] if (folder / "config.json").exists() else []
    place.done("run", "train.save_every=1", *again)
    assert not leftovers(folder)
    assert_same_run(place, "run", never_stopped, starts=(0, start))


def test_a_full_disk_keeps_the_old_checkpoint_and_names_the_place(never_stopped, place):
    """The parameters (24 kB) fit, the moments (48 kB) do not: RLIMIT_FSIZE."""
    ended = place.train("run", limit=40_000)
    error = ended.error
    assert str(place / "run" / "checkpoints") in error
    assert "too large" in error
    assert latest(place / "run" / "checkpoints") is None
    assert not leftovers(place / "run")
    place.done("run", "--resume")
    assert_same_run(place, "run", never_stopped, starts=(0, 0))
