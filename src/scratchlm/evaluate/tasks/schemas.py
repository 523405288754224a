"""Rows {"context_options", "continuation", "gold"} come in: who is meant, when the rest could fit both?

    Sarah was a much better surgeon than Maria so Sarah | always got the easier cases.
    Sarah was a much better surgeon than Maria so Maria | always got the easier cases.

What is filled in differs, and the same rest is scored behind each: so names that are likely in themselves win
nothing.

Source: Levesque et al. 2012 (Winograd schemas); Sakaguchi et al. 2019 (WinoGrande),
https://arxiv.org/abs/1907.10641; scored by halves as in Trinh and Le 2018, https://arxiv.org/abs/1806.02847.
"""

from collections.abc import Mapping
from typing import Any, final

from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick, pick_place, pick_texts


@final
class Schema(ChoiceTask):
    """Two beginnings, one rest."""

    metrics = ("acc",)
    is_asked = False

    def __init__(self, name: str, shots: int) -> None:
        self.name, self.shots = name, shots

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"context_options": [...], "continuation": ..., "gold": 0}."""
        beginnings = tuple(text.rstrip() for text in pick_texts(row, "context_options"))
        rest = pick(row, "continuation", str).strip()
        if not rest:
            raise ValueError("continuation: is empty")
        gold = pick_place(row, "gold", len(beginnings))
        return Question("", (f" {rest}",) * len(beginnings), gold, prompts=beginnings)


@TASKS.register("winograd")
def winograd(*, shots: int = 0) -> Schema:
    """Who is meant? 273 hand-made schemas."""
    return Schema("winograd", shots)


@TASKS.register("winogrande")
def winogrande(*, shots: int = 0) -> Schema:
    """Who is meant? Many more schemas, without those that give themselves away."""
    return Schema("winogrande", shots)
