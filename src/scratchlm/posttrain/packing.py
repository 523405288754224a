r"""Conversations come in; rows of ids, targets and conversation numbers go out, packed or padded.

    conversations   . u a b e A c e      . u d e A f g e          (. begins, u and A are roles, e ends a turn)

    packed   inputs      . u a b e A c   . u d e A f g            one row
             targets     - - - - - c e   - - - - f g e            - is not learned
             documents   0 0 0 0 0 0 0   1 1 1 1 1 1 1            a token sees its own conversation only

    padded   one conversation a row, shorter ones filled up

A conversation's loss is the same packed or padded, alone or among others: it sees nothing of its neighbours,
and positions matter only relatively (RELATIVE_POSITIONS; a table of positions does tell the difference, so
under one rows are padded whatever is asked for). Rows are filled longest first, each conversation into the
fullest row that still has room: never more than 11/9 of the least number of rows, plus one.

Source: best fit decreasing: Johnson 1974, https://doi.org/10.1137/0203025; packing with masks: Krell et al.
2021, https://arxiv.org/abs/2107.02027.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from scratchlm.data.loader import Batches
from scratchlm.data.permutation import permute
from scratchlm.loss import IGNORE
from scratchlm.posttrain.datasets import Example
from scratchlm.tokenizer.chat import ChatTemplate

Arrangement = Literal["packed", "padded"]
TooLong = Literal["skip", "cut", "error"]

PADDING = 2**30
"""Number of the document that padding belongs to: behind all others, so that nobody sees it."""

RELATIVE_POSITIONS = ("rope", "alibi", "none")
"""Position encodings under which a conversation's numbers do not depend on where in a row it stands."""


def arrangement_for(rows: Arrangement, position: str) -> Arrangement:
    """`rows` where the position encoding of this name allows it, else one conversation a row."""
    return rows if position in RELATIVE_POSITIONS else "padded"


class Rows(NamedTuple):
    """Conversations as the model reads them."""

    inputs: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]
    """What follows each input; IGNORE where it shall not be learned."""
    documents: Int[Tensor, "rows time"]
    """The number of each token's conversation in its row; PADDING where there is none."""


class Written(NamedTuple):
    """A conversation as ids."""

    ids: Integer[np.ndarray, " length"]
    mask: Bool[np.ndarray, " length"]
    """True on what shall be learned."""
    num_bytes: int
    """UTF-8 bytes of what the assistant says."""


