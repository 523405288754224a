"""A whole run at tiny size: it learns, it is recorded, it stops and goes on bit for bit."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import losses, tiny, weights

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.evaluate.likelihood import Likelihood
from scratchlm.runtime import set_seed
from scratchlm.train import aim, recipes
from scratchlm.train.events import Sampled, StepEnded, Validated
from scratchlm.train.folder import load_run
from scratchlm.train.metrics import JsonLines
from scratchlm.train.plan import make_plan
from scratchlm.train.run import run
from scratchlm.train.session import NonFiniteLossError
from scratchlm.train.trainer import largest_divisor


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    torch.set_num_threads(1)
    run(tiny(), path)
    return path


def test_the_run_folder_holds_the_whole_record(finished):
    names = {"config.json", "environment.json", "metrics.jsonl", "samples.jsonl", "summary.json"}
    assert names <= {file.name for file in finished.iterdir()}
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    rows = losses(finished)
    assert [step for kind, step, _ in rows if kind == "train"] == list(range(1, 13))
    assert [step for kind, step, _ in rows if kind == "valid"] == [4, 8, 12]
    assert summary["best_valid_loss"] == min(loss for kind, _, loss in rows if kind == "valid")
    assert summary["floor_loss"] < summary["best_valid_loss"]
    assert summary["tokens"] == 12 * 512


def test_it_learns(finished):
    train = [loss for kind, _, loss in losses(finished) if kind == "train"]
    assert train[-1] < train[0] - 0.3


def test_samples_carry_each_tokens_probability(finished):
    rows = JsonLines(finished / "samples.jsonl").rows()
    assert [row["step"] for row in rows] == [2, 6, 12]
    for row in rows:
        assert "".join(token["text"] for token in row["tokens"]) == row["text"]
        assert all(0 <= token["probability"] <= 1 for token in row["tokens"])


def test_a_finished_run_loads_and_generates_what_it_learned(finished):
    loaded = load_run(finished, device="cpu")
    assert loaded.step == 12
    assert all(
        torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in weights(finished).items()
    )


def test_any_kept_checkpoint_can_be_read_and_a_missing_one_is_named(tmp_path):
    run(tiny("train.save_every=4", "train.keep_checkpoints=2"), tmp_path / "run")
    steps = {which: load_run(tmp_path / "run", checkpoint=which).step for which in ("newest", "8", "best")}
    assert steps == {"newest": 12, "8": 8, "best": 12}
    with pytest.raises(ValueError, match=r"checkpoint of step 3 is not there; those of step 8, 12 are"):
        load_run(tmp_path / "run", checkpoint="3")
    with pytest.raises(ValueError, match="newest, best or the number of a step"):
        load_run(tmp_path / "run", checkpoint="last")


def best_and_saved(tmp_path, monkeypatch, losses, *settings):
    """Train while the validations find these losses; return the best checkpoint's step and all that stay."""
    found = iter(losses)

    def validate(model, dataset, **how):
        return Likelihood(next(found), 1.0, 1.0, 1, 1)

    monkeypatch.setattr(aim, "evaluate_split", validate)
    run(tiny("train.eval_every=2", "train.keep_checkpoints=1", *settings), tmp_path / "run")
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    return load_run(tmp_path / "run", checkpoint="best").step, kept


@pytest.mark.parametrize(
    ("losses", "settings", "best", "kept"),
    [
        # validated after 2, 4, 6, 8, 10, 12; saved after 4, 8, 12, and after 6 for it is the best
        ([9.0, 8.0, 5.0, 7.0, 6.0, 8.0], (), 6, [6, 12]),
        ([9.0, 8.0, 5.0, 7.0, 6.0, 8.0], ("train.save_best=false",), 8, [8, 12]),
        ([1.0, 8.0, 9.0, 9.0, 9.0, 9.0], (), 4, [4, 12]),  # the first was before anything is saved
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], (), 12, [12]),
        # a part of the split on the way: the last one of a part, then the whole, which is harder or easier
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 8.0], ("train.eval_tokens=64",), 12, [12]),
        ([9.0, 8.0, 5.0, 7.0, 6.0, 5.5, 4.0], ("train.eval_tokens=64",), 6, [6, 12]),
    ],
)
def test_the_best_validated_checkpoint_is_there(tmp_path, monkeypatch, losses, settings, best, kept):
    assert best_and_saved(tmp_path, monkeypatch, losses, *settings) == (best, kept)


