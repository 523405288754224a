"""A run that goes on: what must not be lost stays, what is written again is not there twice."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from tiny_runs import losses, rows_of, tiny, weights

from scratchlm.checkpoint import CheckpointError, latest
from scratchlm.checkpoint.reader import CheckpointReader
from scratchlm.evaluate.likelihood import Likelihood
from scratchlm.train import aim, session
from scratchlm.train.events import StepEnded
from scratchlm.train.folder import RunFolder, load_run
from scratchlm.train.guard import Guard, Judgement
from scratchlm.train.metrics import JsonLines
from scratchlm.train.record import Record, TokensRead
from scratchlm.train.run import run
from scratchlm.train.session import NonFiniteLossError
from scratchlm.train.snapshot import Progress
from scratchlm.train.trainer import StepResult


class KilledError(BaseException):
    """Stands for kill -9: nobody catches it."""


def die(*_, **__):
    raise KilledError


def killed_behind(step):
    """A watcher that ends the run behind a step, without a word."""

    def watch(event):
        if isinstance(event, StepEnded) and event.step == step:
            die()

    return watch


def stopped_behind(step):
    """A watcher that stops the run behind a step as a cluster does."""

    def watch(event):
        if isinstance(event, StepEnded) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def kill(path, step, *settings, **how):
    with pytest.raises(KilledError):
        run(tiny(*settings), path, on_event=killed_behind(step), **how)


def validations(monkeypatch, find):
    """Let validations find what `find(max_tokens)` says."""

    def validate(model, dataset, *, max_tokens, **how):
        return Likelihood(find(max_tokens), 1.0, 1.0, 1, 1)

    monkeypatch.setattr(aim, "evaluate_split", validate)


def judging(monkeypatch, unusual):
    """Let the guard judge its n-th step of a process as `unusual[n]` says."""
    judge, count = Guard._judge, iter(range(1, 1000))
    monkeypatch.setattr(Guard, "_judge", lambda *numbers: unusual.get(next(count)) or judge(*numbers))


def test_where_no_checkpoint_can_be_read_whole_nothing_begins_again_and_nothing_is_removed(tmp_path):
    kill(tmp_path / "run", 9)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        data = bytearray((folder / "optimizer.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "optimizer.safetensors").write_bytes(data)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"none of its .* whole \(step-0000004, step-0000008\); mend"):
        run(tiny(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_before_the_first_checkpoint_a_run_begins_at_the_first_step(tmp_path):
    kill(tmp_path / "run", 3)
    run(tiny(), tmp_path / "run", resume=True)
    assert [step for kind, step, _ in losses(tmp_path / "run") if kind == "train"] == list(range(1, 13))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train.device=cuda:3", "cuda:3"),
        ("train.steps=5", r"8 steps are done, more than train\.steps=5; give"),
    ],
)
def test_a_refused_resume_leaves_the_settings_as_they_were(tmp_path, words, message):
    kill(tmp_path / "run", 9)
    files = [tmp_path / "run" / name for name in ("config.json", "plan.json")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(ValueError, match=message):
        run(tiny(words, "train.compile=true"), tmp_path / "run", resume=True)
    assert [file.read_bytes() for file in files] == before
    assert run(tiny(), tmp_path / "run", resume=True)["steps"] == 12


def test_which_settings_changed_stays_in_the_record_also_when_the_run_is_killed_again(tmp_path):
    kill(tmp_path / "run", 5)
    kill(tmp_path / "run", 6, "optimizer.lr=1e-2", resume=True, allow_changes=True)
    run(tiny("optimizer.lr=1e-2"), tmp_path / "run", resume=True)
    first, second = rows_of(tmp_path / "run", "resume")
    assert first["changes"] == {"optimizer.lr": [0.02, 0.01]}
    assert second["changes"] == {}
    assert [row["step"] for row in rows_of(tmp_path / "run", "train")] == list(range(1, 13))


def test_every_rollback_stays_in_the_record(tmp_path, monkeypatch):
    # after steps 1 to 9 the tenth spikes: back to 8; then 9 and again the tenth: back to 8 once more
    judging(monkeypatch, {10: Judgement("rollback", "first"), 12: Judgement("rollback", "second")})
    summary = run(tiny(), tmp_path / "run")
    assert [row["reason"] for row in rows_of(tmp_path / "run", "rollback")] == ["first", "second"]
    assert summary["rollbacks"] == 2
    assert [row["step"] for row in rows_of(tmp_path / "run", "train")] == list(range(1, 13))


def test_a_rollback_that_a_killed_run_will_do_again_stands_once(tmp_path, monkeypatch):
    judging(monkeypatch, {10: Judgement("rollback", "spiked")})
    kill(tmp_path / "run", 9, "train.guard.max_rollbacks=1")  # the second time it is there
    monkeypatch.undo()
    judging(monkeypatch, {2: Judgement("rollback", "spiked")})
    run(tiny("train.guard.max_rollbacks=1"), tmp_path / "run", resume=True)
    assert len(rows_of(tmp_path / "run", "rollback")) == 1


def test_a_rollback_without_a_checkpoint_is_a_step_left_out_like_others(tmp_path, monkeypatch):
    judging(monkeypatch, {number: Judgement("rollback", "spiked") for number in range(2, 9)})
    with pytest.raises(NonFiniteLossError, match="spiked, the last of 3 steps left out in a row"):
        run(tiny("train.guard.max_skipped=3", "train.save_every=100"), tmp_path / "run")
    assert [row["step"] for row in rows_of(tmp_path / "run", "skip")] == [2, 3, 4]


def test_a_run_killed_before_its_summary_is_written_has_no_row_twice(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(session, "summarise", die)
        with pytest.raises(KilledError):
            run(tiny(), tmp_path / "run")
    assert latest(tmp_path / "run" / "checkpoints").name == "step-0000012"
    run(tiny(), tmp_path / "run", resume=True)
    run(tiny(), tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    samples = [JsonLines(tmp_path / name / "samples.jsonl").rows() for name in ("run", "whole")]
    assert samples[0] == samples[1]


def test_the_last_look_at_a_finished_run_stays_when_it_gets_more_steps(tmp_path):
    run(tiny("train.steps=6"), tmp_path / "run")
    run(tiny(), tmp_path / "run", resume=True)
    assert [row["step"] for row in rows_of(tmp_path / "run", "valid")] == [4, 6, 8, 12]
    assert [row["step"] for row in JsonLines(tmp_path / "run" / "samples.jsonl").rows()] == [2, 6, 12]


def test_a_run_stopped_right_behind_a_validation_has_it_once(tmp_path):
    run(tiny(), tmp_path / "run", on_event=stopped_behind(8))
    assert [row["step"] for row in rows_of(tmp_path / "run", "valid")] == [4, 8]


def test_a_crash_in_the_last_validation_costs_no_step(tmp_path, monkeypatch):
    looks = iter([2.0, 1.0])
    validations(monkeypatch, lambda max_tokens: next(looks, None) or die())
    with pytest.raises(KilledError):
        run(tiny(), tmp_path / "run")
    assert latest(tmp_path / "run" / "checkpoints").name == "step-0000012"


def test_losses_on_another_part_of_the_split_are_not_compared(tmp_path, monkeypatch):
    validations(monkeypatch, {64: 1.0, 128: 3.0, None: 5.0}.get)
    kill(tmp_path / "run", 9, "train.eval_tokens=64")
    assert load_run(tmp_path / "run", checkpoint="best").step == 4
    kill(tmp_path / "run", 10, "train.eval_tokens=128", resume=True)
    run(tiny("train.eval_tokens=128"), tmp_path / "run", resume=True)
    assert load_run(tmp_path / "run", checkpoint="best").step == 12


def test_a_step_that_was_saved_before_it_was_the_best_is_remembered(tmp_path, monkeypatch):
    looks = iter([5.0, 6.0, 4.0])
    validations(monkeypatch, lambda max_tokens: next(looks))
    run(tiny(), tmp_path / "run", on_event=stopped_behind(7))
    run(tiny("train.steps=7"), tmp_path / "run", resume=True)
    assert load_run(tmp_path / "run", checkpoint="best").step == 7


def test_a_dump_that_cannot_be_written_hides_neither_the_loss_nor_the_checkpoint(
    tmp_path, monkeypatch, caplog
):
    def full(path, *rest):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(session, "write_batches", full)
    judging(monkeypatch, {6: Judgement("stop", "the loss is nan")})
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        run(tiny(), tmp_path / "run")
    assert latest(tmp_path / "run" / "checkpoints").name == "step-0000006"
    assert "unusable-batches-0000006.jsonl could not be written (No space left on device)" in caplog.text


@pytest.mark.parametrize("words", ["schedule.floor=5", "optimizer.betas=[1, 2]"])
def test_values_out_of_range_are_told_before_anything_is_prepared(tmp_path, words):
    with pytest.raises(ValueError, match=r"floor=5\.0|betas"):
        run(tiny(words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_stopped_for_unusable_steps_may_try_as_many_again(tmp_path, monkeypatch):
    bad = {number: Judgement("skip", "the loss is nan") for number in (6, 7)}
    judging(monkeypatch, bad)
    with pytest.raises(NonFiniteLossError):
        run(tiny("train.guard.max_skipped=2"), tmp_path / "run")
    monkeypatch.undo()
    judging(monkeypatch, {1: bad[6]})
    assert run(tiny("train.guard.max_skipped=2"), tmp_path / "run", resume=True)["skipped_steps"] == 3


def test_a_finished_run_that_gets_more_steps_is_finished_no_more(tmp_path):
    run(tiny("train.steps=6"), tmp_path / "run")
    kill(tmp_path / "run", 9, resume=True)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_damaged_summary_costs_no_weights(tmp_path, caplog):
    run(tiny("train.steps=2"), tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{", encoding="utf-8")
    assert load_run(tmp_path / "run").summary == {}
    assert "summary.json: damaged" in caplog.text


def test_the_time_left_does_not_count_compiling_on_every_step(tmp_path):
    left, plan = [], SimpleNamespace(compile=True, step_seconds=0.5, peak=None, parameters=1)

    def watch(event):
        left.append(event.seconds_left)

    record = Record(RunFolder(tmp_path), tiny(), plan, watch, train_tokens=1, writes=True)
    for step, seconds in ((1, 60.0), (2, 1.0), (3, 3.0)):
        result = StepResult(step, step - 1, 1.0, 1e-3, 1.0, seconds, Judgement("apply"))
        record.step(result, Progress(done_steps=step), tokens=TokensRead(1, 1), figures={})
    assert left == [11 * 0.5, 10 * 1.0, 9 * 2.0]


def test_a_folder_that_is_moved_away_is_not_made_again(tmp_path):
    def move(event):
        if isinstance(event, StepEnded) and event.step == 5:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    with pytest.raises(FileNotFoundError):
        run(tiny("train.log_every=100", "train.eval_every=100"), tmp_path / "run", on_event=move)
    assert not (tmp_path / "run").exists()


def test_layers_are_measured_where_a_step_was_made_the_last_one_too(tmp_path, monkeypatch):
    judging(monkeypatch, {8: Judgement("skip", "the loss is nan")})
    run(tiny("train.statistics_every=4"), tmp_path / "run")
    rows = rows_of(tmp_path / "run", "statistics")
    assert [row["step"] for row in rows] == [4, 12]
    assert all("update" in row["layers"]["layers.0"] for row in rows)
    assert "NaN" not in json.dumps(rows)


@pytest.mark.parametrize("decay", ["0", "0.5"])
def test_loading_reads_the_weights_that_are_taken_and_no_moments(tmp_path, monkeypatch, decay):
    run(tiny(f"train.ema_decay={decay}"), tmp_path / "run")
    taken, read = "ema" if float(decay) else "model", CheckpointReader.read
    groups = []
    monkeypatch.setattr(
        CheckpointReader, "read", lambda self, group, *rest: groups.append(group) or read(self, group, *rest)
    )
    found = load_run(tmp_path / "run").model.state_dict()
    assert set(groups) == {taken}
    kept = weights(tmp_path / "run", taken)
    assert all(tensor.equal(kept[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    "words",
    [
        *("train.eval_tokens=0", "train.micro_batch_tokens=0", "train.first_sample=-3"),
        *("optimizer.lr=inf", "train.z_loss=inf", "train.grad_clip=nan", f"seed={2**63}"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_name(words):
    with pytest.raises(ValueError, match=words.partition("=")[0]):
        tiny(words)
