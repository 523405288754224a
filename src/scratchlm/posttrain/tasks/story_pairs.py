r"""A wish and two stories that follow it: one consistent, in the other a fact changes on the way.

    chosen     ... Lily put her red kite under the bed ... They found the kite under the bed.
    rejected   ... Lily put her red kite under the bed ... They found the drum under the bed.
                                                                          ^^^^ the second of two mentions

The two differ in one mention of one thing: the same letters before, the same after. So length says nothing
about which is better, nor do the words: only who remembers what stood before can tell. What changes is a
name, what the hero is, or a thing of the plot, and the scorer of the stories confirms each contradiction: a
rejected story has exactly as many as were asked for. With several mistakes several mentions change, of one
thing or of several: easier to tell apart.

Source: our own; pairs that differ in one place: BLiMP, Warstadt et al. 2020, https://arxiv.org/abs/1912.00582.
"""

import functools
import itertools
import random
import re
from typing import NamedTuple

from scratchlm.data.stories import check_consistency
from scratchlm.data.stories_grammar import Entry, article
from scratchlm.data.stories_words import variables
from scratchlm.posttrain.tasks.exercise import Split, side
from scratchlm.posttrain.tasks.story_rules import CHILDREN, THREADS, parts, thread_grammar

TRIES = 20
"""Changes tried on a story before another one is drawn; 3 of 4 changes are seen by the scorer at once."""


class StoryPair(NamedTuple):
    """Two answers to a wish, and what is wrong in the worse one."""

    prompt: str
    chosen: str
    rejected: str
    mistake: str
    """The first contradiction in words."""


def story_pair(seed: int, split: Split, index: int, *, mistakes: int = 1) -> StoryPair:
    """Return pair number `index` of a split; the same arguments give the same pair.

    Args:
        seed: Which pairs, of endlessly many.
        split: Which side.
        index: From 0 on.
        mistakes: Contradictions in the rejected story, as the scorer counts them; at least 1.
    """
    for attempt in itertools.count():
        generator = random.Random(f"story_pair:{seed}:{split}:{index}:{attempt}")
        wish, story, plot, *values = parts(thread_grammar(), generator)
        if side(f"wish:{wish.partition(' about ')[2]}") != split:
            continue
        words = dict(zip(CHILDREN + THREADS[plot], values, strict=True))
        changed: str | None = story
        for _ in range(mistakes):
            changed = contradict(changed, words, generator)
            if changed is None:
                break
        else:
            return StoryPair(wish, story, changed, check_consistency(changed).mistakes[0])
    raise AssertionError("unreachable")


def contradict(story: str, words: dict[str, str], generator: random.Random) -> str | None:
    """Change one later mention of one word into another of its kind, so that there is one mistake more.

    Not none more, nor several: the hero's name, changed before the friend appears, would make a mistake of
    each mention of the friend.

    Args:
        story: A story, perhaps with mistakes.
        words: Variable -> its word in this story.
        generator: Where the choices come from.

    Returns:
        The changed story; None if no change was found.
    """
    wanted = len(check_consistency(story).mistakes) + 1
    for _ in range(TRIES):
        variable = generator.choice(sorted(words))
        word = words[variable]
        later = [found.span() for found in re.finditer(rf"\b{re.escape(word)}\b", story)][1:]
        others = [
            entry
            for entry in _entries(variable)
            if entry.text not in words.values() and article(entry.text) == article(word)
        ]
        if not later or not others:
            continue
        start, stop = generator.choice(later)
        other = generator.choice(others).text
        changed = f"{story[:start]}{other}{story[stop:]}"
        if len(check_consistency(changed).mistakes) == wanted and other not in story:
            return changed
    return None


@functools.cache
def _entries(variable: str) -> list[Entry]:
    tables = variables()[variable].tables.values()
    return list({entry.text: entry for table in tables for entry in table.entries}.values())
