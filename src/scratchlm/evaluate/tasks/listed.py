r"""Rows {"query", "choices", "gold"} come in: a question with a list of choices, of which `gold` is right.

    arc_easy     Question: Which form of energy ...?\nAnswer: sound
    boolq        Passage: ...\nQuestion: ...?\nAnswer: no
    copa         The man turned on the faucet, therefore water flowed from the spout.

The choice stands behind the query and, where the query asks, behind "Answer:".

Sources: ARC, https://arxiv.org/abs/1803.05457; BoolQ, https://arxiv.org/abs/1905.10044; CommonsenseQA,
https://arxiv.org/abs/1811.00937; COPA, Roemmele et al. 2011; OpenBookQA, https://arxiv.org/abs/1809.02789;
PIQA, https://arxiv.org/abs/1911.11641. The form of the rows is that of MosaicML's collections.
"""

from collections.abc import Mapping
from typing import Any, final

from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick, pick_place, pick_texts

ANSWER = "\nAnswer:"


@final
class ListedChoices(ChoiceTask):
    """A query and a list of choices."""

    def __init__(self, name: str, shots: int, *, between: str = "") -> None:
        """Choose what stands between query and choice, besides a blank."""
        self.name, self.shots, self.between = name, shots, between

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"query": ..., "choices": [...], "gold": 0}."""
        choices = pick_texts(row, "choices")
        prompt = pick(row, "query", str).rstrip()
        if self.between and not prompt.endswith(self.between):
            prompt += self.between
        answers = tuple(f" {choice.strip()}" if prompt else choice.strip() for choice in choices)
        return Question(prompt, answers, pick_place(row, "gold", len(choices)))


@TASKS.register("arc_easy")
def arc_easy(*, shots: int = 0) -> ListedChoices:
    """Science at school, questions that simple methods answer."""
    return ListedChoices("arc_easy", shots, between=ANSWER)


@TASKS.register("arc_challenge")
def arc_challenge(*, shots: int = 0) -> ListedChoices:
    """Science at school, questions that simple methods get wrong."""
    return ListedChoices("arc_challenge", shots, between=ANSWER)


@TASKS.register("boolq")
def boolq(*, shots: int = 0) -> ListedChoices:
    """Yes or no, by a passage of Wikipedia."""
    return ListedChoices("boolq", shots, between=ANSWER)


@TASKS.register("commonsense_qa")
def commonsense_qa(*, shots: int = 0) -> ListedChoices:
    """What everybody knows; the answer is a letter."""
    return ListedChoices("commonsense_qa", shots, between=ANSWER)


@TASKS.register("copa")
def copa(*, shots: int = 0) -> ListedChoices:
    """Cause or effect of an event."""
    return ListedChoices("copa", shots)


@TASKS.register("openbook_qa")
def openbook_qa(*, shots: int = 0) -> ListedChoices:
    """Elementary science, applied."""
    return ListedChoices("openbook_qa", shots)


@TASKS.register("piqa")
def piqa(*, shots: int = 0) -> ListedChoices:
    """How to do a thing with one's hands."""
    return ListedChoices("piqa", shots, between=ANSWER)


@TASKS.register("choices")
def choices(*, shots: int = 0) -> ListedChoices:
    """A file of yours: rows {"query": ..., "choices": [...], "gold": 0}."""
    return ListedChoices("choices", shots)
