"""Exercises as data: as many as asked for, in order, split by what they ask, whatever the run's seed."""

import pytest

from scratchlm.posttrain import INSTRUCTIONS, PREFERENCES
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.story_pairs import story_pair

MIXED = [
    {"name": "arithmetic", "num": 3, "digits": 1, "form": "number"},
    {"name": "story_questions", "num": 2},
]


def read(source, split, seed=0):
    return list(source.read(split, share=0.05, seed=seed))


def test_problems_become_conversations_one_exercise_after_the_other():
    source = INSTRUCTIONS.build("exercises", exercises=MIXED, num_valid=4)
    train = read(source, "train")
    assert [example.where for example in train] == [
        *(f"arithmetic train {i}" for i in range(3)),
        *(f"story_questions train {i}" for i in range(2)),
    ]
    problem = EXERCISES.build("arithmetic", digits=1, form="number").problem(1, "train", 2)
    assert train[2].messages == (
        {"role": "user", "content": problem.prompt},
        {"role": "assistant", "content": problem.response},
    )
    assert len(read(source, "valid")) == 8


def test_the_run_s_seed_changes_no_problem_and_the_data_s_own_does():
    source = INSTRUCTIONS.build("exercises", exercises=MIXED)
    assert read(source, "train", seed=1) == read(source, "train", seed=2)
    other = INSTRUCTIONS.build("exercises", exercises=MIXED, data_seed=2)
    assert read(source, "train") != read(other, "train")


@pytest.mark.parametrize(
    ("exercises", "message"),
    [
        ([], "name at least one exercise"),
        ([{"name": "arithmetic"}], r"data.exercises\[0\]: needs name and num"),
        ([{"name": "arithmetic", "num": 0}], "at least 1"),
        ([*MIXED, {"num": 3}], r"data.exercises\[2\]"),
        ([{"name": "arithmetics", "num": 3}], "Did you mean 'arithmetic'"),
        (
            [{"name": "arithmetic", "num": 3, "digit": 2}],
            r"data.exercises\[0\].digit: .*Did you mean 'digits'",
        ),
    ],
)
def test_exercises_that_are_none_are_refused(exercises, message):
    with pytest.raises(ValueError, match=message):
        INSTRUCTIONS.build("exercises", exercises=exercises)


def test_pairs_of_stories_are_preferences():
    source = PREFERENCES.build("story_pairs", num=3, num_valid=2, data_seed=5)
    train = read(source, "train")
    assert [pair.where for pair in train] == [f"story_pairs train {i}" for i in range(3)]
    expected = story_pair(5, "train", 1)
    assert train[1].prompt == ({"role": "user", "content": expected.prompt},)
    assert (train[1].chosen, train[1].rejected) == (expected.chosen, expected.rejected)
    assert len(read(source, "valid")) == 2


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="both must be at least 1"):
        PREFERENCES.build("story_pairs", num=0)
    with pytest.raises(ValueError, match="mistakes=0: must be from 1 to 6"):
        PREFERENCES.build("story_pairs", mistakes=0)
