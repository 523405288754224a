r"""A grammar whose texts have one derivation each: sample a text, parse it back, add up over all texts.

    text       = rule "story", expanded from left to right
    template   = literal words, <rule>, {slot}
    p(text)    = product of p(option | rule) and p(word | slot, words bound before)
    entropy    = sum over texts of -p(text) ln p(text), exactly, by dynamic programming

A slot `{hero}` draws a word at its first mention and remembers it; every later `{hero}` copies it, in any
form (`{hero.he}`, `{hero.his}`). `{+food}` draws afresh and remembers nothing. A variable may depend on
the class of another one (the friend of a girl is a boy) and may exclude the words that others hold. The
options of every rule form a prefix code: no text of one option begins with a text of another, so the
first option that fits the text is the only one, the parser never goes back over a finished rule, and it
runs in time linear in the text (tests check the prefix property).

Source: probabilistic context-free grammars with bound variables, in the manner of Knuth 1968, "Semantics of
context-free languages", https://doi.org/10.1007/BF01692511; the entropy recursion follows Grenander 1967.
"""

import math
import random
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

_ELEMENT = re.compile(r"<(?P<rule>\w+)>|\{(?P<fresh>\+?)(?P<variable>\w+)(?:\.(?P<form>\w+))?\}")
_WORD = re.compile(r"[A-Za-z]+")
_PRONOUNS = {"m": ("he", "him", "his", "himself"), "f": ("she", "her", "her", "herself")}
# Vowel letters that are no vowel sounds, and the other way round.
_SAYS_A = ("uni", "use", "uku", "one")
_SAYS_AN = ("hour", "honest")


class Entry:
    """One word or phrase of a list with all its forms; `kind` is its class (gender, sort of thing)."""

    __slots__ = ("forms", "kind", "text", "weight")

    def __init__(self, text: str, *, kind: str, weight: float) -> None:
        base, *others = text.split("/")
        mass = base.startswith("~")
        base = base.removeprefix("~")
        self.text, self.kind, self.weight = base, kind, weight
        self.forms = {"": base, "a": f"{'some' if mass else article(base)} {base}", "cap": capitalised(base)}
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["of"] = f"{base}'s"
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["of"] = f"{base}'s"
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms["of"] = f"{base}'s"
        self.forms["A"] = capitalised(self.forms["a"])
        self.forms |= dict(zip(("ing", "ed"), others, strict=False))
        if kind in _PRONOUNS:
            he, him, his, himself = _PRONOUNS[kind]
            self.forms |= {"he": he, "him": him, "his": his, "himself": himself}
            self.forms |= {"He": capitalised(he), "His": capitalised(his)}

    def __repr__(self) -> str:
        return f"Entry({self.text!r})"


def article(phrase: str) -> str:
    """Return "a" or "an" as the phrase sounds, e.g. "an" for "old hat"."""
    word = phrase.lower()
    if word.startswith(_SAYS_AN):
        return "an"
    return "an" if word[0] in "aeiou" and not word.startswith(_SAYS_A) else "a"


def capitalised(phrase: str) -> str:
    """Return the phrase with its first letter in upper case, the others as they are."""
    return phrase[0].upper() + phrase[1:]


def entries(spec: str, *, kind: str = "") -> list[Entry]:
    """Read a list such as "red, blue*3, ~bread, run/running/ran".

    `*3` is a weight (1 without), `~` marks a mass noun ("some bread"), `/` separates base, -ing and past
    forms. A list that starts with "falling:" gets weights 1/8, 1/9, 1/10, ...: the later a word, the rarer.
    """
    falling = spec.startswith("falling:")
    found = []
    for rank, item in enumerate(spec.removeprefix("falling:").split(",")):
        text, _, weight = item.strip().partition("*")
        found.append(Entry(text, kind=kind, weight=float(weight or 1) / (8 + rank if falling else 1)))
    return found


