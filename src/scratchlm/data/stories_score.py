"""A story, perhaps written by a model -> facts that come up again, and those that contradict the first.

Each role (the children, the grown-up, the toy, its colour, the hiding place, the promise, ...) has one value
in a story. The first mention sets it; every later mention is a fact, and it is consistent when it says the
same. Every pronoun is a fact too: it must fit the hero. The scorer looks only for the words of the roles, so
it works on text that the grammar would never write, and it never fails. It cannot see a mistake that
mentions no such word.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from scratchlm.data.stories_words import variables

# Variable -> what the message calls it. No word of these lists means anything else in a story of the grammar.
ROLES = {
    "adult": "grown-up",
    "toy": "toy",
    "spot": "hiding place",
    "pet": "animal",
    "trap": "trouble",
    "made": "present",
    "kind": "hero",
    "race": "race",
    "prize": "prize",
    "shelter": "shelter",
    "load": "obstacle",
    "blocked": "way",
    "task": "promise",
    "lure": "temptation",
    "seed": "plant",
    "breakable": "broken thing",
}
_PRONOUNS = {"he": "m", "him": "m", "his": "m", "himself": "m", "she": "f", "her": "f", "herself": "f"}


class Consistency(NamedTuple):
    """How many facts of a story came up again, how many of them agreed, and the others in words."""

    num_facts: int
    num_consistent: int
    mistakes: list[str]


class _Mention(NamedTuple):
    """A phrase of a role in the text and the word before it."""

    role: str
    phrase: str
    before: str


class _Lexicon(NamedTuple):
    """What the scorer knows about words: genders of names, colours, traits, a pattern for the rest."""

    genders: dict[str, str]
    colors: frozenset[str]
    traits: frozenset[str]
    role_of: dict[str, str]
    pattern: re.Pattern[str]


def check_consistency(text: str) -> Consistency:
    """Score the facts of a story that come up more than once; works on any text and never raises."""
    lexicon = _lexicon()
    known: dict[str, str] = {}
    children: list[str] = []
    verdicts: list[str] = []  # a message for each fact, empty where it is consistent
    for mention in _mentions(text, lexicon):
        if mention.role == "name":
            verdicts += _check_name(mention.phrase, children)
        elif mention.role == "pronoun":
            verdicts += _check_pronoun(mention.phrase, children, lexicon)
        elif mention.role:
            verdicts += _check_role(ROLES[mention.role], mention.phrase, known)
            if mention.role == "toy" and mention.before in lexicon.colors:
                verdicts += _check_role("look of the toy", mention.before, known)
            if mention.role == "kind" and mention.before in lexicon.traits:
                verdicts += _check_role("character of the hero", mention.before, known)
    mistakes = [message for message in verdicts if message]
    return Consistency(len(verdicts), len(verdicts) - len(mistakes), mistakes)


def heroes(text: str) -> list[str]:
    """Return the names of the first two children of a story, hero first; fewer if the text has fewer."""
    lexicon = _lexicon()
    names = [mention.phrase for mention in _mentions(text, lexicon) if mention.role == "name"]
    return list(dict.fromkeys(names))[:2]


def _check_name(name: str, children: list[str]) -> list[str]:
    if name in children:
        return [""]
    if len(children) < 2:
        children.append(name)
        return []
    return [f"{name} appears, but the children are {children[0]} and {children[1]}"]


def _check_pronoun(pronoun: str, children: list[str], lexicon: _Lexicon) -> list[str]:
    if not children:
        return []
    fits = _PRONOUNS[pronoun] == lexicon.genders[children[0]]
    return ["" if fits else f'"{pronoun}" does not fit {children[0]}']


def _check_role(role: str, phrase: str, known: dict[str, str]) -> list[str]:
    if role not in known:
        known[role] = phrase
        return []
    first = known[role]
    return ["" if first == phrase else f'the {role} was "{first}", but later it is "{phrase}"']


def _mentions(text: str, lexicon: _Lexicon) -> Iterable[_Mention]:
    for found in lexicon.pattern.finditer(text):
        phrase = found["phrase"]
        role = lexicon.role_of.get(phrase) or ("pronoun" if phrase.lower() in _PRONOUNS else "")
        yield _Mention(role, phrase.lower() if role == "pronoun" else str(phrase), found["before"] or "")


@functools.cache
def _lexicon() -> _Lexicon:
    known = variables()
    lists = {
        name: {e.text: e for t in variable.tables.values() for e in t.entries}
        for name, variable in known.items()
    }
    names = lists["hero"]
    role_of = {name: "name" for name in names} | {text: role for role in ROLES for text in lists[role]}
    own = re.compile(r"\b(?:" + "|".join(map(re.escape, role_of)) + r")\b")
    # Phrases of other lists that contain a word of a role ("pumpkin soup") count as a whole: no mention.
    masks = {
        form
        for entries in lists.values()
        for entry in entries.values()
        for key, form in entry.forms.items()
        if key in ("", "ing", "ed") and form not in role_of and own.search(form)
    }
    pronouns = {form for word in _PRONOUNS for form in (word, word.capitalize())}
    phrases = sorted({*role_of, *masks, *pronouns}, key=len, reverse=True)
    pattern = r"(?:\b(?P<before>[a-z]+) )??\b(?P<phrase>" + "|".join(map(re.escape, phrases)) + r")\b"
    return _Lexicon(
        genders={name: entry.kind for name, entry in names.items()},
        colors=frozenset(lists["color"]),
        traits=frozenset(lists["trait"]),
        role_of=role_of,
        pattern=re.compile(pattern),
    )
