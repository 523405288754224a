"""GRPO: gradients against a plain twin, what is skipped, what stays fixed, resuming in a cycle, learning."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from small_policies import SUMS, gradient, grpo_settings, plain_gradient, stage_of

from scratchlm.checkpoint import latest, load_checkpoint
from scratchlm.optim.adamw import AdamW
from scratchlm.posttrain.grpo import rows_of_step
from scratchlm.posttrain.policy_losses import POLICY_LOSSES
from scratchlm.posttrain.reward_process import RewardProcess
from scratchlm.posttrain.rewards import RewardError
from scratchlm.posttrain.run import run
from scratchlm.train.examine import Examiner
from scratchlm.train.folder import load_run
from scratchlm.train.trainer import StepAbandonedError

SMALL = {"rtol": 2e-4, "atol": 1e-6}
"""Sums of some thousand float32 numbers in another order."""


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("length=constant", "rollout.temperature=0.8"),
        ("kl=0.3",),
        ("baseline=none", "normalizer=none"),
        ("adapter=lora",),
    ],
    ids=["grpo", "constant", "kl", "rft", "lora"],
)
def test_any_micro_batches_give_the_gradient_of_all_answers(base_run, tmp_path, words):
    stage = stage_of(base_run, tmp_path, "prompts_per_step=3", *words)
    rollout = stage.answers_of(0)[0]
    assert 0 < len(stage.answers_of(0)[1]) <= 12
    wanted_loss, wanted = plain_gradient(stage, rollout, range(12))
    for micro_rows in (12, 5):
        loss, found = gradient(stage, 0, micro_rows)
        assert loss == pytest.approx(wanted_loss, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(found, wanted, **SMALL)


@pytest.mark.parametrize("loss", POLICY_LOSSES.names())
def test_once_the_weights_have_moved_gradients_are_still_those_of_the_formulas(base_run, tmp_path, loss):
    bound = {"grpo": "loss.clip=0.01", "gspo": "loss.clip=0.01", "cispo": "loss.clip_high=0.01"}.get(loss)
    words = (
        "kl=0.3",
        "passes=2",
        "rollout.temperature=0.8",
        f"loss.name={loss}",
        *([bound] if bound else []),
    )
    stage = stage_of(base_run, tmp_path, "prompts_per_step=3", *words)
    rollout = stage.answers_of(0)[0]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in stage.objective.model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    rows = rows_of_step(12, 1, stage.config)
    wanted_loss, wanted = plain_gradient(stage, rollout, rows, old=rollout.old)
    for micro_rows in (12, 4):
        stage.objective.reset()
        loss_found, found = gradient(stage, 1, micro_rows)
        assert loss_found == pytest.approx(wanted_loss, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(found, wanted, **SMALL)
    told = stage.objective.figures()
    assert min(told["kl"], told["moved"]) > 1e-3
    assert (told["clipped"] > 0) == (bound is not None)
    assert "engine_gap" not in told  # the engine's weights are not these


def test_expert_iteration_is_learning_by_heart_what_was_right(base_run, tmp_path):
    words = ("baseline=none", "normalizer=none", "loss=reinforce", "length=constant", "constant=7")
    stage = stage_of(base_run, tmp_path, "passes=2", "steps_per_rollout=2", *words)
    rollout, model = stage.answers_of(0)[0], stage.objective.model
    assert set(rollout.advantages.tolist()) == {0.0, 1.0}
    for step in range(4):
        found = gradient(stage, step, 8)[1]
        right = [row for row in rows_of_step(16, step, stage.config) if rollout.advantages[row] == 1]
        assert len(stage.answers_of(step)[1]) == len(right) > 0
        model.zero_grad()
        for row in right:  # cross-entropy on the answers that were right, as supervised fine-tuning has it
            answer = rollout.answers[row]
            ids = torch.tensor([answer.prompt_ids + answer.ids])
            said = slice(len(answer.prompt_ids) - 1, None)
            logits, targets = model(ids[:, :-1])[0, said], ids[0, 1:][said]
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / 7).backward()
        wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(found, wanted, **SMALL)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.01 * p.grad)


def test_answers_without_advantage_do_not_go_through_the_model(base_run, tmp_path):
    stage = stage_of(base_run, tmp_path, "prompts_per_step=16")
    rollout, chosen, _ = stage.answers_of(0)
    flat = [row for row in range(64) if rollout.advantages[row] == 0]
    assert flat, "the example needs a group whose rewards are equal"
    assert sorted(chosen) == [row for row in range(64) if row not in flat]
    batches = [stage.loader().rows(0, first, 4) for first in range(0, 64, 4)]
    assert sum(len(batch.inputs) for batch in batches) == len(chosen)
    torch.testing.assert_close(
        gradient(stage, 0, 8)[1], plain_gradient(stage, rollout, range(64))[1], **SMALL
    )
    _, with_kl, _ = stage_of(base_run, tmp_path / "kl", "prompts_per_step=16", "kl=0.1").answers_of(0)
    assert len(with_kl) == 64


def test_a_step_whose_rewards_are_all_equal_has_a_gradient_of_zero(base_run, tmp_path):
    stage = stage_of(base_run, tmp_path, rewards=[{"name": "regex", "pattern": "."}])
    loss, found = gradient(stage, 0, 2)
    assert loss == 0.0
    assert found.numel() == sum(p.numel() for p in stage.objective.model.parameters())
    assert not found.any()
    assert "kl" not in stage.objective.figures()
    assert stage.objective.figures()["entropy"] > 0


def test_old_log_probabilities_stay_fixed_over_the_steps_of_a_cycle(base_run, tmp_path):
    stage = stage_of(base_run, tmp_path, steps_per_rollout=2, passes=2)
    rollout = stage.answers_of(0)[0]
    old = [values.clone() for values in rollout.old]
    for step in range(4):
        assert stage.answers_of(step)[0] is rollout
        wanted = plain_gradient(stage, rollout, rows_of_step(16, step, stage.config), old=old)[1]
        torch.testing.assert_close(gradient(stage, step, 8)[1], wanted, **SMALL)
        with torch.no_grad():
            for p in stage.objective.model.parameters():
                p.sub_(0.02 * p.grad.sign())  # far enough for the clip
    stage.objective.reset()
    stage.objective(*stage.loader().rows(3, 0, 8))
    assert stage.objective.figures()["moved"] > 0
    assert stage.answers_of(4)[0].cycle == 1


def test_answers_of_a_cycle_that_is_over_are_not_made_again(base_run, tmp_path):
    stage = stage_of(base_run, tmp_path, steps_per_rollout=2)
    batches = stage.loader()
    assert batches.again(0) is None  # nothing was written yet
    first = batches.rows(0, 0, 8)
    assert torch.equal(batches.again(0).inputs, first.inputs)
    rollout = stage.answers_of(2)[0]
    assert batches.again(1) is None
    assert batches.again(3) is not None
    assert stage.rollout is rollout


def test_every_group_is_read_once_a_pass_and_each_pass_has_its_own_order(base_run):
    config = grpo_settings(base_run, steps_per_rollout=3, passes=2)
    first, second = ([rows_of_step(24, step + go, config) for step in range(3)] for go in (0, 3))
    assert list(itertools.chain(*first)) == list(range(24))
    assert sorted(itertools.chain(*second)) == list(range(24))
    assert second != first


def test_a_reward_that_is_no_number_leaves_its_answer_out(base_run, tmp_path):
    stage = stage_of(base_run, tmp_path)
    part = stage.judge.parts["regex"]
    answers = iter([float("nan"), 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    stage.judge.parts = {"odd": type("Odd", (type(part),), {"__call__": lambda self, attempt: next(answers)})(
        pattern=".")}  # fmt: skip
    rollout, chosen, _ = stage.answers_of(0)
    assert sorted(chosen) == [1, 2, 3]
    assert rollout.figures["reward_failures"] == 0.125
    torch.testing.assert_close(gradient(stage, 0, 4)[1], plain_gradient(stage, rollout, range(8))[1], **SMALL)


def test_rewards_below_zero_are_not_divided_by_their_mean(base_run, tmp_path):
    rewards = [{"name": "regex", "pattern": ".", "weight": -1.0}]
    stage = stage_of(base_run, tmp_path, "normalizer=mean", rewards=rewards)
    with pytest.raises(RewardError, match=r"normalizer=mean: a reward is -1; .* would be unlearnt"):
        stage.answers_of(0)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final_weights(folder):
    return load_checkpoint(latest(folder / "checkpoints")).tensors["model"]


def test_a_run_resumed_inside_a_cycle_equals_one_that_never_stopped(base_run, tmp_path):
    config = grpo_settings(base_run, "train.save_every=3", steps_per_rollout=2, passes=2)
    whole = tmp_path / "whole"
    summary = run("grpo", config, whole)
    wanted, rows = final_weights(whole), read_rows(whole / "metrics.jsonl")
    assert summary["posttrain"]["stage"] == "grpo"
    measured = [row for row in rows if row["kind"] == "valid"]
    assert all("bits_per_byte" not in row and row["loss"] == 1 - row["accuracy"] for row in measured)
    assert (summary["bits_per_byte"], summary["perplexity"]) == (None, None)  # no text was predicted
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step-0000004")
    run("grpo", config, folder, resume=True)  # step 4 of 4 on one rollout, in its second pass
    found = final_weights(folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert losses(read_rows(folder / "metrics.jsonl")) == losses(rows)
    loaded = load_run(whole, device="cpu")
    assert loaded.step == 4


def losses(rows):
    return [
        {key: value for key, value in row.items() if "seconds" not in key and "per_second" not in key}
        for row in rows
        if row["kind"] in ("train", "valid")
    ]


def test_a_session_may_break_a_rollout_off_and_ends_the_processes_of_rewards(base_run, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def reward(prompt, response, answer):\n    return len(response)\n", encoding="utf-8")
    stage = stage_of(base_run, tmp_path / "run", rewards=[{"name": "program", "file": str(path)}])
    asked = iter([False, False])
    stage.attach(SimpleNamespace(signals=SimpleNamespace(requested=lambda: next(asked, True))))
    with pytest.raises(StepAbandonedError):
        stage.answers_of(0)
    examiner = Examiner.__new__(Examiner)  # of which a validation asks for the model alone
    examiner.model = stage.objective.model
    assert stage.held_out(examiner, everything=False).loss == 1.0  # not a step: it ends
    process = stage.judge.parts["program"].process._process
    assert process.poll() is None
    stage.close()
    assert process.poll() is not None


def test_the_processes_of_rewards_end_though_no_session_began(base_run, tmp_path, monkeypatch):
    path = tmp_path / "own.py"
    path.write_text("def reward(prompt, response, answer):\n    return 1\n", encoding="utf-8")
    started, plain = [], RewardProcess.start

    def start(self):
        plain(self)
        started.append(self._process)

    def none(*given):
        raise OSError("no session")

    monkeypatch.setattr(RewardProcess, "start", start)
    monkeypatch.setattr("scratchlm.posttrain.run.Session", none)
    config = grpo_settings(base_run, rewards=[{"name": "program", "file": str(path)}])
    with pytest.raises(OSError, match="no session"):
        run("grpo", config, tmp_path / "run")
    assert [process.poll() is None for process in started] == [False]


def test_where_no_answer_can_be_judged_any_more_the_steps_before_are_kept(base_run, tmp_path, caplog):
    path = tmp_path / "own.py"
    lines = ["count = 0", "def reward(prompt, response, answer):", "    global count", "    count += 1"]
    path.write_text("\n".join([*lines, "    return 1 if count <= 16 else 'much'\n"]), encoding="utf-8")
    config = grpo_settings(
        base_run,
        "train.save_every=100",
        "train.eval_every=100",
        rewards=[{"name": "program", "file": str(path)}],
    )
    with pytest.raises(ValueError, match=r"no answer of this step could be judged; .* 'much'"):
        run("grpo", config, tmp_path / "run")
    assert latest(tmp_path / "run" / "checkpoints").name == "step-0000002"
    assert caplog.text.count("all answers to a problem earned the same (0 % of all are right), so") == 1
    assert run("grpo", config, tmp_path / "run", resume=True)["steps"] == 4


def test_an_error_of_the_program_in_the_middle_of_a_step_saves_nothing(base_run, tmp_path, monkeypatch):
    config = grpo_settings(base_run, "train.save_every=100", "train.eval_every=100")
    plain, steps = AdamW.step, []

    def step(self):
        steps.append(plain(self))
        if len(steps) == 2:
            raise ValueError("half of the update is made")

    monkeypatch.setattr(AdamW, "step", step)
    with pytest.raises(ValueError, match="half of the update is made"):
        run("grpo", config, tmp_path / "run")
    assert len(steps) == 2
    assert latest(tmp_path / "run" / "checkpoints") is None


@pytest.mark.parametrize("chat", ["plain", "special"])
def test_without_tokens_for_roles_an_answer_ends_where_the_next_role_would_begin(base_run, tmp_path, chat):
    stage = stage_of(base_run, tmp_path, f"chat={chat}", "rollout.max_new_tokens=3")
    rollout, _, _ = stage.answers_of(0)
    assert stage.template.special == (chat == "special")
    assert all(0 < len(answer.ids) <= 3 for answer in rollout.answers)
    torch.testing.assert_close(gradient(stage, 0, 3)[1], plain_gradient(stage, rollout, range(8))[1], **SMALL)


@pytest.mark.slow
def test_the_reward_rises(base_run, tmp_path):
    words = ["train.steps=12", "optimizer.lr=0.03", "optimizer.weight_decay=0", "schedule.name=constant"]
    words += ["train.save_every=100", "train.eval_every=100", "rollout.max_new_tokens=1"]
    run("grpo", grpo_settings(base_run, *words, prompts_per_step=4, group_size=8), tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    rewards = [row["reward_mean"] for row in rows]
    assert sum(rewards[:3]) / 3 < 0.4
    assert sum(rewards[-3:]) / 3 > 0.7  # 0.97 to 1.0 with four seeds
    assert all(row["engine_gap"] < 1e-4 for row in rows)


def test_what_cannot_be_learnt_from_is_refused(base_run):
    with pytest.raises(ValueError, match="group_size=1 with baseline='mean'"):
        grpo_settings(base_run, group_size=1)
    with pytest.raises(ValueError, match="eval_problems=5: along the way some of the valid_problems=4"):
        grpo_settings(base_run, eval_problems=5)
    with pytest.raises(ValueError, match=r"unknown reward 'corect'. Did you mean 'correct'"):
        grpo_settings(base_run, rewards=["corect"])
    with pytest.raises(ValueError, match=r"answers that all earned the same would count .* = 1e\+06 times"):
        grpo_settings(base_run, "baseline=none")
    with pytest.raises(ValueError, match="constant: not used with length=sequence"):
        grpo_settings(base_run, "constant=3")
    with pytest.raises(ValueError, match=r"train.z_loss, train.label_smoothing: not used for rewards"):
        grpo_settings(base_run, "train.z_loss=1e-4", "train.label_smoothing=0.1")
    assert grpo_settings(base_run, "baseline=none", "normalizer=none", group_size=1).cycle_steps == 1
    assert SUMS["group_size"] == 4