class ConversationSet:
    """Many conversations as ids, in two long arrays."""

    def __init__(self, conversations: Sequence[Written]) -> None:
        """Join them.

        Args:
            conversations: At least one id each that is learned.
        """
        lengths = [len(written.ids) for written in conversations]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        joined = [written.ids for written in conversations] or [np.empty(0, np.int64)]
        masks = [written.mask for written in conversations] or [np.empty(0, bool)]
        self.ids, self.mask = np.concatenate(joined).astype(np.int32), np.concatenate(masks)
        self.num_bytes = sum(written.num_bytes for written in conversations)

    def __len__(self) -> int:
        """How many."""
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        """Ids of all."""
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Identify ids, masks and borders."""
        found = hashlib.sha256()
        for array in (self.starts, self.ids, self.mask):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def describe(self) -> str:
        """Its statistics in words."""
        if not len(self):
            return "no conversation"
        lengths = np.diff(self.starts)
        return (
            f"{len(self):,} conversations of {self.num_tokens:,} tokens, {self.mask.mean():.0%} of them "
            f"learned; half are longer than {int(np.median(lengths)):,}, the longest {int(lengths.max()):,}"
        )

    def take(self, number: int) -> Written:
        """Conversation `number`."""
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return Written(self.ids[part], self.mask[part], 0)


class Dropped(NamedTuple):
    """What did not become part of a set."""

    skipped: int
    cut: int


def write_all(
    examples: Iterable[Example],
    template: ChatTemplate,
    *,
    max_tokens: int,
    too_long: TooLong = "skip",
    learn: Literal["assistant", "all"] = "assistant",
) -> tuple[ConversationSet, Dropped]:
    """Turn conversations into ids.

    Args:
        examples: The conversations.
        template: How they are written.
        max_tokens: The most inputs of a row; a conversation has one id more.
        too_long: What happens to longer ones. cut: the end goes; one of which nothing to learn is left is
            skipped.
        learn: What the assistant says, or all but the first id.

    Raises:
        ValueError: One is too long and that is an error; it says where.
    """
    kept, skipped, num_cut = [], 0, 0
    for example in examples:
        try:
            ids, mask = template.encode(example.messages)
        except ValueError as error:
            raise ValueError(f"{example.where or 'a conversation'}: {error}") from None
        if len(ids) > max_tokens + 1:
            if too_long == "error":
                raise ValueError(
                    f"{example.where}: has {len(ids)} tokens and a row {max_tokens}; raise context_length, "
                    "or say too_long=skip or cut."
                )
            ids, mask = ids[: max_tokens + 1], mask[: max_tokens + 1]
            if too_long == "skip" or not any(mask):
                skipped += 1
                continue
            num_cut += 1
        said = sum(
            len(message["content"].encode("utf-8", "replace"))
            for message in example.messages
            if message["role"] == "assistant" or learn == "all"
        )
        marks = np.array(mask) if learn == "assistant" else np.arange(len(ids)) > 0
        kept.append(Written(np.array(ids, np.int32), marks, said))
    return ConversationSet(kept), Dropped(skipped, num_cut)


def arrange(lengths: Sequence[int], room: int, arrangement: Arrangement) -> list[list[int]]:
    """Decide which items share a row.

    Args:
        lengths: Of the items.
        room: The most that a row holds.
        arrangement: packed or padded.

    Example: lengths 5, 3, 4, 2 in rows of 7, packed -> [[0, 3], [2, 1]].
    """
    if arrangement == "padded":
        return [[number] for number in range(len(lengths))]
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = [row for row, free in enumerate(left) if free >= lengths[number]]
        if not fitting:
            rows.append([number])
            left.append(room - lengths[number])
            continue
        row = min(fitting, key=lambda row: left[row])
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def make_rows(conversations: Sequence[Written], room: int, arrangement: Arrangement, padding_id: int) -> Rows:
    """Return conversations as rows that are as long as the longest one needs.

    Args:
        conversations: What stands in them.
        room: The most inputs of a row.
        arrangement: packed or padded.
        padding_id: Stands where nothing does; it is never learned.
    """
    lengths = [len(written.ids) - 1 for written in conversations]
    rows = arrange(lengths, room, arrangement)
    width = max((sum(lengths[number] for number in row) for row in rows), default=0)
    inputs = np.full((len(rows), width), padding_id, np.int64)
    targets = np.full((len(rows), width), IGNORE, np.int64)
    documents = np.full((len(rows), width), PADDING, np.int64)
    for row, numbers in enumerate(rows):
        place = 0
        for document, number in enumerate(numbers):
            ids, mask, _ = conversations[number]
            part = slice(place, place + len(ids) - 1)
            inputs[row, part] = ids[:-1]
            targets[row, part] = np.where(mask[1:], ids[1:], IGNORE)
            documents[row, part] = document
            place = part.stop
    return Rows(*(torch.from_numpy(array) for array in (inputs, targets, documents)))


class ConversationLoader(Batches):
    """Conversations of a step, each once an epoch, in another order every epoch."""

    padded = True

    def __init__(
        self,
        conversations: ConversationSet,
        per_step: int,
        *,
        max_tokens: int,
        arrangement: Arrangement,
        padding_id: int,
        seed: int,
    ) -> None:
        """Keep the parts.

        Args:
            conversations: Where they come from.
            per_step: How many a step takes.
            max_tokens: The most inputs of a row.
            arrangement: packed or padded.
            padding_id: Stands where nothing does.
            seed: Another seed, another order.

        Raises:
            ValueError: There is none.
        """
        if not len(conversations):
            raise ValueError("data: no conversation is left to learn from; see what was left out, and why.")
        self.conversations, self.rows_per_step, self.max_tokens = conversations, per_step, max_tokens
        self.arrangement: Arrangement = arrangement
        self.padding_id, self.seed = padding_id, seed

    @property
    def fingerprint(self) -> str:
        """That of the conversations."""
        return self.conversations.fingerprint

    def number(self, step: int, item: int) -> int:
        """Which conversation is item `item` of step `step`: a pure function of these and the seed."""
        epoch, index = divmod(step * self.rows_per_step + item, len(self.conversations))
        return permute(index, len(self.conversations), self.seed, epoch)

    def rows(self, step: int, first: int, count: int) -> Rows:
        """Conversations first .. first + count - 1 of a step, as rows."""
        chosen = [self.conversations.take(self.number(step, first + item)) for item in range(count)]
        return make_rows(chosen, self.max_tokens, self.arrangement, self.padding_id)
