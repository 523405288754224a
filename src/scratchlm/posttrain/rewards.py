r"""Answers come in, one number for each goes out: how good it was, as a program can tell.

    reward = sum of weight * part        correct, formatted, number, exact, think, regex, length, program

A part looks at one answer (`Attempt`) and returns a number. What a model writes decides how long a check
takes and whether it breaks, so a part may raise, hang (regex and program have time limits) or return NaN:
that is no reward, not a bad one. Under on_failure="skip" such an answer teaches nothing, so nothing can be
won by breaking a check; "zero" counts it as 0, "stop" ends the run. All failures are counted, and a step in
which every answer failed ends the run: the reward is broken, not the answers.

Sources: rewards by rule for form and answer: DeepSeek-AI 2025 (R1), https://arxiv.org/abs/2501.12948, section
2.2.2; length: Yu et al. 2025 (DAPO), https://arxiv.org/abs/2503.14476, equation 13.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import regex
import torch
from jaxtyping import Float
from torch import Tensor

from scratchlm.evaluate.answers import marked_number, parse_gsm8k_response, same_number, same_text
from scratchlm.posttrain.reward_process import RewardProcess
from scratchlm.posttrain.tasks.exercise import Problem, Verdict, read_tagged
from scratchlm.registry import Family
from scratchlm.runtime import log
from scratchlm.train.trainer import StepImpossibleError

OnFailure = Literal["skip", "zero", "stop"]

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a part may raise about an answer; anything else is no matter of the answer."""

MOST_WARNINGS = 20
"""Kinds of failures that are told: a message with a number in it is another one each time."""


class RewardError(StepImpossibleError):
    """A reward could not be computed."""


class Attempt(NamedTuple):
    """An answer to a problem."""

    problem: Problem
    """What was asked, and what is right."""
    response: str
    """What the model wrote, without the token or text that ended it."""
    num_tokens: int
    """Tokens that it took."""
    finished: bool
    """Whether the model ended it; otherwise it was cut."""
    verdict: Verdict
    """What the exercise's own checker says."""


class Reward(ABC):
    """One part of the reward; `weight` is what it counts."""

    weight: float = 1.0

    @abstractmethod
    def __call__(self, attempt: Attempt) -> float:
        """Return how good an answer is; whatever it raises is a failure of this answer alone."""

    def close(self) -> None:
        """Give back what it holds: nothing, unless a part says otherwise."""
        return None


REWARDS: Family[Reward] = Family("reward", package="scratchlm.posttrain.rewards")
"""Parts of the reward by name."""


@REWARDS.register("correct")
class Correct(Reward):
    """1 where the exercise's own checker says that the answer is right."""

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0."""
        return float(attempt.verdict.correct)


@REWARDS.register("formatted")
class Formatted(Reward):
    """1 where the exercise's own checker says that the answer has the asked form."""

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0."""
        return float(attempt.verdict.formatted)


@REWARDS.register("number")
class ExactNumber(Reward):
    """1 where a number equals the expected one, however it is written: the last one of the text, say."""

    def __init__(
        self, *, where: Literal["last", "marked", "tagged", "whole"] = "last", weight: float = 1.0
    ) -> None:
        """Choose which number counts.

        Args:
            where: last: the last one of the text; marked: behind the first ####; tagged: in <answer>; whole:
                the text is nothing but the number.
            weight: What it counts.
        """
        self.where, self.weight = where, weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0."""
        text = attempt.response
        if self.where == "marked":
            found = marked_number(text)
        elif self.where == "last":
            found = parse_gsm8k_response(text)
        else:
            only = read_tagged(text) if self.where == "tagged" else text.strip()
            found = only if only and _NUMBER.fullmatch(only) else None
        return float(same_number(found, attempt.problem.answer))


