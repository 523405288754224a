r"""The embedded corpus: (seed, index) -> a short children's story whose exact probability is known.

    H = - sum over stories p(story) ln p(story)        nats per story: no model's mean loss can be lower

A seeded grammar writes the stories: names and pronouns agree, toys stay where they were put, causes come
before effects, and every story ends with a lesson. A story has one derivation only, so its probability is
the product of the probabilities of the choices that the parser reads off the text, and the entropy of the
whole is an exact sum. A learner sees how far a model is from perfect, which no natural corpus can tell.

Source: our own; the kind of story is that of Eldan and Li 2023, "TinyStories",
https://arxiv.org/abs/2305.07759.
"""

import functools
import random
import re

from scratchlm.data.stories_entropy import Summation, Totals
from scratchlm.data.stories_frame import FRAME
from scratchlm.data.stories_grammar import Grammar, Slot
from scratchlm.data.stories_plots import PLOTS
from scratchlm.data.stories_score import Consistency, check_consistency, heroes
from scratchlm.data.stories_words import variables

__all__ = [
    "Consistency",
    "check_consistency",
    "entropy",
    "generate_story",
    "heroes",
    "log_probability",
    "most_words",
    "num_stories",
    "words",
]

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


@functools.cache
def story_grammar() -> Grammar:
    """Return the grammar of the stories, built once."""
    return Grammar(FRAME | PLOTS, variables())


def generate_story(seed: int, index: int) -> str:
    """Write the story number `index` of the corpus with this seed; the same arguments give the same story."""
    return story_grammar().sample(random.Random(f"{seed}:{index}")).text


def log_probability(text: str) -> float:
    """Return ln p(text) in nats under the grammar, exactly.

    Raises:
        ValueError: The text is not a story of the grammar; the message says where it stops being one.
    """
    return story_grammar().parse(text).log_probability


def entropy() -> float:
    """Return the entropy of one story in nats: the least possible mean of -ln p(story) of any model."""
    return _totals().entropy


def num_stories() -> int:
    """Return the number of different stories."""
    return _totals().num_texts


def most_words() -> int:
    """Return the number of words of the longest story."""
    return _totals().most_words


@functools.cache
def words() -> frozenset[str]:
    """Return all words that stories can contain, in lower case."""
    found: set[str] = set()
    grammar = story_grammar()
    for rule in grammar.rules.values():
        for element in (element for option in rule.options for element in option):
            texts = [element] if isinstance(element, str) else []
            if isinstance(element, Slot):
                tables = grammar.variables[element.variable].tables.values()
                texts = [entry.forms[element.form] for table in tables for entry in table.entries]
            found.update(word for text in texts for word in _WORD.findall(text.lower()))
    return frozenset(found)


@functools.cache
def _totals() -> Totals:
    return Summation(story_grammar()).totals()
