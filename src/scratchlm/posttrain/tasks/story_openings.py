"""A wish for a first sentence ("Begin a story about Mia, a brave fox near the old mill."), and the sentence.

    In a house near the old mill lived a brave fox named Mia.        right
    Mia was a brave fox who lived by the old river.                  wrong: another home
    Mia, brave, fox, old, mill                                       wrong: no sentence of the stories

A response is right when the grammar of the stories can write it as an opening with all five words. There are
several for each wish, so that a model has something to try, and they are short, so that trying is cheap.

Source: our own; wishes with required words: Eldan and Li 2023, "TinyStories",
https://arxiv.org/abs/2305.07759, section 4.
"""

import random

from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Verdict
from scratchlm.posttrain.tasks.story_rules import fits, opening_grammar, parts

WISH = "Begin a story about "
MOST_CHARACTERS = 200
"""No opening is longer."""


@EXERCISES.register("story_openings")
class StoryOpenings(Exercise):
    """Wishes for the first sentence of a story about somebody somewhere."""

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a wish and an opening; the five words are the key."""
        wish, opening = parts(opening_grammar(), generator)
        wanted = wish.removeprefix(WISH)
        return Problem(wish, opening, wanted), f"opening:{wanted}"

    def check(self, response: str, answer: str) -> Verdict:
        """Right is an opening of the stories with what was asked for; the form is that of any opening."""
        text = response.strip()
        formatted = len(text) <= MOST_CHARACTERS and "\t" not in text and fits(opening_grammar("open"), text)
        return Verdict(formatted and fits(opening_grammar(), f"{WISH}{answer}\t{text}"), formatted)
