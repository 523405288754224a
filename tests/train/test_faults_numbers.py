"""Numbers that are none, and numbers that are too large: nothing is touched, everything is written down."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from real_runs import FORWARDS, Place, checkpoint, figures, losses, rows_of, sample_order

from scratchlm.train.session import NonFiniteLossError, Session

EVERY_STEP = ("train.save_every=1",)


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """A run whose gradient is no number in step 6, in the third micro-batch; saved after each step."""
    place = Place(tmp_path_factory.mktemp("skipped"))
    place.done("run", *EVERY_STEP, harm=f"nan-gradient@{5 * FORWARDS + 2}")
    yield place / "run"
    place.close()


def test_a_gradient_that_is_no_number_changes_no_bit_of_weights_moments_and_step_counts(skipped):
    before, after = checkpoint(skipped, 5), checkpoint(skipped, 6)
    for group in ("model", "optimizer"):
        for name, tensor in before.tensors[group].items():
            assert torch.equal(tensor, after.tensors[group][name]), name
    assert before.state["optimizer"] == after.state["optimizer"]
    later = checkpoint(skipped, 7)
    assert not torch.equal(
        next(iter(later.tensors["model"].values())), next(iter(after.tensors["model"].values()))
    )


def test_the_step_left_out_is_recorded_counted_and_costs_its_batch(skipped, never_stopped):
    (row,) = rows_of(skipped, "skip")
    assert row["step"] == 6
    assert "nan" in row["reason"]
    assert row["grad_norm"] == "nan"
    assert float(row["loss"]) > 0  # the loss was a number, the gradient was none
    assert [row["step"] for row in rows_of(skipped, "train")] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    summary = json.loads((skipped / "summary.json").read_text(encoding="utf-8"))
    assert summary["skipped_steps"] == 1
    assert losses(skipped)[:5] == losses(never_stopped / "whole")[:5]


def dumped(run: Path) -> tuple[list[dict], Path]:
    """What the steps left out in a row read, and the file that says so."""
    (path,) = run.glob("unusable-batches-*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], path


def read_by(dump: dict) -> list[str]:
    """The digests of a dumped step's rows, as `sample_order` has them."""
    return [
        hashlib.md5(torch.tensor(row, dtype=torch.int64).numpy().tobytes()).hexdigest() for row in dump["ids"]
    ]


def test_after_the_limit_the_run_stops_and_leaves_what_each_step_read(place):
    bad = " ".join(f"nan-loss@{step * FORWARDS + 1}" for step in (4, 5, 6))
    error = place.train("run", "train.guard.max_skipped=3", harm=bad).error
    assert "step 7" in error
    assert "3 steps left out in a row" in error
    assert [row["step"] for row in rows_of(place / "run", "skip")] == [5, 6, 7]
    dumps, path = dumped(place / "run")
    assert str(path) in error
    assert [dump["step"] for dump in dumps] == [5, 6, 7]
    assert [read_by(dump) for dump in dumps] == sample_order(place, "run")[4:7]
    assert all("nan" in dump["reason"] for dump in dumps)
    saved = checkpoint(place / "run")  # of the last good parameters
    good = checkpoint(place / "run", 4)
    assert all(
        torch.equal(tensor, saved.tensors["model"][name]) for name, tensor in good.tensors["model"].items()
    )


@pytest.mark.distributed
def test_two_processes_give_up_together_and_the_checkpoint_is_whole(place):
    bad = f"nan-loss@{4 * FORWARDS // 2}/1 nan-loss@{5 * FORWARDS // 2}/1"
    settings = ("train.guard.max_skipped=2", "nproc=2")
    error = place.train("run", *settings, harm=bad, fresh=True, all_cores=True).error
    assert "2 steps left out in a row" in error
    assert checkpoint(place / "run").step == 6
    assert not list((place / "run" / "checkpoints").glob(".*"))


def test_who_gives_up_leaves_when_the_others_have_saved_too(tmp_path):
    done = []
    session = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path),
        processes=SimpleNamespace(first=False, barrier=lambda: done.append("barrier")),
        _save=lambda wait: done.append(f"save, wait={wait}"),
    )
    result = SimpleNamespace(step=3, judgement=SimpleNamespace(reason="bad"))
    with pytest.raises(NonFiniteLossError, match="step 3: bad"):
        Session._give_up(session, result)
    assert done == ["save, wait=True", "barrier"]