class Table:
    """The entries that a variable may take, with their weights; a draw may exclude some."""

    def __init__(self, found: Sequence[Entry]) -> None:
        self.entries = list(found)
        self.cumulative = []
        self.total = 0.0
        for entry in self.entries:
            self.total += entry.weight
            self.cumulative.append(self.total)
        self.position = {entry: i for i, entry in enumerate(self.entries)}
        self.logs = {entry: math.log(entry.weight / self.total) for entry in self.entries}
        self._by_word: dict[str, dict[str, list[tuple[str, Entry]]]] = {}

    def excluded(self, others: Iterable[Entry]) -> list[int]:
        """Return the positions of those of the other entries that stand in this table, in order."""
        return sorted({self.position[entry] for entry in others if entry in self.position})

    def log_probability(self, entry: Entry, excluded: Sequence[int] = ()) -> float:
        """Return ln p(entry) when the entries at the excluded positions cannot be drawn."""
        if not excluded:
            return self.logs[entry]
        total = self.total
        for i in excluded:
            total -= self.entries[i].weight
        return math.log(entry.weight / total)

    def draw(self, uniform: float, excluded: Sequence[int] = ()) -> Entry:
        """Return the entry at the point `uniform` in [0, 1) of the distribution without the excluded ones."""
        if not excluded:
            return self.entries[bisect_right(self.cumulative, uniform * self.total, 0, len(self.entries) - 1)]
        point = uniform * (self.total - sum(self.entries[i].weight for i in excluded))
        for i in excluded:  # step over each gap: exact, without rejection
            if point >= self.cumulative[i] - self.entries[i].weight:
                point += self.entries[i].weight
        i = bisect_right(self.cumulative, point, 0, len(self.entries) - 1)
        while i in excluded:  # a rounding error at the edge of a gap
            i = i + 1 if i + 1 < len(self.entries) else 0
        return self.entries[i]

    def match(self, text: str, start: int, form: str) -> Entry | None:
        """Return the entry that stands in the text at `start` in this form, or None."""
        if form not in self._by_word:
            index: dict[str, list[tuple[str, Entry]]] = {}
            for entry in self.entries:
                shown = entry.forms[form]
                index.setdefault(_WORD.match(shown).group(), []).append((shown, entry))
            self._by_word[form] = index
        word = _WORD.match(text, start)
        for shown, entry in self._by_word[form].get(word.group(), ()) if word else ():
            end = start + len(shown)
            if text.startswith(shown, start) and not text[end : end + 1].isalpha():
                return entry
        return None


class Variable:
    """A name for a drawn word: its tables by the class of its parent, and whose words it avoids.

    The table "" holds when there is no parent or while the parent has no word yet.
    """

    def __init__(
        self, tables: Mapping[str, Sequence[Entry]], *, parent: str = "", avoids: Sequence[str] = ()
    ) -> None:
        self.tables = {kind: Table(found) for kind, found in tables.items()}
        self.parent = parent
        self.avoids = tuple(avoids)

    def table(self, bound: Mapping[str, Entry]) -> Table:
        """Return the table that holds now."""
        return self.tables[bound[self.parent].kind if self.parent in bound else ""]

    def draw(self, bound: Mapping[str, Entry], uniform: float) -> tuple[Entry, float]:
        """Return the entry at the point `uniform` in [0, 1) of the distribution that holds now, and ln p."""
        table = self.tables[bound[self.parent].kind if self.parent in bound else ""]
        if not self.avoids:
            last = len(table.entries) - 1
            entry = table.entries[bisect_right(table.cumulative, uniform * table.total, 0, last)]
            return entry, table.logs[entry]
        excluded = self.excluded(bound, table)
        entry = table.draw(uniform, excluded)
        return entry, table.log_probability(entry, excluded)

    def read(
        self, bound: Mapping[str, Entry], text: str, start: int, form: str
    ) -> tuple[Entry | None, float]:
        """Return the entry in the text at `start` and ln p of drawing it now; no entry fits: (None, 0)."""
        table = self.tables[bound[self.parent].kind if self.parent in bound else ""]
        entry = table.match(text, start, form)
        if entry is None or not self.avoids:
            return entry, table.logs[entry] if entry else 0.0
        excluded = self.excluded(bound, table)
        if table.position[entry] in excluded:
            return None, 0.0
        return entry, table.log_probability(entry, excluded)

    def may_draw(self, entry: Entry) -> bool:
        """Return whether the entry stands in one of the tables."""
        return any(entry in table.position for table in self.tables.values())

    def excluded(self, bound: Mapping[str, Entry], table: Table) -> list[int]:
        """Return the positions in the table that other variables hold."""
        if not self.avoids:
            return []
        return table.excluded(bound[name] for name in self.avoids if name in bound)


class Slot(NamedTuple):
    """A place in a template where a variable's word is drawn or copied."""

    variable: str
    form: str
    fresh: bool


