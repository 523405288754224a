"""Several processes: two in one folder, two that share the work, one that is lost."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from real_runs import (
    FORWARDS,
    PLUGIN,
    ROWS,
    JsonLines,
    Place,
    assert_equal_bits,
    assert_same_run,
    checkpoint,
    figures,
    losses,
    rows_of,
    sample_order,
)

pytestmark = pytest.mark.distributed

SHARE = FORWARDS // 2
"""Forward passes of each of two processes in a step."""

TWO = {"fresh": True, "all_cores": True}
"""How nproc=2 is run: as a command of its own, on as many cores."""

OWN_TEXT = ["corpus.name=files", 'corpus.paths=["text.txt"]']

ROUNDING = 1e-5
"""Two processes add the same gradients in another order; measured over 12 steps: 7e-8 of the loss."""


def weights(place, name, rank, command=0):
    """A hash of all parameters before each forward pass of a process."""
    return [row["weights"] for row in JsonLines(place.observed(name, command) / f"rank-{rank}.jsonl").rows()]


def test_a_second_process_in_the_same_folder_is_refused_and_the_first_is_not_disturbed(never_stopped, place):
    first = place.start("run", harm="wait@21")
    first.wait_for(place.observed("run") / "waiting")
    error = place.train("run", "--resume").error
    assert f"process {first.process.pid} on " in error
    assert f"{place / 'run'}: " in error
    assert "stop it" in error
    assert "holds an interrupted run" in place.train("run").error
    (place.observed("run") / "go").touch()
    assert first.end().code == 0
    assert_same_run(place, "run", never_stopped, starts=(0,))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes; on the second alone the gradient of step 6 is no number."""
    place = Place(tmp_path_factory.mktemp("two"))
    ended = place.train("run", "train.save_every=1", "nproc=2", harm=f"nan-gradient@{5 * SHARE}/1", **TWO)
    assert (ended.code, ended.err) == (0, ""), ended
    yield place, ended
    place.close()


def test_two_processes_read_the_rows_of_one_in_the_same_order(two, never_stopped):
    place, _ = two
    assert len(list(place.observed("run").glob("rank-*"))) == 2
    assert sample_order(place, "run") == sample_order(never_stopped, "whole")


def test_two_processes_lose_what_one_loses(two, never_stopped):
    """With dropout: masks are drawn for a micro-batch, whoever computes it. Until the step left out."""
    place, _ = two
    assert losses(place / "run")[:5] == pytest.approx(losses(never_stopped / "whole")[:5], rel=ROUNDING)


def test_a_gradient_that_is_no_number_on_one_process_is_left_out_on_both(two):
    place, _ = two
    (row,) = rows_of(place / "run", "skip")
    assert row["step"] == 6
    before, after = checkpoint(place / "run", 5), checkpoint(place / "run", 6)
    for group in ("model", "optimizer"):
        for name, tensor in before.tensors[group].items():
            assert tensor.equal(after.tensors[group][name]), name
    assert before.state["optimizer"] == after.state["optimizer"]
    for rank in (0, 1):
        seen = weights(place, "run", rank)
        assert seen[5 * SHARE] == seen[6 * SHARE] != seen[7 * SHARE]


def test_the_copies_of_two_processes_never_drift_apart_by_a_bit(two):
    place, _ = two
    assert weights(place, "run", 0) == weights(place, "run", 1)
    assert len(weights(place, "run", 0)) == 12 * SHARE


def test_only_the_first_process_prints_and_writes(two):
    place, ended = two
    assert ended.out.count("step 1/12:") == 1
    assert ended.out.count("The report:") == 1
    assert [row["step"] for row in rows_of(place / "run", "valid")] == [5, 10, 12]
    assert checkpoint(place / "run").identity["world_size"] == 2


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """As "two", but the second process is killed in step 11, and then told to stop in step 10.

    Checkpoints are written in the foreground, so that the one of step 8 is there.
    """
    place = Place(tmp_path_factory.mktemp("disturbed"))
    settings = ("train.save_every=8", "train.save_best=false", "train.save_in_background=false", "nproc=2")
    harm = f"nan-gradient@{5 * SHARE}/1 lost@{10 * SHARE + 1}/1 then-SIGTERM@{SHARE}/1"
    yield place, place.train("run", *settings, harm=harm, **TWO)
    place.close()


def test_a_lost_process_is_named_and_all_start_again_from_the_last_checkpoint(disturbed):
    place, ended = disturbed
    first, *_ = ended.err.splitlines()
    assert first == "process 1 was killed by SIGKILL; all start again from the last checkpoint (1 of 3)."
    (resumed,) = rows_of(place / "run", "resume")
    assert resumed["step"] == 8