def test_a_good_step_in_between_starts_the_count_anew(place):
    bad = " ".join(f"nan-loss@{step * FORWARDS}" for step in (2, 3, 5, 6))
    place.done("run", "train.guard.max_skipped=3", harm=bad)
    assert [row["step"] for row in rows_of(place / "run", "skip")] == [3, 4, 6, 7]


@pytest.mark.slow
def test_the_count_goes_on_over_a_resume(place):
    bad = " ".join(f"nan-loss@{step * FORWARDS}" for step in (4, 5))
    limit = "train.guard.max_skipped=3"
    assert place.train("run", limit, harm=f"{bad} SIGTERM@{6 * FORWARDS}").code == 143
    assert "3 steps left out in a row" in place.train("run", limit, "--resume", harm="nan-loss@0").error
    dumps, _ = dumped(place / "run")
    assert [dump["step"] for dump in dumps] == [5, 6, 7]
    assert [read_by(dump) for dump in dumps] == sample_order(place, "run", (0, 6))[4:7]


@pytest.mark.slow
def test_told_to_stop_it_stops_at_the_first(place):
    error = place.train("run", "train.guard.on_nonfinite=stop", harm="nan-loss@9").error
    assert "step 3" in error
    assert checkpoint(place / "run").step in (2, 3)


SPIKE = ("train.guard.window=8", "train.steps=14", "train.save_every=4", "schedule.name=constant")
AT = 9
"""The step (from 0) whose loss is far above that of the eight before it."""


def spike(place, name, on_spike, *settings, **how):
    harm = " ".join(f"spike@{AT * FORWARDS + number}" for number in range(FORWARDS))
    harm = f"{harm} {how.pop('harm', '')}"
    return place.train(name, *SPIKE, f"train.guard.on_spike={on_spike}", *settings, harm=harm, **how)


@pytest.fixture(scope="module")
def spikes(tmp_path_factory):
    """A place with the runs "rollback" and "quiet" (the same settings without the spike, and longer)."""
    place = Place(tmp_path_factory.mktemp("spikes"))
    assert spike(place, "rollback", "rollback").code == 0
    place.done("quiet", *SPIKE, "train.steps=16")
    yield place
    place.close()


def test_a_spike_goes_back_to_the_checkpoint_before_it_and_skips_the_data(spikes):
    (row,) = rows_of(spikes / "rollback", "rollback")
    assert {8, 10} <= set(row.values())  # to where, from where
    assert "loss" in row["reason"]
    summary = json.loads((spikes / "rollback" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rollbacks"], summary["spikes"], summary["steps"]) == (1, 1, 14)
    assert [row["step"] for row in rows_of(spikes / "rollback", "train")] == list(range(1, 15))
    assert figures(spikes / "rollback")[:8] == figures(spikes / "quiet")[:8]


def test_after_a_rollback_the_data_of_the_spike_never_comes_again(spikes):
    quiet, read = sample_order(spikes, "quiet"), sample_order(spikes, "rollback")
    # steps 0-9, then 8-13 again, which read what 10-15 would have read
    assert read == [*quiet[: AT + 1], *quiet[AT + 1 : AT + 7]]


@pytest.mark.slow
def test_a_run_stopped_after_a_rollback_skips_the_same_data_when_resumed(spikes, place):
    stopped = spike(place, "run", "rollback", harm=f"SIGTERM@{13 * FORWARDS + 1}")
    assert stopped.code == 143
    place.done("run", *SPIKE, "train.guard.on_spike=rollback", "--resume")
    assert figures(place / "run") == figures(spikes / "rollback")


@pytest.mark.slow
def test_a_spike_may_be_left_out(place):
    assert spike(place, "run", "skip").code == 0
    (row,) = rows_of(place / "run", "skip")
    assert row["step"] == AT + 1
    assert [row["step"] for row in rows_of(place / "run", "train")] == [*range(1, 10), *range(11, 15)]


@pytest.mark.slow
def test_a_spike_may_only_be_written_down(place):
    assert spike(place, "run", "record").code == 0
    row = rows_of(place / "run", "spike")[0]
    assert row["step"] == AT + 1
    assert row["what"] == "loss"
    assert row["value"] > row["mean"] + 6 * row["sigma"]
    assert [row["step"] for row in rows_of(place / "run", "train")] == list(range(1, 15))