class Rule:
    """A choice between templates; `options` are element sequences, filled in by the grammar."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options: list[tuple[Element, ...]] = []
        self.cumulative: list[float] = []
        self.log_probabilities: list[float] = []


Element = str | Slot | Rule


class Derivation(NamedTuple):
    """A text and the natural logarithm of its probability."""

    text: str
    log_probability: float


class Grammar:
    """Rules and variables, ready to sample, parse and list.

    Args:
        rules: Name -> templates; "3| text" gives an option three times the weight of another.
        variables: Name -> where its words come from.
    """

    def __init__(
        self, rules: Mapping[str, Sequence[str]], variables: Mapping[str, Variable], *, start: str = "story"
    ) -> None:
        self.variables = dict(variables)
        self.rules = {name: Rule(name) for name in rules}
        for name, templates in rules.items():
            self._fill(self.rules[name], templates)
        self.start = self.rules[start]

    def _fill(self, rule: Rule, templates: Sequence[str]) -> None:
        weights = []
        for template in templates:
            weight, bar, text = template.partition("| ")
            weights.append(float(weight) if bar else 1.0)
            rule.options.append(tuple(self._elements(text if bar else template)))
        total = sum(weights)
        rule.log_probabilities = [math.log(weight / total) for weight in weights]
        rule.cumulative = [sum(weights[: i + 1]) / total for i in range(len(weights))]

    def _elements(self, template: str) -> Iterator[Element]:
        end = 0
        for found in _ELEMENT.finditer(template):
            if found.start() > end:
                yield template[end : found.start()]
            end = found.end()
            if found["rule"]:
                yield self.rules[found["rule"]]
            else:
                assert found["variable"] in self.variables, (found["variable"], template)
                yield Slot(found["variable"], found["form"] or "", bool(found["fresh"]))
        if end < len(template):
            yield template[end:]

    def sample(self, generator: random.Random) -> Derivation:
        """Draw one text; the same state of the generator gives the same text."""
        pieces: list[str] = []
        log_probability = self._expand(self.start.name, {}, pieces, generator.random)
        return Derivation("".join(pieces), log_probability)

    def _expand(self, name: str, bound: dict[str, Entry], pieces: list[str], uniform: object) -> float:
        """Expand a rule into pieces of text; return the logarithm of the probability of the choices."""
        rule = self.rules[name]
        last = len(rule.options) - 1
        chosen = bisect_right(rule.cumulative, uniform(), 0, last) if last else 0
        logs = [rule.log_probabilities[chosen]]
        for element in rule.options[chosen]:
            if type(element) is str:
                pieces.append(element)
            elif type(element) is Rule:
                logs.append(self._expand(element.name, bound, pieces, uniform))
            elif not element.fresh and element.variable in bound:
                pieces.append(bound[element.variable].forms[element.form])
            else:
                entry, log_probability = self.variables[element.variable].draw(bound, uniform())
                logs.append(log_probability)
                pieces.append(entry.forms[element.form])
                if not element.fresh:
                    bound[element.variable] = entry
        return math.fsum(logs)

    def parse(self, text: str) -> Derivation:
        """Return the only derivation of the text.

        Raises:
            ValueError: The grammar does not produce this text; the message shows how far it got.
        """
        reader = _Reader(self, text)
        found = reader.read(self.start, 0, {})
        if found is None or found[0] != len(text):
            at = len(text) if found is None else found[0]
            at = min(reader.furthest, len(text)) if found is None else at
            raise ValueError(
                f"no story of this grammar: the text stops fitting at character {at}, after "
                f"{text[max(0, at - 30) : at]!r} and before {text[at : at + 30]!r}; "
                "pass the whole text of one story, unchanged."
            )
        return Derivation(text, found[1])


class _Reader:
    """One pass of the parser over one text."""

    def __init__(self, grammar: Grammar, text: str) -> None:
        self.grammar, self.text, self.furthest = grammar, text, 0

    def read(self, rule: Rule, start: int, bound: dict[str, Entry]) -> tuple[int, float] | None:
        """Return the end and the log-probability of the one option that fits at `start`; bind its words."""
        for elements, log_probability in zip(rule.options, rule.log_probabilities, strict=True):
            first = elements[0]
            if type(first) is str and not self.text.startswith(first, start):
                continue
            trial = dict(bound)
            found = self._read_elements(elements, start, trial, log_probability)
            if found is not None:
                bound.update(trial)
                return found
        return None

    def _read_elements(
        self, elements: Sequence[Element], at: int, bound: dict[str, Entry], log_probability: float
    ) -> tuple[int, float] | None:
        logs = [log_probability]
        for element in elements:
            self.furthest = max(self.furthest, at)
            if type(element) is str:
                if not self.text.startswith(element, at):
                    return None
                at += len(element)
            elif type(element) is Rule:
                found = self.read(element, at, bound)
                if found is None:
                    return None
                at, inner = found
                logs.append(inner)
            elif not element.fresh and element.variable in bound:
                shown = bound[element.variable].forms[element.form]
                if not self.text.startswith(shown, at):
                    return None
                at += len(shown)
                if self.text[at : at + 1].isalpha():
                    return None
            else:
                entry = self._read_slot(element, at, bound, logs)
                if entry is None:
                    return None
                at += len(entry.forms[element.form])
        return at, math.fsum(logs)

    def _read_slot(self, slot: Slot, at: int, bound: dict[str, Entry], logs: list[float]) -> Entry | None:
        variable = self.grammar.variables[slot.variable]
        entry, log_probability = variable.read(bound, self.text, at, slot.form)
        if entry is None:
            return None
        logs.append(log_probability)
        if not slot.fresh:
            bound[slot.variable] = entry
        return entry
