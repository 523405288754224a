r"""A row of a task's file comes in; a question comes out, and what an answer to it is worth.

    chosen by likelihood    the model finds one of the answers likeliest behind the prompt     ChoiceTask
    written                 the model writes on; a parser reads the answer                     WrittenTask

    acc        the answer with the largest  ln p(answer | prompt)
    acc_norm   the answer with the largest  ln p(answer | prompt) / characters of the answer

Longer answers are less likely whatever they say; acc_norm evens that out. A new task is a file beside this
one, or a plug-in: a class with a decorator `@TASKS.register("name")`.

Source: Brown et al. 2020, https://arxiv.org/abs/2005.14165, section 2.4 and appendix G.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from scratchlm.evaluate.scoring import Score


class Question(NamedTuple):
    """What a model is asked."""

    prompt: str
    """What stands before the answer; ends without a blank."""
    answers: tuple[str, ...]
    """All choices, each with the blank before it; of a written answer the model solution alone."""
    gold: int = 0
    """Which of them is right."""
    group: str = ""
    """A part of the task that has figures of its own, as MMLU's subjects."""
    prompts: tuple[str, ...] = ()
    """Where not the answers differ but what stands before them: one prompt for each answer."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each choice as what stands before and what is scored."""
        return list(zip(self.prompts or [self.prompt] * len(self.answers), self.answers, strict=True))

    @property
    def solved(self) -> str:
        """The question with its right answer, as it stands in front of others."""
        return "".join(self.pairs[self.gold])


class Task(ABC):
    """A kind of question.

    Attributes:
        name: What the task is called; its files are NAME.jsonl or NAME_*.jsonl.
        shots: Solved questions that usually stand before each one.
        metrics: Names of what `judge` returns.
        is_asked: Whether there is a question that could be asked in a chat.
    """

    name: str
    shots: int
    metrics: tuple[str, ...]
    is_asked: ClassVar[bool] = True

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """Read a row.

        Raises:
            KeyError: Something is missing.
            ValueError: Something cannot be.
        """

    def is_shot(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the file is there to be shown with its answer, and is not asked."""
        return False

    def header(self, group: str) -> str:
        """What stands above everything."""
        return ""


class ChoiceTask(Task):
    """A task whose answer is the one that the model finds likeliest."""

    metrics: tuple[str, ...] = ("acc", "acc_norm")

    def judge(self, question: Question, scores: Sequence[Score]) -> dict[str, float]:
        """Return each metric for one question, from the scores of its answers."""
        found = {
            "acc": float(choose([score.logprob for score in scores]) == question.gold),
            "acc_norm": float(choose(per_character(question, scores)) == question.gold),
        }
        return {name: found[name] for name in self.metrics}


class WrittenTask(Task):
    """A task whose answer is written and then read.

    Attributes:
        stop: Texts that end the answer.
        max_new_tokens: The most tokens of an answer.
    """

    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256

    @abstractmethod
    def judge(self, question: Question, text: str) -> dict[str, float]:
        """Return each metric for one question, from what the model wrote."""


def choose(values: Sequence[float]) -> int:
    """Return the place of the largest value, the first of equal ones.

    Example: [-3.0, -1.0, -1.0] -> 1.
    """
    return max(range(len(values)), key=values.__getitem__)


def per_character(question: Question, scores: Sequence[Score]) -> list[float]:
    """Return each answer's score divided by its length in characters, without the blank before it."""
    lengths = [len(answer.removeprefix(" ")) for answer in question.answers]
    return [score.logprob / max(1, length) for score, length in zip(scores, lengths, strict=True)]


def pick(row: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return row[key] if it is of a kind.

    Raises:
        KeyError: It is missing.
        ValueError: It is of another kind.
    """
    value = row[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key}: is a {type(value).__name__}, must be a {kind.__name__}")
    return value


def pick_texts(row: Mapping[str, Any], key: str) -> list[str]:
    """Return row[key], at least two texts.

    Raises:
        KeyError: It is missing.
        ValueError: It is something else.
    """
    value = pick(row, key, list)
    if len(value) < 2 or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"{key}: must be a list of at least two texts")
    return value


def pick_place(row: Mapping[str, Any], key: str, count: int) -> int:
    """Return row[key], a place in a list of `count`.

    Raises:
        KeyError: It is missing.
        ValueError: It is no such place.
    """
    value = pick(row, key, int)
    if not 0 <= value < count:
        raise ValueError(f"{key}: is {value}, must be 0 to {count - 1}")
    return value
