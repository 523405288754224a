"""Exercises: problems without end, each with an exact checker, made from stories and from numbers.

    exercise.py             Problem, Verdict and the base class; training and held-out problems never meet
    arithmetic.py           What is 27 + 48?                      a number, perhaps after a line of thought
    story_questions.py      a story's beginning and a question    a phrase of the story
    story_openings.py       Begin a story about ...               one sentence with five facts
    story_instructions.py   Tell me a story about ...             a whole story, proven to be one
    story_pairs.py          the same story twice: once consistent, once with a contradiction

An exercise is drawn by (seed, split, index), so any problem can be made again and none is stored. This file
defines the family and imports none of its parts: they are found on the first look-up.
"""

from typing import TYPE_CHECKING

from scratchlm.registry import Family

if TYPE_CHECKING:
    from scratchlm.posttrain.tasks.exercise import Exercise

EXERCISES: "Family[Exercise]" = Family("exercise", package="scratchlm.posttrain.tasks", variable="EXERCISES")