def test_sigterm_on_one_process_stops_all_after_the_same_step_with_one_checkpoint(disturbed):
    place, ended = disturbed
    assert ended.code == 143, ended
    _, *lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("stopped after step 10; go on with: scratchlm train ")
    found = sorted(path.name for path in (place / "run" / "checkpoints").glob("step-*"))
    assert found == ["step-0000008", "step-0000010"]


def test_what_was_lost_and_started_again_equals_what_was_not_bit_for_bit(disturbed, two):
    (place, _), (undisturbed, _) = disturbed, two
    assert_equal_bits(checkpoint(place / "run"), checkpoint(undisturbed / "run", 10))
    kept = [row for row in figures(undisturbed / "run") if row[0] == "train" and row[1] <= 10]
    assert [row for row in figures(place / "run") if row[0] == "train"] == kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (["train.steps=12"], ["train.steps=13", "optimizer.lr=1e-3"]),
            "another configuration than process 0: optimizer.lr=0.001 instead of 0.005, train.steps=13 "
            "instead of 12. Start all processes with the same words",
        ),
        # both read what lies in their own folder, as two machines without a common one do
        ((OWN_TEXT, OWN_TEXT), "another corpus than process 0: tokenizer="),
    ],
    ids=["configuration", "corpus"],
)
def test_processes_with_other_settings_or_data_are_refused_with_what_differs(place, settings, message):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OBSERVED": str(place.path), "HARM": "", "NO_COLOR": "1"}
    children, last = [], ["-o", "run", "--plugin", str(PLUGIN)]
    for rank, own in enumerate(settings):
        folder = place / f"machine-{rank}"
        folder.mkdir()
        (folder / "text.txt").write_text(
            f"{rank} and some more of the {rank} text.\n" * 400, encoding="utf-8"
        )
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "scratchlm", "train", str(place / "tiny.toml"), *own, *last],
                cwd=folder,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for child in children:
            _, text = child.communicate(timeout=120)
            assert child.returncode == 2
            assert text.startswith(f"error: process 1 has {message}")
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.slow
def test_one_then_two_then_one_process_keep_the_order_and_the_losses(never_stopped, place):
    assert place.train("run", harm=f"SIGTERM@{3 * FORWARDS + 1}").code == 143
    # torchrun hands a signal on to all; here it reaches one of them only, and both stop after the same step
    stopped = place.train("run", "--resume", harm=f"SIGTERM@{4 * SHARE}/1", processes=2)
    assert stopped.code != 0
    assert checkpoint(place / "run").step == 8
    assert checkpoint(place / "run").identity["world_size"] == 2
    place.done("run", "--resume")
    assert sample_order(place, "run", (0, 3, 8)) == sample_order(never_stopped, "whole")
    assert losses(place / "run") == pytest.approx(losses(never_stopped / "whole"), rel=ROUNDING)


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_equal_two_never_stopped_bit_for_bit(place):
    place.done("whole", processes=2)
    assert place.train("run", harm=f"SIGTERM@{5 * SHARE}", processes=2).code != 0
    place.done("run", "--resume", processes=2)
    assert_same_run(place, "run", place, starts=(0, 6))


@pytest.mark.slow
def test_torchrun_told_to_stop_stops_all_with_one_checkpoint(never_stopped, place):
    child = place.start("run", harm=f"wait@{5 * SHARE}/0", processes=2)
    child.wait_for(place.observed("run") / "waiting")
    child.send(signal.SIGTERM)
    (place.observed("run") / "go").touch()
    ended = child.end()
    assert ended.code != 0  # torchrun ends with its own code; the summary says what happened
    assert checkpoint(place / "run").step == 6
    assert "Traceback" not in ended.out
    place.done("run", "--resume")
    assert losses(place / "run") == pytest.approx(losses(never_stopped / "whole"), rel=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_ends_the_run_which_goes_on_from_its_checkpoint(never_stopped, place, rank):
    ended = place.train("run", harm=f"SIGKILL@{9 * SHARE + 1}/{rank}", processes=2)
    assert ended.code != 0
    start = checkpoint(place / "run").step
    assert start in (4, 5, 8)
    assert not os.path.exists(place / "run" / "summary.json")
    place.done("run", "--resume", processes=2)
    assert sample_order(place, "run", (0, start)) == sample_order(never_stopped, "whole")
    assert [row["step"] for row in rows_of(place / "run", "train")] == list(range(1, 13))


@pytest.mark.slow
def test_rows_that_two_processes_cannot_share_are_refused(place):
    ended = place.train("run", "train.batch_tokens=224", "train.micro_batch_tokens=32", processes=2)
    assert ended.code != 0
    assert "7 rows cannot be shared evenly by 2 processes" in ended.err


def test_a_step_has_rows_for_both():
    assert ROWS % 2 == 0
    assert SHARE * 2 == FORWARDS
