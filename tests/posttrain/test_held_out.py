"""Questions that a run was not trained on: from each stage's data, or from a file."""

import json

import pytest
from preference_files import pairs
from small_bases import sayings, settings, write_lines
from small_policies import grpo_settings

from scratchlm.posttrain import PREFERENCES
from scratchlm.posttrain.config import DpoConfig, SftConfig
from scratchlm.posttrain.datasets import both_splits
from scratchlm.posttrain.held_out import VALID_SEED, held_out_questions, read_questions
from scratchlm.posttrain.instructions import Alpaca
from scratchlm.posttrain.stage import stage_file
from scratchlm.posttrain.tasks import EXERCISES


def kept(folder, stage, config):
    """A folder with the settings of a run."""
    folder.mkdir()
    tree = {"stage": stage} | config.model_dump(mode="json")
    stage_file(folder).write_text(json.dumps(tree), encoding="utf-8")
    return folder


def test_they_are_those_of_the_held_out_split_each_once(tmp_path):
    file = write_lines(tmp_path / "said.jsonl", [*sayings(), *sayings()])
    config = settings(SftConfig, "base", data={"name": "alpaca", "paths": [str(file)]}, valid_share=0.3)
    found, num_all = held_out_questions(kept(tmp_path / "sft", "sft", config), 100)
    assert num_all == len(found)
    splits = both_splits(Alpaca(paths=(file,)), share=0.3, seed=config.seed)
    wanted = dict.fromkeys(repr(example.messages[:-1]) for example in splits["valid"])
    assert sorted(repr(messages) for messages in found) == sorted(wanted)
    assert len(splits["train"]) > len(splits["valid"]) > len(found) > 3
    assert held_out_questions(tmp_path / "sft", 3) == (found[:3], num_all)
    others = held_out_questions(tmp_path / "sft", 3, seed=5).asked
    assert others != found[:3]
    assert held_out_questions(tmp_path / "sft", 4, seed=5).asked[:3] == others


def test_preferences_and_rewards_have_them_too(tmp_path):
    file = write_lines(tmp_path / "pairs.jsonl", pairs(20))
    config = settings(DpoConfig, "base", data={"name": "prompt_pairs", "paths": [str(file)]}, valid_share=0.5)
    source = PREFERENCES.build("prompt_pairs", paths=[str(file)])
    valid = both_splits(source, share=0.5, seed=config.seed)["valid"]
    found, _ = held_out_questions(kept(tmp_path / "dpo", "dpo", config), 100)
    assert sorted(map(repr, found)) == sorted({repr(pair.prompt) for pair in valid})
    config = grpo_settings("base")
    problems = EXERCISES.build(config.data.name, **config.data.settings).problems(VALID_SEED, "valid", 0, 3)
    found, num_all = held_out_questions(kept(tmp_path / "grpo", "grpo", config), 3)
    assert num_all is None
    assert held_out_questions(tmp_path / "grpo", 3, seed=1).asked != found
    assert sorted(one[0]["content"] for one in found) == sorted(problem.prompt for problem in problems)


def test_some_are_drawn_from_all_so_that_each_exercise_is_asked(tmp_path):
    names = ("arithmetic", "story_openings", "story_questions")
    tables = ", ".join(f"{{ name = '{name}', num = 1 }}" for name in names)
    data = f"data={{ name = 'exercises', num_valid = 30, exercises = [{tables}] }}"
    folder = kept(tmp_path / "sft", "sft", settings(SftConfig, "base", data))
    asked = [one[-1]["content"] for one in held_out_questions(folder, 30).asked]
    openings = sum(text.startswith("Begin a story") for text in asked)
    questions = sum("\n" in text for text in asked)
    assert min(openings, questions, 30 - openings - questions) >= 5


def test_a_file_may_hold_lines_or_json(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("What is it?\n\n  Why? \nWho?\n", encoding="utf-8")
    assert [one[0]["content"] for one in read_questions(lines, None).asked] == ["What is it?", "Why?", "Who?"]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"question": "q"}, {"instruction": "i", "input": "x"}, {"messages": messages}]
    found = read_questions(write_lines(tmp_path / "rows.jsonl", rows), None)
    assert [one[-1]["content"] for one in found.asked] == ["q", "i\n\nx", "a"]
    with pytest.raises(ValueError, match=r"rows.jsonl:4: no JSON"):
        read_questions(write_lines(tmp_path / "rows.jsonl", [*rows, "{"]), None)


def test_some_questions_of_a_file_are_drawn_from_all_in_its_order(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(str(number) for number in range(300)), encoding="utf-8")
    found, num_all = read_questions(file, 100)
    numbers = [int(one[0]["content"]) for one in found]
    assert (len(numbers), num_all) == (100, 300)
    assert numbers == sorted(set(numbers))
    assert max(numbers) > 250
    fewer, others = (read_questions(file, 10, seed=seed).asked for seed in (0, 1))
    assert all(one in found for one in fewer)
    assert others != fewer


def test_where_nobody_knows_questions_that_is_said(tmp_path):
    with pytest.raises(ValueError, match="is no post-trained run"):
        held_out_questions(tmp_path, 3)
    with pytest.raises(ValueError, match="no such file"):
        read_questions(tmp_path / "gone.txt", 3)
    file = write_lines(tmp_path / "said.jsonl", sayings(3))
    config = settings(SftConfig, "base", data={"name": "alpaca", "paths": [str(file)]}, valid_share=0)
    with pytest.raises(ValueError, match="nothing of its data was held out"):
        held_out_questions(kept(tmp_path / "sft", "sft", config), 3)
