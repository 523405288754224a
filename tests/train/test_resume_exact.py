"""Stop and resume equals never stopped, bit for bit: real processes, real signals."""

import random
import signal
import time

import pytest
from real_runs import (
    FORWARDS,
    ROWS,
    assert_equal_bits,
    assert_same_run,
    checkpoint,
    figures,
    losses,
    rows_of,
    sample_order,
)

from scratchlm.checkpoint import latest

STEPS = 12

OTHER_PARTS = {
    "bfloat16": ["train.precision=bfloat16"],
    "windows": ["batches.name=windows"],
    "epochs-sgd": ["batches.name=epochs", "optimizer.name=sgd"],
    "packed-masked": ["batches.name=packed", "train.document_mask=true"],
    "muon-average": ["optimizer.name=muon", "train.ema_decay=0.9"],
    "lion-wsd": ["optimizer.name=lion", "optimizer.lr=1e-3", "schedule.name=wsd"],
    "losses": ["train.z_loss=1e-4", "train.label_smoothing=0.1", "train.gradient_checkpointing=true"],
    "foreground": ["train.save_in_background=false", "train.keep_checkpoints=1"],
}


def during(step, micro_batch=0, what="SIGTERM"):
    """Harm in the forward pass of one micro-batch of a step; both count from 0."""
    return f"{what}@{step * FORWARDS + micro_batch}"


def test_the_run_compared_with_covers_what_the_tests_claim(never_stopped):
    """Else equality would say little: several epochs, several micro-batches, dropout that matters."""
    folder = never_stopped / "whole"
    assert len(figures(folder)) == STEPS + 3  # validated after steps 5, 10, 12
    order = sample_order(never_stopped, "whole")
    assert [len(rows) for rows in order] == [ROWS] * STEPS
    seen = [row for rows in order for row in rows]
    most = max(seen.count(row) for row in seen)
    assert most >= 3, "the run ends in its first epochs"


def test_stopped_in_the_middle_of_an_accumulation_and_resumed_equals_never_stopped(never_stopped, place):
    stopped = place.train("parts", harm=during(5, 2))
    assert stopped.code == 143, stopped
    assert checkpoint(place / "parts").step == 5  # the step that was begun left no trace
    place.done("parts", "--resume")
    assert_same_run(place, "parts", never_stopped, starts=(0, 5))


def test_killed_and_resumed_equals_never_stopped_without_a_row_twice(never_stopped, place):
    killed = place.train("parts", harm=during(9, 1, "SIGKILL"))
    assert killed.code == -9, killed
    assert rows_of(place / "parts", "train")[-1]["step"] == 9
    at = checkpoint(place / "parts").step
    assert at in (4, 5, 8)  # of step 5 as the best validated
    with (place / "parts" / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"kind": "train", "step": 10, "lo')  # a line that the kill tore
    place.done("parts", "--resume")
    assert_same_run(place, "parts", never_stopped, starts=(0, at))
    assert [row["step"] for row in rows_of(place / "parts", "train")] == list(range(1, STEPS + 1))


def test_other_micro_batches_after_a_resume_keep_the_order_and_the_losses(place):
    """Without dropout, whose masks are drawn for a micro-batch; only rounding differs (measured: 1.2e-7)."""
    place.done("whole", "model.dropout=0")
    place.train("parts", "model.dropout=0", harm=during(5, 1))
    place.done("parts", "model.dropout=0", "train.micro_batch_tokens=128", "--resume")
    assert sample_order(place, "parts", (0, 5)) == sample_order(place, "whole")
    assert losses(place / "parts") == pytest.approx(losses(place / "whole"), rel=1e-5)
    assert len(rows_of(place / "parts", "train")) == STEPS


@pytest.mark.slow
def test_a_run_stopped_in_every_step_equals_never_stopped(never_stopped, place):
    """Each command is stopped in the step after its first, at another micro-batch every time."""
    starts = [0]
    while (at := starts[-1]) < STEPS - 2:
        how = "SIGINT" if at % 2 else "SIGTERM"
        resume = ["--resume"] if at else []
        stopped = place.train("parts", *resume, harm=during(1, at % FORWARDS, how))
        assert stopped.code == (130 if at % 2 else 143), stopped
        starts.append(checkpoint(place / "parts").step)
        assert starts[-1] > at
    place.done("parts", "--resume")
    assert_same_run(place, "parts", never_stopped, starts=tuple(starts))


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", range(0, STEPS * FORWARDS, 5))
def test_stopped_anywhere_equals_never_stopped(never_stopped, place, stop_at):
    assert place.train("parts", harm=f"SIGTERM@{stop_at}").code == 143
    start = checkpoint(place / "parts").step
    assert start in (stop_at // FORWARDS, stop_at // FORWARDS + 1)
    place.done("parts", "--resume")
    assert_same_run(place, "parts", never_stopped, starts=(0, start))


@pytest.mark.slow
def test_killed_fifty_times_at_random_moments_of_a_run_that_always_saves_equals_never_stopped(place):
    long = ("train.steps=600", "train.save_every=1", "train.keep_checkpoints=2", "train.eval_every=100")
    place.done("whole", *long)
    draw, starts = random.Random(0), []
    for _ in range(50):
        resume = ["--resume"] if starts else []
        starts.append(latest_step(place))
        child = place.start("parts", *long, *resume)
        child.wait_for(place.observed("parts", len(starts) - 1) / "rank-0.jsonl")
        time.sleep(draw.uniform(0, 0.3))
        child.send(signal.SIGKILL)
        assert child.end().code in (-signal.SIGKILL, 0)
    starts.append(latest_step(place))
    assert starts == sorted(starts)
    assert starts[-1] > 50
    place.done("parts", *long, "--resume")
    assert_same_run(place, "parts", place, starts=tuple(starts))


def latest_step(place):
    newest = latest(place / "parts" / "checkpoints")
    return 0 if newest is None else checkpoint(place / "parts").step


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[] if name == "bfloat16" else pytest.mark.slow)
        for name, settings in OTHER_PARTS.items()
    ],
)
def test_resume_is_exact_with_other_parts(place, settings):
    place.done("whole", *settings)
    assert place.train("parts", *settings, harm=during(6, 3)).code == 143
    start = checkpoint(place / "parts").step
    place.done("parts", *settings, "--resume")
    assert_same_run(place, "parts", place, starts=(0, start))


@pytest.mark.slow
def test_resume_is_exact_in_fresh_processes_with_all_cores(place):
    """As people run it: python -m scratchlm, as many threads as there are cores."""
    place.done("whole", fresh=True, all_cores=True)
    assert place.train("parts", harm=during(6, 3), fresh=True, all_cores=True).code == 143
    start = checkpoint(place / "parts").step
    place.done("parts", "--resume", fresh=True, all_cores=True)
    assert_same_run(place, "parts", place, starts=(0, start))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_continues_the_run(never_stopped, place):
    place.train("parts", harm=during(6, 0))
    newest = place / "parts" / "checkpoints" / "step-0000006"
    damaged = max(newest.glob("optimizer*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = place.train("parts", "--resume")
    assert resumed.code == 0, resumed
    assert str(damaged) in resumed.err + resumed.out
    assert_same_run(place, "parts", never_stopped, starts=(0, 5))
    assert_equal_bits(checkpoint(place / "parts", 12), checkpoint(never_stopped / "whole", 12))
