"""Instruction data as problems: answers are compared, sides never meet, each epoch reads all questions."""

import json

import pytest
from small_bases import write_lines

from scratchlm.posttrain.tasks import EXERCISES


def entries(count):
    return [
        {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(count)
    ]


@pytest.fixture
def exercise(tmp_path):
    train, valid = (
        write_lines(tmp_path / "a.jsonl", entries(20)),
        write_lines(tmp_path / "b.jsonl", entries(4)),
    )
    data = {"name": "gsm8k", "paths": [str(train)], "valid_paths": [str(valid)]}
    return EXERCISES.build("from_data", data=data)


def test_a_question_has_its_number_as_answer_and_the_whole_text_as_response(exercise):
    (problem,) = (one for one in exercise.problems(0, "valid", 0, 4) if one.prompt == "What is 2 + 1?")
    assert problem.answer == "3"
    assert problem.response == "2 + 1 = 3\n#### 3"


def test_each_epoch_reads_every_question_once_in_an_order_of_its_own(exercise):
    first, second = (exercise.problems(1, "train", start, 20) for start in (0, 20))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(exercise.examples["train"])
    assert exercise.problems(2, "train", 0, 20) != first


def test_a_part_of_the_held_out_questions_is_drawn_from_all_of_them(tmp_path):
    train, valid = (write_lines(tmp_path / name, entries(100)) for name in ("a.jsonl", "b.jsonl"))
    data = {"name": "gsm8k", "paths": [str(train)], "valid_paths": [str(valid)]}
    exercise = EXERCISES.build("from_data", data=data)
    some = [int(problem.answer) for problem in exercise.problems(0, "valid", 0, 20)]
    assert len(set(some)) == 20
    assert min(some) <= 25
    assert max(some) > 75
    assert exercise.problems(0, "valid", 0, 10) == exercise.problems(0, "valid", 0, 20)[:10]


@pytest.mark.parametrize(
    ("response", "correct", "formatted"),
    [
        ("so 3", True, True),
        ("3.0", True, True),
        ("3 or 4", False, True),
        ("three", False, False),
        ("", False, False),
    ],
)
def test_the_last_number_counts(exercise, response, correct, formatted):
    assert exercise.check(response, "3") == (correct, formatted)


def test_whole_texts_are_compared_where_they_are_the_answer(tmp_path):
    path = write_lines(
        tmp_path / "c.jsonl", [{"prompt": f"Say {i}.", "response": f"Yes {i}"} for i in range(60)]
    )
    data = {"name": "prompt_response", "paths": [str(path)]}
    exercise = EXERCISES.build("from_data", data=data, answer="text", valid_share=0.2)
    assert exercise.check(" yes 3.", "Yes 3") == (True, True)
    assert exercise.check("Yes 3 Yes 3", "Yes 3") == (False, True)
    sides = [{problem.prompt for problem in exercise.examples[split]} for split in ("train", "valid")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60


def test_data_without_answers_is_refused(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [json.dumps({"prompt": "a", "response": "none"})] * 3)
    data = {"name": "prompt_response", "paths": [str(path)]}
    with pytest.raises(ValueError, match="has no question with a number as its answer for train"):
        EXERCISES.build("from_data", data=data)
    with pytest.raises(ValueError, match=r"exercise.data: has no name; known: alpaca"):
        EXERCISES.build("from_data", data={})
