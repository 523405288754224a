"""A run stopped anywhere and gone on with is the run that never stopped: each stage, adapters, rollouts."""

import os
import signal

import preference_files
import pytest
import torch
from small_bases import make_base, sayings, settings, write_lines
from small_policies import grpo_settings

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.posttrain.config import DistillConfig
from scratchlm.posttrain.grpo import GROUP, Grpo
from scratchlm.posttrain.run import run
from scratchlm.train.events import Message, StepEnded
from scratchlm.train.folder import RunFolder
from scratchlm.train.metrics import JsonLines

WORDS = ("train.steps=6", "train.save_every=100", "train.eval_every=3", "kl=0.1")
"""Six steps, four of them on one rollout: two cycles, the second cut short."""
VARIANTS = {
    "full": (),
    "dora": ("adapter=dora", "adapter.rank=2"),
    "gspo": ("loss=gspo", "rollout.temperature=0.8"),
}


def settings_of(base_run, variant):
    return grpo_settings(base_run, *WORDS, *VARIANTS[variant], steps_per_rollout=2, passes=2)


@pytest.fixture(scope="module")
def whole(base_run, tmp_path_factory):
    """A run of each kind in one go, made when it is asked for."""
    made = {}

    def find(variant):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant) / "run"
            run("grpo", settings_of(base_run, variant), made[variant])
        return made[variant]

    return find


def rows_of(folder):
    timed = ("seconds", "rollout_seconds", "tokens_per_second", "mfu")
    rows = JsonLines(RunFolder(folder).metrics).rows()
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in rows
        if row["kind"] in ("train", "valid")
    ]


def assert_same(found, wanted):
    """Every number of the last checkpoints, and every row that was recorded."""
    saved, expected = (load_checkpoint(latest(folder / "checkpoints")) for folder in (found, wanted))
    assert saved.tensors.keys() == expected.tensors.keys()
    for group, tensors in expected.tensors.items():
        assert saved.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(saved.tensors[group][name], tensor), (group, name)
    assert sorted(rows_of(found), key=str) == sorted(rows_of(wanted), key=str)


def stop_behind(step):
    def stop(event):
        if isinstance(event, StepEnded) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


@pytest.mark.parametrize(
    ("variant", "stop_at"), [("full", 1), ("full", 3), ("full", 4), ("full", 5), ("dora", 3), ("gspo", 5)]
)
def test_stopped_behind_any_step_of_a_cycle(base_run, tmp_path, whole, variant, stop_at):
    config = settings_of(base_run, variant)
    assert run("grpo", config, tmp_path / "run", on_event=stop_behind(stop_at))["steps"] == stop_at
    saved = load_checkpoint(latest(tmp_path / "run" / "checkpoints")).tensors
    assert {"old", "reference", "advantages"} <= saved[GROUP].keys()
    torch.manual_seed(stop_at)
    run("grpo", config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole(variant))


def test_looking_at_layers_asks_for_no_answers_of_the_next_cycle(base_run, tmp_path):
    config = grpo_settings(base_run, *WORDS, "train.statistics_every=2", steps_per_rollout=2, passes=1)
    assert run("grpo", config, tmp_path / "run", on_event=stop_behind(2))["steps"] == 2
    saved = load_checkpoint(latest(tmp_path / "run" / "checkpoints"))
    assert saved.step == 2
    assert saved.state["aim"]["rollout"]["cycle"] == 0


def test_stopped_in_the_middle_of_a_rollout(base_run, tmp_path, whole, monkeypatch):
    plain, asked = Grpo._roll, iter(range(100))

    def roll(self, cycle):
        requested = self.drawer.abandon

        def third_token():
            if next(asked) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return requested()

        self.drawer.abandon = third_token if cycle == 1 else requested
        return plain(self, cycle)

    config, told = settings_of(base_run, "full"), []
    with monkeypatch.context() as patch:
        patch.setattr(Grpo, "_roll", roll)
        assert run("grpo", config, tmp_path / "run", on_event=told.append)["steps"] == 4
    assert any("step 5 was given up" in event.text for event in told if isinstance(event, Message))
    run("grpo", config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole("full"))


@pytest.mark.parametrize(
    "words", [("adapter=lora", "loss=ipo", "sft_weight=0.5"), ("loss=kto",), ("loss=simpo",)]
)
def test_preferences_stopped_behind_a_step_that_saves_nothing_by_itself(base_run, tmp_path, words):
    config = preference_files.settings(tmp_path, base_run, "train.steps=4", *words)
    run("dpo", config, tmp_path / "whole")
    assert run("dpo", config, tmp_path / "run", on_event=stop_behind(3))["steps"] == 3
    torch.manual_seed(1)
    run("dpo", config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("learn_from", ["logits", "samples"])
def test_a_teacher_s_pupil_stopped_on_the_way(tmp_path, learn_from):
    base, teacher = (
        make_base(tmp_path / name, f"seed={seed}", chat=True, text=False)
        for seed, name in enumerate(("base", "teacher"))
    )
    data = write_lines(tmp_path / "data.jsonl", sayings(24))
    given = {"data": {"name": "alpaca", "paths": [str(data)]}, "teacher": str(teacher), "valid_share": 0.2}
    given |= {"learn_from": learn_from, "conversations_per_step": 4, "answers.max_new_tokens": 4}
    config = settings(DistillConfig, base, **given)
    run("distill", config, tmp_path / "whole")
    assert run("distill", config, tmp_path / "run", on_event=stop_behind(1))["steps"] == 1
    torch.manual_seed(1)
    run("distill", config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")