def test_averaged_weights_are_what_a_run_with_them_writes_with(tmp_path):
    run(tiny("train.ema_decay=0.5"), tmp_path / "run")
    saved = weights(tmp_path / "run", group="ema")
    loaded = dict(load_run(tmp_path / "run").model.named_parameters())
    assert all(torch.equal(saved[name], parameter) for name, parameter in loaded.items())
    assert not all(torch.equal(tensor, loaded[name]) for name, tensor in weights(tmp_path / "run").items())


@pytest.mark.parametrize("stop_at", [1, 6, 11])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(finished, tmp_path, stop_at):
    def stop(event: object) -> None:
        if isinstance(event, StepEnded) and event.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "stopped"
    summary = run(tiny("model.dropout=0.0"), path, on_event=stop)
    assert summary["stopped_early"]
    assert summary["steps"] == stop_at
    torch.manual_seed(12345)
    run(tiny(), path, resume=True)
    expected = weights(finished)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(path).items())
    assert [row for row in losses(path) if row[0] == "train"] == [
        row for row in losses(finished) if row[0] == "train"
    ]


def test_resume_is_bit_identical_with_dropout_and_accumulation(tmp_path):
    settings = ("model.dropout=0.2", "train.micro_batch_tokens=128")
    run(tiny(*settings), tmp_path / "whole")

    def stop(event: object) -> None:
        if isinstance(event, StepEnded) and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    run(tiny(*settings), tmp_path / "parts", on_event=stop)
    run(tiny(*settings), tmp_path / "parts", resume=True)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "parts").items())


def test_a_resumed_run_draws_the_random_numbers_that_the_first_would_have_drawn(tmp_path):
    """Python's, NumPy's and torch's: whatever part of a run draws from them, also one of a plug-in."""
    drawn: dict[str, dict[int, list[float]]] = {"whole": {}, "parts": {}}

    def draws(name: str, stop_at: int = 0):
        def watch(event: object) -> None:
            if isinstance(event, StepEnded):
                numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]
                drawn[name][event.step] = numbers
                if event.step == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)

        return watch

    run(tiny("train.steps=6"), tmp_path / "whole", on_event=draws("whole"))
    run(tiny("train.steps=6"), tmp_path / "parts", on_event=draws("parts", stop_at=3))
    set_seed(999)
    run(tiny("train.steps=6"), tmp_path / "parts", resume=True, on_event=draws("parts"))
    assert sorted(drawn["parts"]) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        assert drawn["parts"][step][:2] == drawn["whole"][step][:2]
    assert drawn["parts"][4] == drawn["whole"][4]


def test_a_checkpoint_is_float32_whatever_the_products_are(tmp_path):
    run(tiny("train.precision=bfloat16", "train.steps=2", "optimizer=muon"), tmp_path / "run")
    for group in ("model", "optimizer"):
        found = weights(tmp_path / "run", group=group)
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}, group


def test_a_plan_knows_what_the_checkpoints_take_on_the_disk(tmp_path):
    words = ("model.d_model=64", "train.steps=6", "train.save_every=2", "train.keep_every=2")
    run(tiny(*words), tmp_path / "run")
    files = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    taken = sum(path.stat().st_size for path in files)
    assert make_plan(tiny(*words), vocab_size=400).disk_bytes == pytest.approx(taken, rel=0.2)


def test_micro_batches_change_the_arithmetic_only_by_rounding(finished, tmp_path):
    run(tiny("train.micro_batch_tokens=64", "train.steps=4"), tmp_path / "small")
    run(tiny("train.micro_batch_tokens=512", "train.steps=4"), tmp_path / "large")
    small, large = losses(tmp_path / "small"), losses(tmp_path / "large")
    assert [row[2] for row in small] == pytest.approx([row[2] for row in large], rel=1e-4)