@REWARDS.register("exact")
class ExactText(Reward):
    """1 where the text is the expected one, but for upper or lower case, blanks and a final period."""

    def __init__(self, *, where: Literal["whole", "tagged"] = "whole", weight: float = 1.0) -> None:
        """Compare the whole text, or what stands in its <answer>."""
        self.where, self.weight = where, weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0."""
        found = read_tagged(attempt.response) if self.where == "tagged" else attempt.response
        return float(found is not None and same_text(found, attempt.problem.answer))


@REWARDS.register("think")
class ThinkForm(Reward):
    """1 for <think>...</think><answer>...</answer> and nothing else; a tag too many breaks it."""

    def __init__(self, *, opened: bool = False, weight: float = 1.0) -> None:
        """Say what the prompt has already.

        Args:
            opened: Whether the prompt ends with <think>, so that the answer begins inside of it.
            weight: What it counts.
        """
        self.opened, self.weight = opened, weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0."""
        text = ("<think>" if self.opened else "") + attempt.response
        return float(text.lstrip().startswith("<think>") and read_tagged(text) is not None)


@REWARDS.register("regex")
class Pattern(Reward):
    """1 where a regular expression is found in the answer, or is all of it."""

    def __init__(
        self, *, pattern: str, whole: bool = False, seconds: float = 1.0, weight: float = 1.0
    ) -> None:
        """Compile the pattern.

        Args:
            pattern: A regular expression of the `regex` package; `.` is any character, also a line's end.
            whole: Whether it has to be the whole text.
            seconds: How long it may take with one text.
            weight: What it counts.

        Raises:
            ValueError: The pattern is none.
        """
        try:
            compiled = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"reward.pattern={pattern!r}: is no regular expression: {error}.") from None
        self.find = compiled.fullmatch if whole else compiled.search
        self.seconds, self.weight = seconds, weight

    def __call__(self, attempt: Attempt) -> float:
        """Return 1 or 0.

        Raises:
            RewardError: It took longer than it may.
        """
        try:
            return float(self.find(attempt.response, timeout=self.seconds) is not None)
        except TimeoutError:
            raise RewardError(f"the pattern took longer than {self.seconds:g} seconds") from None


@REWARDS.register("length")
class Length(Reward):
    """0 up to `free` tokens, then evenly down to -1 at `most`; -1 for an answer that was cut."""

    def __init__(self, *, free: int, most: int, weight: float = 1.0) -> None:
        """Say how long an answer may be.

        Raises:
            ValueError: `most` is not above `free`.
        """
        if not 0 <= free < most:
            raise ValueError(f"reward.free={free}, reward.most={most}: must be 0 <= free < most.")
        self.free, self.most, self.weight = free, most, weight

    def __call__(self, attempt: Attempt) -> float:
        """Return a number from -1 to 0. Example: free 10, most 20, 15 tokens -> -0.5."""
        if not attempt.finished:
            return -1.0
        return -min(1.0, max(0, attempt.num_tokens - self.free) / (self.most - self.free))


@REWARDS.register("program")
class Program(Reward):
    """A function of your own in a Python file, run in a process of its own that is killed when it hangs."""

    def __init__(
        self, *, file: Path, function: str = "reward", seconds: float = 5.0, weight: float = 1.0
    ) -> None:
        """Start the process; the file runs with your rights, as any program that you start.

        Args:
            file: A Python file.
            function: Which of its functions: (prompt, response, answer), three texts, -> a number.
            seconds: How long it may take with one answer.
            weight: What it counts.

        Raises:
            ValueError: There is no such file, it cannot be run, or has no such function.
        """
        self.process, self.weight = RewardProcess(file, function, seconds), weight
        self.process.start()

    def __call__(self, attempt: Attempt) -> float:
        """Return what the function returns.

        Raises:
            RewardError: It raised, hung, ended its process or returned no number.
        """
        problem = attempt.problem
        found, error = self.process.call(problem.prompt, attempt.response, problem.answer)
        if found is None:
            raise RewardError(error)
        return found

    def close(self) -> None:
        """End the process."""
        self.process.close()


