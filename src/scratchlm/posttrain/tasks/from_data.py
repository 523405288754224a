r"""Instruction data as problems: a conversation's question in, right or wrong by the answer that it has.

    data = {name = "gsm8k", paths = ["gsm8k_train.jsonl"]}      any of the family INSTRUCTIONS
    answer = "number"      what stands behind ####, else the last number; right: the last number is equal
    answer = "text"        the whole answer; right: equal but for case, blanks and a final period

Every epoch reads the questions in an order of its own: a file may be sorted. Held out is what the data holds
out.

Source: exact match as in Cobbe et al. 2021 (GSM8K), https://arxiv.org/abs/2110.14168, section 2.
"""

import random
from typing import Any, Literal

from scratchlm.data.permutation import permute
from scratchlm.evaluate.answers import marked_number, parse_gsm8k_response, same_number, same_text
from scratchlm.posttrain import INSTRUCTIONS
from scratchlm.posttrain.datasets import Example, both_splits
from scratchlm.posttrain.tasks import EXERCISES
from scratchlm.posttrain.tasks.exercise import Exercise, Problem, Split, Verdict
from scratchlm.runtime import log

VALID_SHARE = 0.05
"""Held out of data that has no split of its own; the data's seed is 0, whatever the run's."""


@EXERCISES.register("from_data")
class FromData(Exercise):
    """Questions of instruction data whose answers can be compared."""

    def __init__(
        self,
        *,
        data: dict[str, Any],
        answer: Literal["number", "text"] = "number",
        valid_share: float = VALID_SHARE,
    ) -> None:
        """Read the data.

        Args:
            data: A part of the family INSTRUCTIONS: its name and its settings.
            answer: What of an answer is compared.
            valid_share: How much is held out, where the data has no split of its own.

        Raises:
            ValueError: The data cannot be read, or has no usable question on a side.
        """
        if "name" not in data:
            raise ValueError(f"exercise.data: has no name; known: {', '.join(INSTRUCTIONS.names())}.")
        settings = {key: value for key, value in data.items() if key != "name"}
        self.answer = answer
        source = INSTRUCTIONS.build(data["name"], **settings)
        found = both_splits(source, share=valid_share, seed=0)
        self.examples = {split: self._problems(examples) for split, examples in found.items()}
        for split, problems in self.examples.items():
            if not problems:
                raise ValueError(f"exercise.data: has no question with a {answer} as its answer for {split}.")
        left_out = sum(map(len, found.values())) - sum(map(len, self.examples.values()))
        if left_out:
            log.warning("%d conversations have no single question with a %s; left out.", left_out, answer)

    def problem(self, seed: int, split: Split, index: int) -> Problem:
        """Return question number `index` of a seed's order."""
        problems = self.examples[split]
        epoch, place = divmod(index, len(problems))
        return problems[permute(place, len(problems), seed, epoch)]

    def draw(self, generator: random.Random) -> tuple[Problem, str]:
        """Return a training question."""
        problem = generator.choice(self.examples["train"])
        return problem, problem.prompt

    def check(self, response: str, answer: str) -> Verdict:
        """Compare the last number, or the whole text."""
        if self.answer == "text":
            return Verdict(same_text(response, answer), bool(response.strip()))
        found = parse_gsm8k_response(response)
        return Verdict(same_number(found, answer), found is not None)

    def _problems(self, examples: list[Example]) -> list[Problem]:
        found = []
        for example in examples:
            *before, last = example.messages
            if [message["role"] for message in before] != ["user"]:
                continue
            said = last["content"]
            answer = said if self.answer == "text" else marked_number(said) or parse_gsm8k_response(said)
            if answer is not None:
                found.append(Problem(before[0]["content"], said, answer))
        return found
