"""The recipes of the demo's assistant: each goes on from the one before, on exercises that fit its model."""

import re
from pathlib import Path

import pytest

from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES, run
from scratchlm.posttrain.tasks import EXERCISES

ROOT = Path(__file__).parents[2]
CHAIN = ("sft", "dpo", "grpo")


@pytest.fixture(scope="module")
def recipes():
    return {stage: run.read(stage, f"demo-{stage}") for stage in CHAIN}


def test_each_stage_goes_on_from_the_one_before(recipes):
    bases = [str(recipes[stage].base) for stage in CHAIN]
    assert bases == ["demo", f"runs/{recipes['sft'].name}", f"runs/{recipes['dpo'].name}"]


def test_the_makefile_runs_them_in_this_order_and_chats_with_the_last(recipes):
    target = re.search(r"^demo-assistant:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.M)[1]
    commands = re.findall(r"scratchlm (\w+)(?: ([\w/-]+))?", target)
    expected = [("demo", ""), *((stage, f"demo-{stage}") for stage in CHAIN)]
    assert [(name, word.removeprefix("--restartable")) for name, word in commands[:-1]] == expected
    assert commands[-1] == ("chat", f"runs/{recipes['grpo'].name}")


def test_rewards_are_for_an_exercise_that_demonstrations_begin(recipes):
    shown = {table["name"]: table["num"] for table in recipes["sft"].data.settings["exercises"]}
    assert shown[recipes["grpo"].data.name] > 0


def test_the_data_of_each_stage_can_be_made(recipes):
    sft, dpo, grpo = (recipes[stage].data for stage in CHAIN)
    example = next(INSTRUCTIONS.build(sft.name, **sft.settings).read("train", share=0.0, seed=0))
    assert example.messages[-1]["role"] == "assistant"
    pair = next(PREFERENCES.build(dpo.name, **dpo.settings).read("train", share=0.0, seed=0))
    assert pair.chosen != pair.rejected
    exercise = EXERCISES.build(grpo.name, **grpo.settings)
    problem = exercise.problem(0, "train", 0)
    assert exercise.check(problem.response, problem.answer).correct


def test_a_checkpoint_is_named_by_its_step_on_the_command_line():
    assert run.read("sft", "demo-sft", ["checkpoint=200"]).checkpoint == "200"
    words = ["checkpoint=best", "teacher=runs/large", "teacher_checkpoint=40"]
    assert run.read("distill", "demo-sft", words).teacher_checkpoint == "40"


@pytest.mark.parametrize(("name", "longest"), [("openings", 28), ("sums", 51)])
def test_what_one_recipe_shows_the_next_rewards_and_never_cuts(name, longest):
    shown, tried = run.read("sft", f"{name}-sft"), run.read("grpo", f"{name}-grpo")
    assert str(tried.base) == f"runs/{shown.name}"
    assert [table["name"] for table in shown.data.settings["exercises"]] == [tried.data.name]
    assert (
        tried.rollout.max_new_tokens > longest
    )  # a cut answer is a wrong one; tokens of the demo's tokenizer


def test_some_sums_are_shown_with_their_thought_and_most_without():
    shown = run.read("sft", "sums-sft").data
    examples = list(INSTRUCTIONS.build(shown.name, **shown.settings).read("valid", share=0.0, seed=0))
    thinks = sum("<think>" in example.messages[-1]["content"] for example in examples)
    assert 0 < thinks < len(examples) / 2
