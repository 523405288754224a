r"""Pairs of a better and a worse answer come in; ids, and batches of pairs for a step, go out.

    pair 7    . u a b e A c e        chosen        . begins, u and A are roles, e ends a turn
              . u a b e A d d e      rejected

    rows of a micro-batch of n pairs: its 2 n answers, packed or one a row
        answers     0 ... n - 1 chosen, n ... 2 n - 1 rejected, 2 n padding
        targets     the answer's own ids; IGNORE on the prompt, earlier answers in it included

Only the last answer is compared: what an assistant said before, in a conversation of several turns, is part
of the prompt and the same on both sides.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scratchlm.data.loader import Batches
from scratchlm.data.permutation import permute
from scratchlm.posttrain.datasets import Messages, Pair
from scratchlm.posttrain.packing import Arrangement, ConversationSet, Written, arrange, make_rows
from scratchlm.posttrain.reference import Reference
from scratchlm.tokenizer.chat import ChatTemplate


class PairBatch(NamedTuple):
    """Pairs as the model reads them."""

    inputs: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]
    """What follows each input; IGNORE outside the answers."""
    documents: Int[Tensor, "rows time"]
    """A number for each answer in a row: a token sees those of the same number."""
    answers: Int[Tensor, "rows time"]
    """The number of each token's answer in the batch: chosen ones, then rejected ones, then padding."""
    reference: Float[Tensor, " answers"]
    """The reference's log-probability of each answer; NaN where nobody needs it."""


class Dropped(NamedTuple):
    """Pairs that did not become part of a set."""

    too_long: int
    equal: int
    """Both answers are the same."""


class PairSet:
    """Pairs as ids: the two answers of pair i are conversations 2 i and 2 i + 1."""

    def __init__(self, answers: Sequence[Written], prompts: Sequence[Messages]) -> None:
        """Join them.

        Args:
            answers: Chosen and rejected in turn.
            prompts: Of the pairs, in words.
        """
        assert len(answers) == 2 * len(prompts), (len(answers), len(prompts))
        self.answers, self.prompts = ConversationSet(answers), list(prompts)
        self.num_chosen_bytes = sum(written.num_bytes for written in answers[::2])
        """UTF-8 bytes of the chosen answers."""

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.prompts)

    @property
    def fingerprint(self) -> str:
        """That of the ids."""
        return self.answers.fingerprint

    def written(self, numbers: Sequence[int]) -> list[Written]:
        """The chosen answers of these pairs, then the rejected ones."""
        return [self.answers.take(2 * number + side) for side in (0, 1) for number in numbers]

    def length(self, number: int) -> int:
        """Ids of both answers of a pair, with their prompts."""
        starts = self.answers.starts
        return int(starts[2 * number + 2] - starts[2 * number])

    def rows(
        self, numbers: Sequence[int], *, room: int, arrangement: Arrangement, padding_id: int
    ) -> PairBatch:
        """Return pairs as rows; the reference's numbers are NaN.

        Args:
            numbers: Which pairs, in order.
            room: The most inputs of a row.
            arrangement: packed or padded.
            padding_id: Stands where nothing does.
        """
        written = self.written(numbers)
        rows = make_rows(written, room, arrangement, padding_id)
        # which answers stand in which row: as make_rows decides it
        lengths = [len(answer.ids) - 1 for answer in written]
        answers = torch.full_like(rows.documents, len(written))
        for row, inside in enumerate(arrange(lengths, room, arrangement)):
            for document, answer in enumerate(inside):
                answers[row, rows.documents[row] == document] = answer
        return PairBatch(*rows, answers, torch.full((len(written),), torch.nan))


def write_pairs(
    pairs: Iterable[Pair],
    template: ChatTemplate,
    *,
    max_tokens: int,
    too_long: Literal["skip", "error"] = "skip",
) -> tuple[PairSet, Dropped]:
    """Turn pairs into ids.

    Args:
        pairs: The pairs.
        template: How conversations are written.
        max_tokens: The most inputs of a row; an answer with its prompt has one id more.
        too_long: What happens to pairs of which one answer is longer.

    Raises:
        ValueError: One is too long and that is an error; it says where.
    """
    answers: list[Written] = []
    prompts: list[Messages] = []
    num_long = num_equal = 0
    for pair in pairs:
        both = [write_answer(pair.prompt, answer, template) for answer in (pair.chosen, pair.rejected)]
        longest = max(len(written.ids) for written in both)
        if longest > max_tokens + 1 and too_long == "error":
            raise ValueError(
                f"{pair.where}: has {longest} tokens and a row {max_tokens}; raise context_length, or say "
                "too_long=skip."
            )
        is_equal = np.array_equal(both[0].ids, both[1].ids)
        if longest > max_tokens + 1 or is_equal:
            num_long, num_equal = num_long + (not is_equal), num_equal + is_equal
            continue
        answers += both
        prompts.append(pair.prompt)
    return PairSet(answers, prompts), Dropped(num_long, num_equal)


def write_answer(prompt: Messages, answer: str, template: ChatTemplate) -> Written:
    """Return a conversation with its last answer's ids marked, the token that ends it included."""
    ids, mask = template.encode([*prompt, {"role": "assistant", "content": answer}])
    marks = np.array(mask)
    before = np.flatnonzero(~marks)  # earlier answers are marked, too: only the last run of marks counts
    if len(before):
        marks[: before[-1]] = False
    return Written(np.array(ids, np.int32), marks, len(answer.encode("utf-8", "replace")))


def first_epoch(number: int, seed: int) -> list[int]:
    """Return all pairs in the order in which a loader of this seed first reads them."""
    return [permute(index, number, seed, 0) for index in range(number)]


class PairLoader(Batches):
    """Pairs of a step, each once an epoch, in another order every epoch."""

    def __init__(
        self,
        pairs: PairSet,
        per_step: int,
        *,
        reference: Reference | None,
        room: int,
        arrangement: Arrangement,
        padding_id: int,
        seed: int,
    ) -> None:
        """Keep the parts.

        Args:
            pairs: Where they come from.
            per_step: How many a step takes.
            reference: Knows the log-probabilities of answers; None where the loss needs none.
            room: The most inputs of a row.
            arrangement: packed or padded.
            padding_id: Stands where nothing does.
            seed: Another seed, another order.
        """
        self.pairs, self.rows_per_step, self.reference, self.seed = pairs, per_step, reference, seed
        self.how = {"room": room, "arrangement": arrangement, "padding_id": padding_id}

    @property
    def fingerprint(self) -> str:
        """That of the pairs."""
        return self.pairs.fingerprint

    def number(self, step: int, item: int) -> int:
        """Which pair is item `item` of step `step`: a pure function of these and the seed."""
        epoch, index = divmod(step * self.rows_per_step + item, len(self.pairs))
        return permute(index, len(self.pairs), self.seed, epoch)

    def rows(self, step: int, first: int, count: int) -> PairBatch:
        """Pairs first .. first + count - 1 of a step."""
        numbers = [self.number(step, first + item) for item in range(count)]
        batch = self.pairs.rows(numbers, **self.how)
        if self.reference is None:
            return batch
        return batch._replace(reference=self.reference.log_probs(numbers))
