"""The beginning of a story and a question ("Where did Lily put the kite?") whose answer stands in it.

A response is right when it is the answer as it stands in the story, but for upper or lower case, a final
period and blanks around it. A response that copies more of the story than that, or names two things, is
wrong.

    bare     under the bench
    tags     <think>Lily put the kite under the bench.</think><answer>under the bench</answer>
             <answer>under the bench</answer>

A thought is the sentence in which the answer stands: to find it first is easier than to find it at a glance.

Source: our own; questions about facts of a short story: Weston et al. 2015, "Towards AI-Complete Question
Answering", https://arxiv.org/abs/1502.05698.
"""

import random
import re
from typing import Literal

from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Verdict, check_thoughts, read_tagged, tagged
from scratchlm.posttrain.tasks.story_rules import CHILDREN_ASKED, parts, question_grammar

MOST_CHARACTERS = 60
"""No answer is longer: what is longer has not the form of one."""

_ARTICLES = {"a", "an", "the"}
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r'(?<!\bMr\.)(?<!\bMrs\.)(?<=[.!?"])\s+(?=["A-Z])')


@EXERCISES.register("story_questions")
class StoryQuestions(Exercise):
    """Questions about the beginning of a story."""

    def __init__(
        self,
        *,
        about: Literal["all", "children"] = "all",
        form: Literal["bare", "tags"] = "bare",
        thoughts: float = 1.0,
    ) -> None:
        """Choose what is asked.

        Args:
            about: all: places, things, deeds and children; children: only who they are and what they are
                like, about a beginning of two or three sentences.
            form: How a response is written: the "bare" answer, or "tags" with a thought.
            thoughts: Share of the worked responses in tags that quote the story first, 0 to 1.

        Raises:
            ValueError: A value that is not allowed.
        """
        self.beginning = CHILDREN_ASKED if about == "children" else ""
        self.form, self.thoughts = form, check_thoughts(thoughts)

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a story's beginning with a question; a story is on one side with all its questions."""
        story, question, answer = parts(question_grammar(self.beginning), generator)
        response = answer
        if self.form == "tags":
            thinks = generator.random() < self.thoughts
            response = tagged(answer, sentence_about(story, question, answer) if thinks else None)
        return Problem(f"{story}\n{question}", response, answer), f"story:{story}"

    def check(self, response: str, answer: str) -> Verdict:
        """Right is the answer alone."""
        text = response.strip() if self.form == "bare" else read_tagged(response) or ""
        formatted = 0 < len(text) <= MOST_CHARACTERS and "\n" not in text
        return Verdict(formatted and plain(text) == plain(answer), formatted)


def sentence_about(story: str, question: str, answer: str) -> str:
    """Return the sentence of a story that shares most words with a question and its answer.

    Words of the answer count ten times, as the sentence is where it stands; of several it is the first.
    """
    asked, said = _words(question), _words(answer) - _ARTICLES

    def shared(sentence: str) -> int:
        found = _words(sentence)
        return 10 * len(found & said) + len(found & asked)

    return max(_SENTENCE_END.split(story), key=shared)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def plain(text: str) -> str:
    """Return an answer without what does not matter: case, blanks around it and one final period."""
    return text.strip().removesuffix(".").casefold()
