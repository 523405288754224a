"""The grammar: every choice sums to one, the options of a rule form a prefix code, the sums are exact."""

import itertools
import math
import random
import re

import pytest

from scratchlm.data.stories import story_grammar
from scratchlm.data.stories_entropy import Summation
from scratchlm.data.stories_grammar import Grammar, Rule, Slot, Variable, article, entries

_PIECE = re.compile(r"\w+|[^\w\s]")


def test_probabilities_of_every_choice_sum_to_one():
    grammar = story_grammar()
    for rule in grammar.rules.values():
        assert math.fsum(map(math.exp, rule.log_probabilities)) == pytest.approx(1, abs=1e-12)
    for variable in grammar.variables.values():
        for table in variable.tables.values():
            for excluded in ([], [0], [len(table.entries) - 1], [0, 1]):
                if len(excluded) < len(table.entries):
                    left = [entry for i, entry in enumerate(table.entries) if i not in excluded]
                    total = math.fsum(math.exp(table.log_probability(entry, excluded)) for entry in left)
                    assert total == pytest.approx(1, abs=1e-12)


def test_every_rule_and_variable_is_used():
    grammar = story_grammar()
    elements = [element for rule in grammar.rules.values() for option in rule.options for element in option]
    assert {element.name for element in elements if isinstance(element, Rule)} == grammar.rules.keys() - {
        "story"
    }
    assert {element.variable for element in elements if isinstance(element, Slot)} == grammar.variables.keys()


def test_words_of_a_table_differ_in_every_form():
    for name, variable in story_grammar().variables.items():
        for table in variable.tables.values():
            for form in ("", "a", "cap"):
                shown = [entry.forms[form] for entry in table.entries]
                assert len(set(shown)) == len(shown), (name, form)


def test_draws_without_excluded_entries_follow_their_probabilities():
    table = Variable({"": entries("a*3, b, c*2, d*4")}).tables[""]
    points = [(i + 0.5) / 7_000 for i in range(7_000)]
    drawn = [table.draw(point, [0]).text for point in points]
    assert {word: drawn.count(word) for word in "bcd"} == {"b": 1_000, "c": 2_000, "d": 4_000}


class _Automaton:
    """Walks all texts of a sequence of elements by word; a slot may be any of its words."""

    def __init__(self, grammar):
        self.grammar = grammar
        self.known = {}

    def steps(self, rest):
        """Return word -> rests after it, where a rest is a tuple of elements or words still to come."""
        if rest not in self.known:
            found = {}
            for word, after in self._steps(rest):
                found.setdefault(word, set()).add(after)
            self.known[rest] = found
        return self.known[rest]

    def _steps(self, rest):
        if not rest:
            return
        element, *following = rest
        if isinstance(element, str):
            words = tuple(_PIECE.findall(element))
            if not words:
                yield from self._steps(tuple(following))
            elif len(words) == 1:
                yield words[0], tuple(following)
            else:
                yield words[0], (" ".join(words[1:]), *following)
        elif isinstance(element, Rule):
            for option in element.options:
                yield from self._steps((*option, *following))
        else:
            tables = self.grammar.variables[element.variable].tables.values()
            for shown in {entry.forms[element.form] for table in tables for entry in table.entries}:
                yield from self._steps((shown, *following))

    def clash(self, left, right):
        """Return words that one sequence can end with while the other begins with them, or None."""
        seen, waiting = set(), [(left, right, ())]
        while waiting:
            a, b, words = waiting.pop()
            if not a or not b:
                return " ".join(words)
            if (a, b) in seen:
                continue
            seen.add((a, b))
            after_a, after_b = self.steps(a), self.steps(b)
            for word in after_a.keys() & after_b.keys():
                waiting += [(x, y, (*words, word)) for x in after_a[word] for y in after_b[word]]
        return None


def _clashes(grammar):
    automaton = _Automaton(grammar)
    choices = {name: rule.options for name, rule in grammar.rules.items()}
    for rule in grammar.rules.values():
        for slot in (element for option in rule.options for element in option if isinstance(element, Slot)):
            if slot.form in ("he", "He", "him", "his", "His", "himself"):
                continue  # only copies: Summation asserts that every drawn form tells the word
            for kind, table in grammar.variables[slot.variable].tables.items():
                shown = [(entry.forms[slot.form],) for entry in table.entries]
                choices[f"{slot.variable}.{slot.form} {kind}"] = shown
    for name, options in choices.items():
        for left, right in itertools.combinations(options, 2):
            words = automaton.clash(left, right)
            if words is not None:
                yield f"{name}: {words}"


def test_options_form_a_prefix_code_so_that_a_text_has_one_derivation():
    assert list(_clashes(story_grammar())) == []


def test_the_prefix_check_finds_an_ambiguous_grammar():
    pets = {"pet": Variable({"": entries("cat, big cat, dog")})}
    assert list(_clashes(Grammar({"story": ("A {pet}.", "A {pet}!")}, pets))) == []
    assert list(_clashes(Grammar({"story": ("A {pet}.", "A big {pet}.")}, pets))) == ["story: A big cat ."]
    assert list(_clashes(Grammar({"story": ("It ran", "It ran away.")}, pets))) == ["story: It ran"]


@pytest.fixture
def small():
    people = {"f": entries("Ann*2, Eva", kind="f"), "m": entries("Tom, Bob*3", kind="m")}
    toys = entries("falling: ball, kite, car")
    variables = {
        "hero": Variable({"": people["f"] + people["m"]}),
        "friend": Variable({"f": people["m"], "m": people["f"]}, parent="hero"),
        "toy": Variable({"": toys}),
        "other": Variable({"": toys}, avoids=("toy",)),
    }
    rules = {
        "story": ("3| {hero} has {toy.a}. <next>", "{hero} and {friend} play. <next>"),
        "next": (
            "{hero.He} wants {toy.a} and {other.a}.",
            "2| {friend} laughs at the {toy}, the {+other} and {hero.him}.",
        ),
    }
    return Grammar(rules, variables)


def test_the_sums_equal_those_over_all_texts_of_a_small_grammar(small):
    generator = random.Random(0)
    seen = {}
    for _ in range(20_000):
        text, log_probability = small.sample(generator)
        assert seen.setdefault(text, log_probability) == log_probability
    totals = Summation(small).totals()
    assert totals.num_texts == len(seen)
    assert math.fsum(map(math.exp, seen.values())) == pytest.approx(1, abs=1e-9)
    assert totals.entropy == pytest.approx(-math.fsum(math.exp(p) * p for p in seen.values()), abs=1e-9)
    assert totals.most_words == max(len(text.split()) for text in seen)


def test_articles_follow_the_sound():
    for phrase in ("apple", "hour", "honest boy", "Aunt May", "old unicorn"):
        assert article(phrase) == "an"
    for phrase in ("ball", "unicorn", "useful box", "one-eyed cat", "yo-yo"):
        assert article(phrase) == "a"


def test_word_lists_know_weights_mass_nouns_and_verb_forms():
    cake, bread, run = entries("cake*3, ~bread, run/running/ran")
    assert (cake.weight, cake.forms["a"]) == (3.0, "a cake")
    assert bread.forms["a"] == "some bread"
    assert (run.forms[""], run.forms["ing"], run.forms["ed"]) == ("run", "running", "ran")
    assert [entry.weight for entry in entries("falling: a, b")] == [1 / 8, 1 / 9]
