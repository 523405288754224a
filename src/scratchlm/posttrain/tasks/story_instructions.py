"""A wish for a story ("Tell me a story about Mia, a girl who loses a kite."), and the story.

A response is right when the grammar of the stories can write it, which holds only of whole and consistent
stories, and it is the story that was asked for: the hero, what the hero is, the plot and its thing. There is
nothing to gain from texts that only name the words.

Source: our own; wishes with required words: Eldan and Li 2023, "TinyStories",
https://arxiv.org/abs/2305.07759, section 4.
"""

import random

from scratchlm.data.stories import story_grammar
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Verdict
from scratchlm.posttrain.tasks.story_rules import WISHES, fits, instruction_grammar, parts

MOST_CHARACTERS = 2000
"""No story is longer (200 words), and a checker's time is bounded."""


@EXERCISES.register("story_instructions")
class StoryInstructions(Exercise):
    """Wishes for a story with a hero and a plot."""

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a wish and its story; a wish in other words is the same wish."""
        wish, story = parts(instruction_grammar(), generator)
        wanted = wish.partition(" about ")[2]
        return Problem(wish, story, wanted), f"wish:{wanted}"

    def check(self, response: str, answer: str) -> Verdict:
        """Right is a whole, consistent story about what was asked."""
        text = response.strip()
        formatted = len(text) <= MOST_CHARACTERS and "\t" not in text and fits(story_grammar(), text)
        wish = f"{WISHES[0]} {answer}"
        return Verdict(formatted and fits(instruction_grammar(), f"{wish}\t{text}"), formatted)
