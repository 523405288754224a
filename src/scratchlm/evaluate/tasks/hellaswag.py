"""Rows {"ctx", "endings", "label"} come in: the beginning of a scene, four ways to go on.

    Roof shingle removal: A man is sitting on a roof. He  starts pulling up roofing on a roof.

Three of the endings were written by a model and chosen to fool models; people get 95 % right.

Source: Zellers et al. 2019, https://arxiv.org/abs/1905.07830. The rows hold the text without the marks of
WikiHow ("[title]"), with the activity before it.
"""

from collections.abc import Mapping
from typing import Any, final

from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick, pick_place, pick_texts


@final
@TASKS.register("hellaswag")
class HellaSwag(ChoiceTask):
    """How does the scene go on?"""

    def __init__(self, *, shots: int = 0) -> None:
        """Choose how many solved scenes stand before each one."""
        self.name, self.shots = "hellaswag", shots

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"ctx": ..., "endings": [...], "label": 0}."""
        endings = tuple(f" {ending.strip()}" for ending in pick_texts(row, "endings"))
        return Question(pick(row, "ctx", str).rstrip(), endings, pick_place(row, "label", len(endings)))
