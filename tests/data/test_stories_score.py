"""The consistency scorer: full marks for the grammar's stories, seeded mistakes found, any text accepted."""

import re

import pytest

from scratchlm.data import stories
from scratchlm.data.stories_words import variables


def _words_of(variable):
    return [entry.text for table in variables()[variable].tables.values() for entry in table.entries]


def test_generated_stories_get_full_marks():
    num_facts = 0
    for i in range(3_000):
        text = stories.generate_story(11, i)
        score = stories.check_consistency(text)
        assert score.mistakes == [], text
        assert score.num_facts == score.num_consistent > 0
        num_facts += score.num_facts
    assert num_facts / 3_000 > 10


@pytest.mark.parametrize(
    "role", ["toy", "spot", "adult", "pet", "made", "prize", "seed", "breakable", "task"]
)
def test_a_swapped_word_is_found(role):
    choices = _words_of(role)
    tried = 0
    for i in range(400):
        text = stories.generate_story(5, i)
        for word in choices:
            places = [found.span() for found in re.finditer(rf"\b{re.escape(word)}\b", text)]
            if len(places) < 2 or not stories.check_consistency(text).num_facts:
                continue
            other = next(choice for choice in choices if choice not in text and choice not in word)
            start, end = places[-1]
            score = stories.check_consistency(text[:start] + other + text[end:])
            if stories.check_consistency(text[:start] + "it" + text[end:]) == stories.check_consistency(text):
                continue  # the word is part of a longer phrase here
            assert score.num_consistent == score.num_facts - 1, text
            assert f'later it is "{other}"' in score.mistakes[0]
            tried += 1
    assert tried > 3


def test_a_swapped_name_and_a_wrong_pronoun_are_found():
    for i in range(300):
        text = stories.generate_story(6, i)
        hero, friend = stories.heroes(text)
        if len(re.findall(rf"\b{friend}\b", text)) < 2:
            continue
        stranger = next(name for name in ("Noah", "Kate", "Emma") if name not in (hero, friend))
        at = text.rindex(f" {friend}") + 1
        swapped = text[:at] + stranger + text[at + len(friend) :]
        assert f"{stranger} appears, but the children are" in stories.check_consistency(swapped).mistakes[0]
        found = re.search(r"\b(he|she|He|She)\b", text)
        if found:
            wrong = {"he": "she", "she": "he", "He": "She", "She": "He"}[found[0]]
            score = stories.check_consistency(text[: found.start()] + wrong + text[found.end() :])
            assert score.mistakes == [f'"{wrong.lower()}" does not fit {hero}']


@pytest.mark.parametrize(
    "text", ["", "\x00\ufffd", "he she it", "the the the", "Lily Lily Tom Ben", "(?P<x>", "ball " * 1_000]
)
def test_any_text_is_scored_without_an_error(text):
    score = stories.check_consistency(text)
    assert score.num_facts == score.num_consistent + len(score.mistakes)
