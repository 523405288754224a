r"""Sums over all texts of a grammar without listing them: entropy, number of texts, most words.

    H(rest | words) = sum over options o of p(o) * (-ln p(o) + H(rest after o | words and those bound by o))

The recursion walks the grammar from left to right and remembers its results. What is still to come (a
continuation) does not look at every bound word, only at those that a later draw depends on, and of these
only at the class or the weight; so a few thousand states stand for all texts. One text has one
derivation, so the entropy of derivations is the entropy of texts.

Source: as in stories_grammar.py; liveness as in a compiler (Aho, Lam, Sethi, Ullman 2006, section 9.2.5).
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scratchlm.data.stories_grammar import Element, Entry, Grammar, Rule, Slot


class Totals(NamedTuple):
    """Sums over all texts that can still follow."""

    entropy: float  # nats
    num_texts: int
    most_words: int


class Rest:
    """What is still to be written: one element, then another rest; the empty rest has no element."""

    __slots__ = ("element", "following", "slots")

    def __init__(self, element: Element | None, following: "Rest | None", slots: frozenset[Slot]) -> None:
        self.element, self.following, self.slots = element, following, slots


class Summation:
    """Computes the totals of a grammar; `totals()` is the result for whole texts."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._end = Rest(None, None, frozenset())
        self._whole = (grammar.start,)
        self._rests: dict[tuple[int, Rest], Rest] = {}
        self._slots: dict[str, frozenset[Slot]] = {}
        self._known: dict[Hashable, Totals] = {}

    def totals(self) -> Totals:
        """Return entropy, number and greatest length of all texts."""
        return self._totals(self._prepend(self._whole, self._end), {})

    def _prepend(self, elements: Sequence[Element], rest: Rest) -> Rest:
        key = (id(elements), rest)
        if key not in self._rests:
            made = rest
            for element in reversed(elements):
                made = Rest(element, made, made.slots | self._slots_in(element))
            self._rests[key] = made
        return self._rests[key]

    def _slots_in(self, element: Element) -> frozenset[Slot]:
        """Return the slots, without their forms, that may come up in an element."""
        if type(element) is Slot:
            return frozenset({element._replace(form="")})
        if type(element) is not Rule:
            return frozenset()
        if element.name not in self._slots:
            parts = [self._slots_in(part) for option in element.options for part in option]
            self._slots[element.name] = frozenset().union(*parts)
        return self._slots[element.name]

    def _state(self, rest: Rest, bound: dict[str, Entry]) -> Hashable:
        """Return all that the rest can see of the bound words."""
        seen: list[Hashable] = [rest]
        for slot in rest.slots:
            if slot.variable in bound and not slot.fresh:
                seen.append(True)
                continue
            variable = self.grammar.variables[slot.variable]
            if variable.parent in bound:
                seen.append(bound[variable.parent].kind)
            for other in variable.avoids:
                entry = bound.get(other)
                seen.append((entry.weight, variable.may_draw(entry)) if entry else None)
            seen.append(False)
        return tuple(seen)

    def _totals(self, rest: Rest, bound: dict[str, Entry]) -> Totals:
        words = 0
        while type(rest.element) is str or (
            type(rest.element) is Slot and not rest.element.fresh and rest.element.variable in bound
        ):
            element = rest.element
            text = element if type(element) is str else bound[element.variable].forms[element.form]
            words += num_words(text)
            rest = rest.following
        if rest.element is None:
            return Totals(0.0, 1, words)
        key = self._state(rest, bound)
        if key not in self._known:
            choose = self._over_options if type(rest.element) is Rule else self._over_words
            self._known[key] = choose(rest, bound)
        known = self._known[key]
        return Totals(known.entropy, known.num_texts, known.most_words + words)

    def _over_options(self, rest: Rest, bound: dict[str, Entry]) -> Totals:
        rule = rest.element
        branches = [
            (log_probability, self._totals(self._prepend(option, rest.following), bound))
            for option, log_probability in zip(rule.options, rule.log_probabilities, strict=True)
        ]
        return _mix(branches)

    def _over_words(self, rest: Rest, bound: dict[str, Entry]) -> Totals:
        slot = rest.element
        variable = self.grammar.variables[slot.variable]
        table = variable.table(bound)
        excluded = variable.excluded(bound, table)
        shown = {entry.forms[slot.form] for entry in table.entries}
        assert len(shown) == len(table.entries), (
            f"{slot} is drawn, but its text does not tell which word it was"
        )
        branches = []
        for i, entry in enumerate(table.entries):
            if i not in excluded:
                after = bound if slot.fresh else {**bound, slot.variable: entry}
                found = self._totals(rest.following, after)
                words = num_words(entry.forms[slot.form]) + found.most_words
                branches.append((table.log_probability(entry, excluded), found._replace(most_words=words)))
        return _mix(branches)


def _mix(branches: Sequence[tuple[float, Totals]]) -> Totals:
    """Return the totals of a choice from (ln p, totals after it)."""
    return Totals(
        math.fsum(math.exp(log_p) * (found.entropy - log_p) for log_p, found in branches),
        sum(found.num_texts for _, found in branches),
        max(found.most_words for _, found in branches),
    )


def num_words(text: str) -> int:
    """Count the pieces of a text that are words, not lone punctuation."""
    return sum(piece[0] != "'" and any(letter.isalpha() for letter in piece) for piece in text.split())
