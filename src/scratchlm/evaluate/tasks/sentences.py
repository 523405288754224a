"""Rows {"uid", "good", "bad"} come in: which of two sentences is grammatical?

    Who should Derek hug after shocking Richard?      Who should Derek hug Richard after shocking?

The two sentences of a pair differ in as little as can be, and each is scored as a whole text. What a model
knows shows without any question being put, so that small base models can be compared.

Source: Warstadt et al. 2020 (BLiMP), https://arxiv.org/abs/1912.00582.
"""

from collections.abc import Mapping
from typing import Any, final

from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick


@final
@TASKS.register("blimp")
class BLiMP(ChoiceTask):
    """Which of two sentences is grammatical? 67 phenomena."""

    metrics = ("acc",)
    is_asked = False

    def __init__(self, *, shots: int = 0) -> None:
        """Choose how many good sentences stand before each pair."""
        self.name, self.shots = "blimp", shots

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"uid": ..., "good": ..., "bad": ...}."""
        pair = (pick(row, "good", str).strip(), pick(row, "bad", str).strip())
        if not all(pair):
            raise ValueError("good and bad: must be sentences")
        return Question("", pair, group=pick(row, "uid", str))
