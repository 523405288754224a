r"""Rows with a word problem come in; the model writes a solution, and its number is compared.

    Question: Natalia sold clips to 48 of her friends ...\nAnswer: Natalia sold 48/2 = ... \n#### 72

    exact    the last number of what was written is right
    marked   the number behind "####" is right, where GSM8K's solutions have it

What behind the answer begins with "Question:" is not read: a base model goes on with the next problem.

Sources: GSM8K, https://arxiv.org/abs/2110.14168; MultiArith, Roy and Roth 2015,
https://arxiv.org/abs/1608.01413; SVAMP, https://arxiv.org/abs/2103.07191.
"""

from collections.abc import Callable, Mapping
from typing import Any, final

from scratchlm.evaluate.answers import marked_number, parse_gsm8k_response, same_number
from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import Question, WrittenTask, pick

Reader = Callable[[Mapping[str, Any]], tuple[str, str]]
"""A row -> problem and solution, which ends with the number."""


@final
class NumberTask(WrittenTask):
    """A problem whose answer is a number."""

    stop = ("Question:",)

    def __init__(self, name: str, shots: int, read: Reader, *, metrics: tuple[str, ...] = ("exact",)) -> None:
        """Choose how rows are read and which metrics are told.

        Args:
            name: What the task is called.
            shots: Solved problems before each one.
            read: Row -> problem and solution.
            metrics: "exact", "marked".
        """
        self.name, self.shots, self.metrics, self._read = name, shots, metrics, read

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read a problem; its solution must hold a number."""
        problem, solution = self._read(row)
        if _number(solution) is None:
            raise ValueError("the answer holds no number")
        return Question(f"Question: {problem.strip()}\nAnswer:", (f" {solution.strip()}",))

    def judge(self, question: Question, text: str) -> dict[str, float]:
        """Compare the number that the text states."""
        expected = _number(question.answers[0])
        assert expected is not None, question
        stated = {"exact": parse_gsm8k_response(text), "marked": marked_number(text)}
        return {name: float(same_number(stated[name], expected)) for name in self.metrics}


@TASKS.register("gsm8k")
def gsm8k(*, shots: int = 5) -> NumberTask:
    """Word problems of two to eight steps."""
    return NumberTask("gsm8k", shots, _solved, metrics=("exact", "marked"))


@TASKS.register("multiarith")
def multiarith(*, shots: int = 5) -> NumberTask:
    """Word problems of two steps."""
    return NumberTask(
        "multiarith", shots, lambda row: (pick(row, "input", str), str(pick(row, "target", int)))
    )


@TASKS.register("svamp")
def svamp(*, shots: int = 5) -> NumberTask:
    """Word problems of one step, with what is not needed."""
    return NumberTask("svamp", shots, _of_svamp)


@TASKS.register("answers")
def answers(*, shots: int = 0) -> NumberTask:
    """A file of yours: rows {"question": ..., "answer": a number, or a solution that ends with one}."""
    return NumberTask("answers", shots, _solved)


def _solved(row: Mapping[str, Any]) -> tuple[str, str]:
    answer = row["answer"]
    return pick(row, "question", str), answer if isinstance(answer, str) else _written(answer)


def _of_svamp(row: Mapping[str, Any]) -> tuple[str, str]:
    body = pick(row, "Body", str).strip()
    body += "" if body.endswith((".", "?", "!")) else "."
    return f"{body} {pick(row, 'Question', str)}", _written(row["Answer"])


def _written(number: Any) -> str:
    """145.0 -> "145", 1234567 -> "1234567", 0.25 -> "0.25"; fifteen figures are what a float holds."""
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise ValueError(f"the answer is a {type(number).__name__}, must be a number or a text")
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def _number(solution: str) -> str | None:
    return marked_number(solution) or parse_gsm8k_response(solution)
