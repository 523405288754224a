r"""Rows {"subject", "split", "question", "choices", "answer"} come in: examinations in 57 subjects.

    The following are multiple choice questions (with answers) about abstract algebra.

    Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B

The rows of the split "dev", five of each subject, are the solved questions in front; the others are asked.
The model chooses a letter by its likelihood. Four letters: an untrained model gets 25 %.

Source: Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300, figure 1a and section 4.
"""

from collections.abc import Mapping
from typing import Any, final

from scratchlm.evaluate.answers import LETTERS
from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick, pick_texts


@final
@TASKS.register("mmlu")
class MMLU(ChoiceTask):
    """Examinations in 57 subjects; the answer is a letter."""

    metrics = ("acc",)

    def __init__(self, *, shots: int = 5) -> None:
        """Choose how many solved questions of its subject stand before each one, at most 5."""
        self.name, self.shots = "mmlu", shots

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"subject": ..., "split": ..., "question": ..., "choices": [...], "answer": "B"}."""
        choices, answer = pick_texts(row, "choices"), pick(row, "answer", str)
        letters = LETTERS[: len(choices)]
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"answer: is {answer[:20]!r}, must be one of {', '.join(letters)}")
        lines = [pick(row, "question", str).strip()]
        lines += [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
        prompt = "\n".join([*lines, "Answer:"])
        answers = tuple(f" {letter}" for letter in letters)
        return Question(prompt, answers, letters.index(answer), group=pick(row, "subject", str))

    def is_shot(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of the split "dev"."""
        return row.get("split") == "dev"

    def header(self, group: str) -> str:
        """Name the subject."""
        subject = group.replace("_", " ")
        return f"The following are multiple choice questions (with answers) about {subject}.\n\n"
