r"""Sums and differences of whole numbers ("What is 27 + 48?"), with the thought written out.

    tags     <think>7 + 8 = 15, 1 + 2 + 4 = 7</think><answer>75</answer>     column by column, from the right
             <answer>75</answer>                                             at a glance: right, too, if it is
    number   75

A thought is the schoolbook's: one column a step, the carry (or what was borrowed) first. Small models cannot
add in one glance but can add a column, so the thought is where they win. `thoughts` says how many of the
demonstrations write it out: where some do and some do not, a program that looks at the number alone can
still teach a model to think first. The answer must be the number in its usual digits: no sign that is not
needed, no zero in front, nothing beside it.

Source: our own; writing steps out: Nye et al. 2021, "Show Your Work", https://arxiv.org/abs/2112.00114.
"""

import random
from typing import Literal

from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Verdict, check_thoughts, read_tagged, tagged

_QUESTIONS = ("What is {}?", "{} = ?", "Calculate {}.", "How much is {}?")


@EXERCISES.register("arithmetic")
class Arithmetic(Exercise):
    """Sums and differences of whole numbers."""

    def __init__(
        self,
        *,
        digits: int = 2,
        operations: str = "+-",
        form: Literal["tags", "number"] = "tags",
        thoughts: float = 1.0,
    ) -> None:
        """Choose the size of the numbers.

        Args:
            digits: The most digits of each of the two numbers, 1 to 9.
            operations: Which of + and - are asked, as one word: "+", "-" or "+-".
            form: How a response is written: "tags" with a thought, or the bare "number".
            thoughts: Share of the worked responses in tags that write the thought out, 0 to 1.

        Raises:
            ValueError: A value that is not allowed.
        """
        if not 1 <= digits <= 9:
            raise ValueError(f"exercise.digits={digits}: choose 1 to 9.")
        if not operations or set(operations) - set("+-"):
            raise ValueError(f'exercise.operations={operations!r}: choose "+", "-" or "+-".')
        self.digits, self.operations, self.form = digits, operations, form
        self.thoughts = check_thoughts(thoughts)

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a sum or a difference that is not negative; a + b and b + a ask the same."""
        a, b = (generator.randrange(10 ** generator.randint(1, self.digits)) for _ in range(2))
        sign = generator.choice(self.operations)
        if sign == "-":
            a, b = max(a, b), min(a, b)
        answer = str(a + b if sign == "+" else a - b)
        prompt = generator.choice(_QUESTIONS).format(f"{a} {sign} {b}")
        response = tagged(answer, thought(a, b, sign) if generator.random() < self.thoughts else None)
        return (
            Problem(prompt, response if self.form == "tags" else answer, answer),
            f"arithmetic:{sign}:{max(a, b)}:{min(a, b)}",
        )

    def check(self, response: str, answer: str) -> Verdict:
        """Right is the number in its usual digits in the asked form."""
        found = read_tagged(response) if self.form == "tags" else response.strip()
        formatted = bool(found) and found.isascii() and found.isdigit()
        return Verdict(formatted and found == answer, formatted)


def thought(a: int, b: int, sign: str) -> str:
    """Return the columns of a sum or difference from the right, e.g. 27 + 48 -> "7 + 8 = 15, 1 + 2 + 4 = 7".

    In a difference a column that is too small takes ten from the next: 52 - 38 -> "12 - 8 = 4, 4 - 3 = 1".
    """
    steps, carry = [], 0
    while a or b or not steps:
        (a, left), (b, right) = divmod(a, 10), divmod(b, 10)
        if sign == "+":
            steps.append(f"{f'{carry} + ' if carry else ''}{left} + {right} = {left + right + carry}")
            carry = (left + right + carry) // 10
        else:
            left -= carry
            carry = int(left < right)
            steps.append(f"{left + 10 * carry} - {right} = {left + 10 * carry - right}")
    return ", ".join(steps)
