"""Rewards: each part by example, texts that try to cheat, checks that raise, hang or return no number."""

import logging
import math
import os
import time
from pathlib import Path

import pytest
import torch

from scratchlm.posttrain.reward_process import RewardProcess
from scratchlm.posttrain.rewards import REWARDS, Attempt, Judge, Reward, RewardError, compute_rollout_rewards
from scratchlm.posttrain.tasks.exercise import Problem, Verdict

WRONG = Verdict(False, False)


def attempt(response, answer="75", *, tokens=5, finished=True, verdict=WRONG):
    return Attempt(Problem("What is 27 + 48?", answer, answer), response, tokens, finished, verdict)


@pytest.mark.parametrize(
    ("name", "settings", "response", "expected"),
    [
        ("number", {}, "27 + 48 = 75.", 1),
        ("number", {}, "75, or perhaps 76", 0),
        ("number", {}, "none", 0),
        ("number", {"where": "marked"}, "74\n#### 75\n#### 76", 1),
        ("number", {"where": "marked"}, "75", 0),
        ("number", {"where": "tagged"}, "<think>a</think><answer>75.0</answer>", 1),
        ("number", {"where": "tagged"}, "<answer>74 75</answer>", 0),
        ("number", {"where": "tagged"}, "<answer>74</answer><answer>75</answer>", 0),
        ("number", {"where": "whole"}, " 75 ", 1),
        ("number", {"where": "whole"}, "74 75", 0),
        ("exact", {}, "75.", 1),
        ("exact", {}, "75 75", 0),
        ("exact", {"where": "tagged"}, "<answer> 75 </answer>", 1),
        ("think", {}, "<think>a</think>\n<answer>b</answer>", 1),
        ("think", {}, "<answer>b</answer>", 0),
        ("think", {}, "<think>a</think><answer>b</answer> and more", 0),
        ("think", {}, "<think>a<think></think><answer>b</answer>", 0),
        ("think", {"opened": True}, "a</think><answer>b</answer>", 1),
        ("think", {"opened": True}, "<think>a</think><answer>b</answer>", 0),
        ("regex", {"pattern": r"\d+"}, "a 75 b", 1),
        ("regex", {"pattern": r"\d+", "whole": True}, "a 75 b", 0),
        ("correct", {}, "", 0),
        ("formatted", {}, "", 0),
    ],
)
def test_a_part_of_the_reward_by_example(name, settings, response, expected):
    assert REWARDS.build(name, **settings)(attempt(response)) == expected


def test_the_exercises_own_verdict_counts():
    right = attempt("x", verdict=Verdict(True, True))
    assert REWARDS.build("correct")(right) == REWARDS.build("formatted")(right) == 1.0


def test_length_costs_evenly_and_a_cut_answer_costs_all():
    length = REWARDS.build("length", free=10, most=20)
    assert [length(attempt("", tokens=n)) for n in (0, 10, 15, 20, 99)] == [0, 0, -0.5, -1, -1]
    assert length(attempt("", tokens=1, finished=False)) == -1
    with pytest.raises(ValueError, match=r"free=5, reward.most=5: must be 0 <= free < most"):
        REWARDS.build("length", free=5, most=5)


def test_parts_are_weighed_and_told_by_name():
    judge = Judge(
        {"number": REWARDS.build("number"), "short": REWARDS.build("length", free=0, most=10, weight=0.5)}
    )
    found = judge([attempt("75", tokens=2), attempt("76", tokens=10)])
    torch.testing.assert_close(found.rewards, torch.tensor([0.9, -0.5]))
    assert found.figures == {
        "reward_number": 0.5,
        "reward_short": pytest.approx(-0.6),
        "reward_failures": 0.0,
    }


class Odd(Reward):
    """Breaks in the way that the answer says."""

    def __call__(self, attempt):
        if attempt.response == "raise":
            raise KeyError("nothing")
        return {"nan": math.nan, "inf": math.inf}.get(attempt.response, 2.0)


@pytest.mark.parametrize("response", ["raise", "nan", "inf"])
def test_an_answer_whose_reward_breaks_teaches_nothing_and_is_counted(response, caplog):
    attempts = [attempt(response), attempt("fine"), attempt(response), attempt("fine")]
    with caplog.at_level(logging.WARNING):
        found = Judge({"odd": Odd()})(attempts)
    assert found.rewards.isnan().tolist() == [True, False, True, False]
    assert found.figures == {"reward_odd": 2.0, "reward_failures": 0.5}
    assert len([r for r in caplog.records if "reward 'odd'" in r.getMessage()]) == 1  # once for its kind


