"""Rules beside those of the embedded stories: what somebody may ask about a story, and for which story.

A question is a template behind the sentences that answer it; an instruction is one in front of the story that
follows it. Names that were drawn in one part are copied in the other, so question, answer and story agree by
construction. Parts are separated by a tab. See `data/stories_grammar` for the notation.
"""
# ruff: noqa: E501 (a template is one line)

import functools
import random
import re
from collections.abc import Mapping

from scratchlm.data.stories_frame import FRAME
from scratchlm.data.stories_grammar import Grammar
from scratchlm.data.stories_plots import PLOTS
from scratchlm.data.stories_words import variables

QUESTIONS: dict[str, tuple[str, ...]] = {
    "<open> <about> <meet>": (
        "Who is the friend of {hero}?\t{friend}",
        "What is the {kind} called?\t{hero}",
        "What is {hero} like?\t{trait}",
    ),
    "<open> <about> <meet> <lost_start>": (
        "Where did {hero} put the {toy}?\t{spot}",
        "What did {hero} put {spot}?\tthe {toy}",
        "What does the {toy} look like?\t{color}",
        "Who is the friend of {hero}?\t{friend}",
    ),
    "<open> <meet> <lost_start> <lost_notice> <lost_search>": ("Where is the {toy} really?\t{spot}",),
    "<open> <about> <meet> <share_start> <share_ask>": (
        "Who wants to play with the {toy}?\t{friend}",
        "Whose {toy} is it?\t{hero}",
    ),
    "<open> <meet> <make_start> <make_trouble>": (
        "What does {hero} make for {adult}?\t{made.a}",
        "For whom is the {made}?\t{adult}",
        "What is missing for the {made}?\t{material}",
    ),
    "<open> <about> <pet_start> <pet_worry>": (
        "Who was {trap}?\tthe {pet}",
        "What happened to the {pet}?\tit was {trap}",
        "What does the {pet} look like?\t{pet_look}",
    ),
    "<open> <about> <meet> <fear_start>": ("What is {hero} afraid of?\t{fear}",),
    "<open> <meet> <rain_start> <rain_build>": (
        "Where did {hero} want to go?\t{outing}",
        "What did they build?\t{shelter.a}",
        "What did they build it from?\t{stuff}",
    ),
    "<open> <meet> <race_start>": ("What can {hero} win?\t{prize.a}",),
    "<open> <meet> <seed_start> <seed_wait>": (
        "What shall grow?\tthe {seed}",
        "How long did {hero} wait?\t{wait}",
    ),
    "<open> <meet> <task_start> <task_lure>": (
        "What did {hero} promise to do?\t{task}",
        "What does {friend} want to see?\tthe {lure}",
        "Who asked {hero} to {task}?\t{adult}",
    ),
    "<open> <about> <break_start> <break_hide>": (
        "What did {hero} break?\tthe {breakable}",
        "Whose {breakable} was it?\t{adult}",
        "Where are the pieces?\t{spot}",
    ),
    "<open> <about> <load_start>": ("What is in the way?\tthe {load}", "What is blocked?\t{blocked}"),
}
"""Sentences -> questions about them and the answers."""

DEEDS: dict[str, str] = {
    "lost": "who loses {toy.a}",
    "share": "who does not want to share {toy.a}",
    "make": "who makes {made.a} for {adult}",
    "pet": "who helps {pet.a}",
    "fear": "who is afraid of {fear}",
    "rain": "who builds {shelter.a}",
    "race": "who wins {race.a}",
    "seed": "who grows {seed.a}",
    "task": "who promises to {task}",
    "break": "who breaks {breakable.a}",
    "load": "who moves {load.a}",
}
"""Plot -> what the child of the story does, as one asks for it."""

WISHES = ("Tell me a story about", "Write a story about", "I want to hear a story about")

THREADS: dict[str, tuple[str, ...]] = {
    "lost": ("toy", "spot", "color"),
    "share": ("toy", "color"),
    "make": ("made", "adult", "material"),
    "pet": ("pet", "pet_look", "trap"),
    "fear": ("fear",),
    "rain": ("shelter", "outing"),
    "race": ("race", "prize"),
    "seed": ("seed",),
    "task": ("task", "adult", "lure"),
    "break": ("breakable", "adult", "spot"),
    "load": ("load", "blocked"),
}
"""Plot -> what its story names more than once, beside the children."""

CHILDREN = ("hero", "friend", "kind", "trait")
"""What every story names more than once."""

_PLOT = re.compile(r"(?P<weight>\d)\| (?P<body><(?P<plot>\w+)_start>.*)")


CHILDREN_ASKED = "<open> <about> <meet>"
"""The beginning that is only about the children; it is in QUESTIONS."""


@functools.cache
def question_grammar(beginning: str = "") -> Grammar:
    """Return the grammar of "story<tab>question<tab>answer", of all beginnings or of one."""
    chosen = {beginning: QUESTIONS[beginning]} if beginning else QUESTIONS
    options = tuple(f"{story}\t{asked}" for story, found in chosen.items() for asked in found)
    return Grammar(FRAME | PLOTS | {"story": options}, variables())


@functools.cache
def instruction_grammar() -> Grammar:
    """Return the grammar of "wish<tab>story". Plots are as frequent as in the stories."""
    return _told({plot: "" for plot in DEEDS})


@functools.cache
def thread_grammar() -> Grammar:
    """Return the grammar of "wish<tab>story<tab>plot", then the words of CHILDREN and of the plot's THREADS."""
    kept = {plot: "".join(f"\t{{{name}}}" for name in CHILDREN + THREADS[plot]) for plot in DEEDS}
    return _told({plot: f"\t{plot}{names}" for plot, names in kept.items()})


def _told(tails: Mapping[str, str]) -> Grammar:
    rules, options = {}, []
    for option in PLOTS["plot"]:
        found = _PLOT.fullmatch(option)
        assert found is not None, option
        plot = found["plot"]
        rules[f"told_{plot}"] = (f"<open> <about> <meet> {found['body']} <close>",)
        wish = f"<wish> {{hero}}, {{kind.a}} {DEEDS[plot]}."
        options.append(f"{found['weight']}| {wish}\t<told_{plot}>{tails[plot]}")
    return Grammar(FRAME | PLOTS | rules | {"wish": WISHES, "story": tuple(options)}, variables())


@functools.cache
def opening_grammar(start: str = "story") -> Grammar:
    """Return the grammar of "wish<tab>first sentence", or of another rule: "open" for any first sentence."""
    openings = [option.replace("{+view}", "{view}") for option in FRAME["open"] if "{home}" in option]
    wish = "Begin a story about {hero}, {trait.a} {kind} near the {view} {home}."
    rules = {"opening": tuple(openings), "story": (f"{wish}\t<opening>",)}
    return Grammar(FRAME | PLOTS | rules, variables(), start=start)


def fits(grammar: Grammar, text: str) -> bool:
    """Return whether the grammar can write this text."""
    try:
        grammar.parse(text)
    except ValueError:
        return False
    return True


def parts(grammar: Grammar, generator: random.Random) -> list[str]:
    """Draw a text and return its parts."""
    return grammar.sample(generator).text.split("\t")
