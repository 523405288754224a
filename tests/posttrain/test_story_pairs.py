"""Pairs of stories: one contradiction, in one place, and nothing else that tells them apart."""

import random
from itertools import takewhile

import pytest

from scratchlm.data.stories import check_consistency
from scratchlm.posttrain.tasks.exercise import side
from scratchlm.posttrain.tasks.story_instructions import StoryInstructions
from scratchlm.posttrain.tasks.story_pairs import contradict, story_pair
from scratchlm.posttrain.tasks.story_rules import CHILDREN


@pytest.fixture(scope="module")
def pairs():
    return [story_pair(3, "train", index) for index in range(80)]


def common(a, b):
    return sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(a, b, strict=False)))


def test_a_pair_is_a_function_of_seed_split_and_index(pairs):
    assert story_pair(3, "train", 12) == pairs[12]
    assert story_pair(4, "train", 12) != pairs[12] != story_pair(3, "valid", 12)


def test_the_chosen_story_follows_the_wish_and_the_rejected_one_is_none(pairs):
    check = StoryInstructions().check
    for pair in pairs[:30]:
        wanted = pair.prompt.partition(" about ")[2]
        assert check(pair.chosen, wanted).correct
        assert not check(pair.rejected, wanted).correct


def test_the_scorer_sees_the_contradiction_and_only_in_the_rejected_story(pairs):
    for pair in pairs:
        assert not check_consistency(pair.chosen).mistakes
        assert pair.mistake in check_consistency(pair.rejected).mistakes


def test_the_stories_differ_in_one_phrase_of_the_same_length_class(pairs):
    for pair in pairs:
        before = common(pair.chosen, pair.rejected)
        after = common(pair.chosen[before:][::-1], pair.rejected[before:][::-1])
        changed = pair.rejected[before : len(pair.rejected) - after]
        assert len(changed) <= 30
        assert len(pair.rejected) - len(pair.chosen) == len(changed) - (len(pair.chosen) - before - after)
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    shorter = sum(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    assert min(longer, shorter) > 0.2 * len(pairs)


def test_many_kinds_of_facts_are_contradicted(pairs):
    kinds = {" ".join(pair.mistake.split()[1:3]) for pair in pairs if pair.mistake.startswith("the ")}
    assert len(kinds) >= 6
    assert any("appears, but the children are" in pair.mistake for pair in pairs)


def test_several_mistakes_are_as_many_contradictions_in_the_same_story(pairs):
    for index in range(10):
        several = story_pair(3, "train", index, mistakes=4)
        assert several.chosen == pairs[index].chosen
        assert len(check_consistency(several.rejected).mistakes) == 4


def test_pairs_are_held_out_with_the_wishes(pairs):
    for split in ("train", "valid"):
        for index in range(10):
            wish = story_pair(9, split, index).prompt.partition(" about ")[2]
            assert side(f"wish:{wish}") == split


def test_a_story_that_names_nothing_twice_cannot_be_contradicted():
    words = dict.fromkeys(CHILDREN, "Mia")
    assert contradict("Mia slept.", words, random.Random(0)) is None


def test_each_change_is_one_mistake_more_not_none_and_not_several():
    early = "Mia was a girl. Mia met Tom. Tom laughed, and Mia sang to Tom."
    for seed in range(40):  # the second "Mia", changed, would make a stranger of Tom three times
        changed = contradict(early, {"hero": "Mia", "friend": "Tom"}, random.Random(seed))
        assert len(check_consistency(changed).mistakes) == 1
        again = contradict(changed, {"hero": "Mia", "friend": "Tom"}, random.Random(seed))
        assert again is None or len(check_consistency(again).mistakes) == 2
    strangers = "Mia met Tom. Ben ran, and Ben sang."
    for seed in range(5):  # another stranger in Ben's place is no further mistake
        assert contradict(strangers, {"hero": "Ben", "friend": "Tom"}, random.Random(seed)) is None