def test_sizes_of_layers_are_written_down_at_intervals_and_change_nothing(finished, tmp_path):
    run(tiny("train.statistics_every=5"), tmp_path / "measured")
    rows = [
        row
        for row in JsonLines(tmp_path / "measured" / "metrics.jsonl").rows()
        if row["kind"] == "statistics"
    ]
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[0]["layers"]["layers.0.attn"].keys() >= {"weight", "gradient", "activation"}
    expected = weights(finished)
    measured = weights(tmp_path / "measured")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in measured.items())


def test_the_average_of_weights_is_what_is_measured_saved_and_continued(tmp_path):
    settings = ("train.ema_decay=0.9", "train.eval_every=6")
    run(tiny(*settings), tmp_path / "whole")

    def stop(event: object) -> None:
        if isinstance(event, StepEnded) and event.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    run(tiny(*settings), tmp_path / "parts", on_event=stop)
    run(tiny(*settings), tmp_path / "parts", resume=True)
    whole, parts = (latest(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    averages = load_checkpoint(whole).tensors["ema"], load_checkpoint(parts).tensors["ema"]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert not all(
        torch.equal(tensor, averages[0][name]) for name, tensor in weights(tmp_path / "whole").items()
    )


def test_events_tell_the_whole_story(tmp_path):
    events: list[object] = []
    run(tiny("train.steps=4"), tmp_path / "run", on_event=events.append)
    assert [event.step for event in events if isinstance(event, StepEnded)] == [1, 2, 3, 4]
    validated = [event for event in events if isinstance(event, Validated)]
    assert validated[-1].floor_loss is not None
    assert validated[-1].best
    assert len([event for event in events if isinstance(event, Sampled)]) == 2


def test_an_occupied_folder_is_not_overwritten(finished):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        run(tiny(), finished)
    assert (finished / "config.json").read_bytes() == before


def test_resume_refuses_settings_that_change_the_meaning(finished):
    with pytest.raises(ValueError, match=r"model: .*start a new folder"):
        run(tiny("model.d_model=64"), finished, resume=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        run(tiny(), finished / "nowhere", resume=True)


def test_a_run_whose_loss_stays_no_number_stops_and_leaves_the_batches(tmp_path):
    wild = ("optimizer.lr=1e30", "train.grad_clip=0.0", "schedule=constant", "train.guard.max_skipped=3")
    with pytest.raises(NonFiniteLossError, match=r"the last of 3 steps left out in a row.*read is in"):
        run(tiny(*wild), tmp_path / "wild")
    skipped = [row for row in JsonLines(tmp_path / "wild" / "metrics.jsonl").rows() if row["kind"] == "skip"]
    assert len(skipped) == 3
    (dump,) = (tmp_path / "wild").glob("unusable-batches-*.jsonl")
    batches = [json.loads(line) for line in dump.read_text(encoding="utf-8").splitlines()]
    assert [batch["step"] for batch in batches] == [row["step"] for row in skipped]
    assert [batch["data_step"] for batch in batches] == [row["data_step"] for row in skipped]
    assert all(len(batch["ids"]) == len(batch["starts"]) == 512 // 64 for batch in batches)


def test_somebodys_own_text_becomes_a_model(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The cat sat on the mat. The dog sat on the log.\n" * 400, encoding="utf-8")
    config = recipes.for_text([text], ["train.steps=5", "train.compile=false"])
    summary = run(config, tmp_path / "run")
    assert summary["corpus"] == "files"
    assert summary["floor_loss"] is None


def test_own_text_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        recipes.for_text([tmp_path / "nothing.txt"])
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.txt: empty"):
        recipes.for_text([tmp_path / "empty.txt"])


def test_a_mistyped_recipe_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'demoo'\. Did you mean 'demo'"):
        recipes.read("demoo")


def test_batches_that_are_no_whole_rows_are_refused():
    with pytest.raises(ValueError, match=r"is no multiple of model\.context_length=64; the nearest is 512"):
        tiny("train.batch_tokens=500")


def test_largest_divisor():
    assert largest_divisor(24, 10) == 8
    assert largest_divisor(7, 3) == 1
    assert largest_divisor(6, 100) == 6
