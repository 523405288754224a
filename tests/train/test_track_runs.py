"""Trackers of real runs, stopped and resumed: they show the rows of metrics.jsonl, each once."""

import json
import shutil
from importlib.util import find_spec

import pytest
from real_runs import rows_of
from wandb_files import wandb_rows

from scratchlm.checkpoint import latest

CURVES = (("train", "loss", 12), ("train", "grad_norm", 12), ("valid", "loss", 3))
"""Kind of row, what of it, how many a whole run has."""


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed ('track' extra)")


def stopped_and_resumed(place, tracker, **how):
    """A run that stops in its seventh step and goes on two steps before: steps 5 and 6 come twice."""
    track = f'train.track=["{tracker}"]'
    assert place.train("run", track, harm="SIGTERM@26", **how).code == 143
    checkpoints = place / "run" / "checkpoints"
    for step in (5, 6):
        shutil.rmtree(checkpoints / f"step-000000{step}")
    assert latest(checkpoints).name == "step-0000004"
    return place.done("run", track, "--resume", **how)


def assert_shown(found, run, kind, name, count):
    """A curve has each row once; the validation of the stop is none of a run that goes on."""
    found = [(step, value) for step, value in found if (kind, step) != ("valid", 6)]
    assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows_of(run, kind)]
    assert len(found) == count


@needs("tensorboard")
def test_tensorboard_shows_each_row_of_a_run_that_went_back_once(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = stopped_and_resumed(place, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for kind, name, count in CURVES:
        found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert_shown(found, run, kind, name, count)


@pytest.mark.slow
@needs("wandb")
def test_wandb_offline_shows_each_row_of_a_run_that_went_back_once(place, monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = stopped_and_resumed(place, "wandb", fresh=True)
    for kind, name, count in CURVES:
        found, ids = wandb_rows(run, f"{kind}/{name}")
        assert_shown(found, run, kind, name, count)
    assert ids == {json.loads((run / "tracking.json").read_text(encoding="utf-8"))["id"]}