class Judged(NamedTuple):
    """The rewards of a step's answers."""

    rewards: Float[Tensor, " rollouts"]
    """NaN where an answer has none."""
    figures: dict[str, float]
    """The mean of each part by name, and reward_failures: the share of answers whose reward failed."""


class Judge:
    """Adds up the parts of the reward."""

    def __init__(self, parts: Mapping[str, Reward], *, on_failure: OnFailure = "skip") -> None:
        """Keep the parts by the names that they have in figures.

        Raises:
            ValueError: There is none.
        """
        if not parts:
            raise ValueError('rewards: there is none; rewards=["correct"] takes the exercise\'s own.')
        self.parts, self.on_failure = parts, on_failure
        self._told: set[str] = set()

    def __call__(self, attempts: Sequence[Attempt]) -> Judged:
        """Return the rewards of answers.

        Raises:
            RewardError: One failed and on_failure is "stop", or all of them failed.
        """
        totals, by_part, failures = [], {name: [] for name in self.parts}, []
        for attempt in attempts:
            total = 0.0
            for name, part in self.parts.items():
                value, error = _value(part, attempt)
                if error is not None:
                    failures.append(self._failed(name, error, attempt))
                    total = 0.0 if self.on_failure == "zero" else math.nan
                    break
                by_part[name].append(value)
                total += part.weight * value
            totals.append(total)
        if attempts and len(failures) == len(attempts):
            raise RewardError(f"no answer of this step could be judged; the first: {failures[0]}")
        figures = {f"reward_{name}": sum(found) / len(found) for name, found in by_part.items() if found}
        figures["reward_failures"] = len(failures) / max(1, len(attempts))
        return Judged(torch.tensor(totals), figures)

    def close(self) -> None:
        """Give back what the parts hold."""
        for part in self.parts.values():
            part.close()

    def _failed(self, name: str, error: str, attempt: Attempt) -> str:
        """Tell a failure once of its kind; return it in words."""
        text = f"reward {name!r}: {error}, with the answer {attempt.response[:60]!r}"
        if self.on_failure == "stop":
            raise RewardError(f'{text}; rewards_on_failure="skip" leaves such answers out.')
        if (kind := f"{name}:{error}") not in self._told and len(self._told) < MOST_WARNINGS:
            self._told.add(kind)
            log.warning("%s; such answers are counted as reward_failures.", text)
        return text


def compute_rollout_rewards(
    reward_fn: Callable[[str, str], dict[str, float]],
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
) -> tuple[Float[Tensor, " rollouts"], dict[str, float]]:
    """Return the rewards that a function gives to answers, and the mean of each of its numbers.

    Args:
        reward_fn: (answer, what is right) -> numbers by name, "reward" among them.
        rollout_responses: The answers.
        repeated_ground_truths: What is right, for each of them.

    Raises:
        ValueError: There are not as many of the one as of the other.
    """
    if len(rollout_responses) != len(repeated_ground_truths):
        raise ValueError(
            f"{len(rollout_responses)} answers, but {len(repeated_ground_truths)} ground truths."
        )
    found = [reward_fn(*pair) for pair in zip(rollout_responses, repeated_ground_truths, strict=True)]
    names = sorted({name for numbers in found for name in numbers})
    means = {f"mean_{name}": sum(numbers[name] for numbers in found) / len(found) for name in names}
    return torch.tensor([float(numbers["reward"]) for numbers in found]), means


_NUMBER = re.compile(r"[-\u2212]?\$?[0-9][0-9,]*(\.[0-9]+)?")


def _value(part: Reward, attempt: Attempt) -> tuple[float, str | None]:
    """What a part says, or why it says nothing."""
    try:
        value = float(part(attempt))
    except RewardError as error:
        return math.nan, str(error)
    except FAILURES as error:
        return math.nan, f"{type(error).__name__}: {error}"
    return (value, None) if math.isfinite(value) else (value, f"returned {value}, which is no number")
