"""The beginning of a story and a question ("Where did Lily put the kite?") whose answer stands in it.

A response is right when it is the answer as it stands in the story, but for upper or lower case, a final
period and blanks around it. A response that copies more of the story than that, or names two things, is
wrong. What a good assistant says is the bare answer.

Source: our own; questions about facts of a short story: Weston et al. 2015, "Towards AI-Complete Question
Answering", https://arxiv.org/abs/1502.05698.
"""

import random
from typing import Literal

from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Verdict
from scratchlm.posttrain.tasks.story_rules import CHILDREN_ASKED, parts, question_grammar

MOST_CHARACTERS = 60
"""No answer is longer: what is longer has not the form of one."""


@EXERCISES.register("story_questions")
class StoryQuestions(Exercise):
    """Questions about the beginning of a story."""

    def __init__(self, *, about: Literal["all", "children"] = "all") -> None:
        """Choose what is asked.

        Args:
            about: all: places, things, deeds and children; children: only who they are and what they are
                like, about a beginning of two or three sentences.
        """
        self.beginning = CHILDREN_ASKED if about == "children" else ""

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a story's beginning with a question; a story is on one side with all its questions."""
        story, question, answer = parts(question_grammar(self.beginning), generator)
        return Problem(f"{story}\n{question}", answer, answer), f"story:{story}"

    def check(self, response: str, answer: str) -> Verdict:
        """Right is the answer alone."""
        text = response.strip()
        formatted = 0 < len(text) <= MOST_CHARACTERS and "\n" not in text
        return Verdict(formatted and plain(text) == plain(answer), formatted)


def plain(text: str) -> str:
    """Return an answer without what does not matter: case, blanks around it and one final period."""
    return text.strip().removesuffix(".").casefold()
