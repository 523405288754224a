"""Rows {"context", "continuation"} come in: does the model end a text as it really ends?

    ... his mouth curved in a confident grin, I don't care about | signs
    25 - 759 = | -734

    acc          each token of the ending is the likeliest one: greedy generation would write it
    perplexity   e^(-mean of ln p(ending | context))

Source: Paperno et al. 2016 (LAMBADA), https://arxiv.org/abs/1606.06031: words that people guess by the whole
passage and not by its last sentence; the passages as Radford et al. 2019 (GPT-2) have them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from scratchlm.evaluate.scoring import Score
from scratchlm.evaluate.tasks import TASKS
from scratchlm.evaluate.tasks.task import ChoiceTask, Question, pick


@final
class Ending(ChoiceTask):
    """A text and its end."""

    metrics = ("acc", "perplexity")
    is_asked = False

    def __init__(self, name: str, shots: int) -> None:
        self.name, self.shots = name, shots

    def question(self, row: Mapping[str, Any]) -> Question:
        """Read {"context": ..., "continuation": ...}."""
        context, ending = pick(row, "context", str).rstrip(), pick(row, "continuation", str).strip()
        if not ending:
            raise ValueError("continuation: is empty")
        return Question(context, (f" {ending}",))

    def judge(self, question: Question, scores: Sequence[Score]) -> dict[str, float]:
        """Whether the ending is the likeliest text, and ln p of it."""
        return {"acc": float(scores[0].is_greedy), "perplexity": scores[0].logprob}


@TASKS.register("lambada")
def lambada(*, shots: int = 0) -> Ending:
    """The last word of a passage of a novel."""
    return Ending("lambada", shots)


@TASKS.register("simple_arithmetic")
def simple_arithmetic(*, shots: int = 5) -> Ending:
    """Sums and differences of two numbers."""
    return Ending("simple_arithmetic", shots)
