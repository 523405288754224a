r"""(seed, split, index) -> a problem; (response, answer) -> right or wrong, and nothing between.

    side(key) = "valid" where sha256(key) mod 5 = 0, else "train"
    problem(seed, split, index) = the first draw of a generator seeded with all three that is on that side

Reinforcement learning finds every gap of a checker, so checkers here compare whole texts: a response that
lists several answers, hides one in another or writes beside the asked form is wrong. Which side a problem
is on depends on what it asks alone, never on seed or index, so no held-out problem is ever trained on,
whatever the seeds.

Source: our own; held out by hash as is usual for documents, e.g. the split of C4, Raffel et al. 2019,
https://arxiv.org/abs/1910.10683.
"""

import hashlib
import itertools
import random
import re
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

Split = Literal["train", "valid"]

HELD_OUT = 5
"""One problem of so many is held out: enough for every exercise, the rest is for training."""

_TAGGED = re.compile(r"(?:<think>(?P<thought>.*?)</think>\s*)?<answer>(?P<answer>.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


class Problem(NamedTuple):
    """A task for the assistant."""

    prompt: str
    """What the user says."""
    response: str
    """What a good assistant says: what supervised fine-tuning learns."""
    answer: str
    """What `Exercise.check` compares a response with."""


class Verdict(NamedTuple):
    """What a checker found."""

    correct: bool
    """Whether the response solves the problem; never without the form."""
    formatted: bool
    """Whether the response has the asked form, whatever it says."""


class Exercise(ABC):
    """A kind of problem that can be made without end."""

    @abstractmethod
    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a problem and its key: two problems with one key ask the same."""

    @abstractmethod
    def check(self, response: str, answer: str) -> Verdict:
        """Judge a response by the problem's answer; any text may come, and none raises."""

    def problem(self, seed: int, split: Split, index: int) -> Problem:
        """Return problem number `index` of a split; the same arguments give the same problem."""
        for attempt in itertools.count():
            found, key = self.draw(random.Random(f"{type(self).__name__}:{seed}:{split}:{index}:{attempt}"))
            if side(key) == split:
                return found
        raise AssertionError("unreachable")

    def problems(self, seed: int, split: Split, first: int, count: int) -> list[Problem]:
        """Return `count` problems in a row from number `first` on."""
        return [self.problem(seed, split, index) for index in range(first, first + count)]


def side(key: str) -> Split:
    """Return the split on which everything with this key is."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")
    return "valid" if number % HELD_OUT == 0 else "train"


def check_thoughts(share: float) -> float:
    """Return the share of worked responses that think first, 0 to 1.

    Raises:
        ValueError: It is not in this range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"exercise.thoughts={share}: choose 0 to 1.")
    return share


def tagged(answer: str, thought: str | None = None) -> str:
    """Return a response in tags: `<think>...</think><answer>75</answer>`, or the answer's part alone."""
    told = f"<answer>{answer}</answer>"
    return told if thought is None else f"<think>{thought}</think>{told}"


def read_tagged(response: str) -> str | None:
    """Return what stands in the one <answer> of a response, or None if the form is not kept.

    The form: `<answer>75</answer>`, before it at most one `<think>...</think>`, and nothing else but blanks.
    A second tag anywhere, also inside another one, breaks it: two answers are none.
    """
    found = _TAGGED.fullmatch(response.strip())
    if found is None or any(_TAG.search(part) for part in (found["thought"] or "", found["answer"])):
        return None
    return found["answer"].strip()