def test_what_a_failure_means_can_be_chosen():
    attempts = [attempt("raise"), attempt("fine")]
    assert Judge({"odd": Odd()}, on_failure="zero")(attempts).rewards.tolist() == [0.0, 2.0]
    with pytest.raises(RewardError, match=r"reward 'odd': KeyError: 'nothing', with the answer 'raise'"):
        Judge({"odd": Odd()}, on_failure="stop")(attempts)


def test_a_step_in_which_every_reward_failed_ends_the_run():
    with pytest.raises(RewardError, match="no answer of this step could be judged; the first: reward 'odd'"):
        Judge({"odd": Odd()})([attempt("nan"), attempt("raise")])
    with pytest.raises(ValueError, match="rewards: there is none"):
        Judge({})


def test_a_pattern_that_backtracks_for_ever_is_stopped():
    pattern = REWARDS.build("regex", pattern=r"(a|a|aa)+$", seconds=0.05)
    with pytest.raises(RewardError, match=r"the pattern took longer than 0.05 seconds"):
        pattern(attempt("a" * 60 + "b"))
    with pytest.raises(ValueError, match=r"reward.pattern='\(': is no regular expression"):
        REWARDS.build("regex", pattern="(")


PROGRAM = """
import os, subprocess, sys, time
print("noise at the start")
def reward(prompt, response, answer):
    print("noise")
    if response == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open("CHILD", "w").write(str(child.pid))
        time.sleep(600)
    if response == "leave":
        os._exit(3)
    if response == "raise":
        raise RuntimeError("no idea")
    if response == "text":
        return "many"
    return float(response == answer) + len(prompt) / 1000
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(PROGRAM.replace("CHILD", str(tmp_path / "child.pid")), encoding="utf-8")
    return path


def test_a_program_of_ones_own_is_called_and_may_break_in_every_way(program):
    # the time limit is generous for the calls that end; the one that hangs has a process of its own
    part = REWARDS.build("program", file=program, seconds=60.0)
    try:
        assert part(attempt("75")) == pytest.approx(1.016)
        for response, message in {
            "raise": "RuntimeError: no idea",
            "text": "ValueError: could not convert",
            "leave": "ended its process",
        }.items():
            with pytest.raises(RewardError, match=message):
                part(attempt(response))
            assert part(attempt("\ud83d" + "x" * 200_000)) == pytest.approx(0.016)  # and goes on after it
    finally:
        part.close()


def test_a_program_that_hangs_is_killed_with_its_children(program, tmp_path):
    process = RewardProcess(program, "reward", 2.0)
    process.start()
    child = tmp_path / "child.pid"
    try:
        while not child.is_file() or not child.read_text(encoding="utf-8"):  # on a busy machine: once more
            assert process.call("", "hang", "75") == (None, "took longer than 2 seconds")
        process.seconds = 60.0
        assert process.call("", "75", "75") == (1.0, "")
    finally:
        process.close()
    wait_until_gone(int(child.read_text(encoding="utf-8")))


def wait_until_gone(pid):
    """A killed grandchild is init's to collect: a zombie runs no more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


def test_a_program_that_cannot_be_used_is_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match="no such Python file"):
        REWARDS.build("program", file=tmp_path / "none.py")
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be used: ModuleNotFoundError"):
        REWARDS.build("program", file=path)
    path.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be used: NameError: there is no function 'reward' in it"):
        REWARDS.build("program", file=path)


def test_rewards_of_a_plain_function_keep_their_order():
    def reward_fn(response, truth):
        return {"reward": float(response == truth), "format_reward": 1.0}

    rewards, means = compute_rollout_rewards(reward_fn, ["1", "2", "4"], ["1", "2", "3"])
    assert rewards.tolist() == [1.0, 1.0, 0.0]
    assert means == {"mean_reward": pytest.approx(2 / 3), "mean_format_reward": 1.0}
    with pytest.raises(ValueError, match="1 answers, but 2 ground truths"):
        compute_rollout_rewards(reward_fn, ["1"], ["1", "2"])
