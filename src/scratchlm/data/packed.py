"""The packed loader: token shards come in, rows of whole documents go out, each document once an epoch.

    context_length 8, documents  a b c .   d e f g h i j k l m .   n o .   p q .     (. = end-of-text)

        inputs   . d e f g h i j    k l m . a b c .    . n o . p q . .
        targets  d e f g h i j k    l m . a b c . -    n o . p q . - -     (- = -1, no target)

A row begins with an end-of-text id, as in evaluation and generation. A document longer than the context is
cut: its full pieces are rows of their own, and its last piece opens a row with the id before it. All other
documents fill the room that is left, the longest first, each where the least room remains, in a new row where
it fits nowhere ("best-fit decreasing").

Whether a document fits depends on its length alone, so rows are planned for lengths, not for documents: "40
rows of 100 + 20 + 7 ids". A plan is a few such kinds of rows and the documents in order of length, 8 bytes
each; which of the documents of one length stands in which row is shuffled anew in every epoch.

Source: packing by a histogram of lengths: Krell et al. 2021, https://arxiv.org/abs/2107.02027, section 3.1,
with best fit in place of their "shortest pack first".
"""

import bisect
from collections import defaultdict
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Integer

from scratchlm.data import LOADERS
from scratchlm.data.loader import Batch, Loader
from scratchlm.data.packing import IGNORED
from scratchlm.data.permutation import permute
from scratchlm.data.shards import TokenDataset


class Slot(NamedTuple):
    """A place in a kind of row: row i of the kind takes piece first + i of the pieces of one key."""

    key: int
    """Ids to predict in the piece; for the last piece of a cut document context_length more."""
    first: int
    """Pieces of this key that stand in earlier slots."""


class RowKind(NamedTuple):
    """Rows that hold pieces of the same lengths."""

    slots: tuple[Slot, ...]
    count: int


def plan_rows(counts: Integer[np.ndarray, " keys"], context_length: int) -> list[RowKind]:
    """Return the kinds of rows for pieces of which only the lengths are known.

    Args:
        counts: How many pieces there are of each key (see `Slot`): 1 .. context_length - 1 are whole
            documents, context_length + 1 .. 2 * context_length - 1 last pieces, which must begin their row;
            the others are not looked at.
        context_length: Ids to predict in a row.

    Example: 3 pieces of length 5 and 2 of length 3, context 8 -> 2 rows of 5 + 3 and 1 of 5.
    """
    kinds = _OpenRows()
    for rest in range(1, context_length):
        if number := int(counts[context_length + rest]):
            kinds.add(RowKind((Slot(context_length + rest, 0),), number), context_length - rest)
    for length in range(context_length - 1, 0, -1):
        number = int(counts[length])
        used = 0
        while left := number - used:
            if not kinds.has_room(length):
                kinds.add(RowKind((), max(1, left // (context_length // length))), context_length)
            kind, room = kinds.take_fullest(length)
            each = min(room // length, left)
            rows = min(kind.count, left // each)
            if rows < kind.count:
                later = tuple(Slot(slot.key, slot.first + rows) for slot in kind.slots)
                kinds.add(RowKind(later, kind.count - rows), room)
            new = tuple(Slot(length, used + rows * place) for place in range(each))
            kinds.add(RowKind(kind.slots + new, rows), room - each * length)
            used += rows * each
    return kinds.all()


class _OpenRows:
    """Kinds of rows by the room that they still have."""

    def __init__(self) -> None:
        self._kinds: dict[int, list[RowKind]] = defaultdict(list)
        self._rooms: list[int] = []  # the keys of _kinds, ascending

    def add(self, kind: RowKind, room: int) -> None:
        if not self._kinds[room]:
            bisect.insort(self._rooms, room)
        self._kinds[room].append(kind)

    def has_room(self, length: int) -> bool:
        return bool(self._rooms) and self._rooms[-1] >= length

    def take_fullest(self, length: int) -> tuple[RowKind, int]:
        """Take a kind out that has the least room of those with room for `length`."""
        place = bisect.bisect_left(self._rooms, length)
        room = self._rooms[place]
        kind = self._kinds[room].pop()
        if not self._kinds[room]:
            self._rooms.pop(place)
        return kind, room

    def all(self) -> list[RowKind]:
        return [kind for room in self._rooms for kind in self._kinds[room]]


@LOADERS.register("packed")
class PackedLoader(Loader):
    """Rows of whole documents, put together so that hardly any place is left empty."""

    padded: ClassVar[bool] = True

    def __init__(self, dataset: TokenDataset, rows_per_step: int, context_length: int, seed: int) -> None:
        super().__init__(dataset, rows_per_step, context_length, seed)
        self._end = dataset.end_of_text_id
        lengths = np.diff(dataset.document_starts, append=dataset.num_tokens)
        full_pieces = lengths // context_length
        keys = np.where(full_pieces > 0, context_length + lengths % context_length, lengths)
        # 16-bit keys are sorted digit by digit, several times faster
        keys = keys.astype(np.uint16 if 2 * context_length <= 2**16 else np.int64)
        self._by_key = np.argsort(keys, kind="stable")
        self._counts = np.bincount(keys, minlength=2 * context_length)
        self._first_of_key = np.cumsum(self._counts) - self._counts
        self._cut = self._by_key[self._first_of_key[context_length] :]  # documents with full pieces
        self._full_before = np.concatenate([[0], np.cumsum(full_pieces[self._cut])])
        self._kinds = plan_rows(self._counts, context_length)
        self._rows_before = np.cumsum([0, *(kind.count for kind in self._kinds)])

    @property
    def num_rows_per_epoch(self) -> int:
        """Rows of single pieces and rows of several; the same number every epoch."""
        return int(self._full_before[-1] + self._rows_before[-1])

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows first .. first + count - 1 of step `step`; targets that are none are -1."""
        inputs = torch.full((count, self.context_length), self._end)
        targets = torch.full((count, self.context_length), IGNORED)
        for place in range(count):
            ids = torch.from_numpy(self.row(step, first + place).astype(np.int64))
            inputs[place, : len(ids) - 1], targets[place, : len(ids) - 1] = ids[:-1], ids[1:]
        return Batch(inputs, targets)

    def _row(self, step: int, row: int) -> Integer[np.ndarray, " row_length"]:
        epoch, place = self._place(step, row)
        num_full = int(self._full_before[-1])
        if place < num_full:
            index = int(np.searchsorted(self._full_before, place, side="right")) - 1
            piece = place - int(self._full_before[index])
            return self._piece(int(self._cut[index]), piece * self.context_length, self.context_length)
        place -= num_full
        number = int(np.searchsorted(self._rows_before, place, side="right")) - 1
        pieces = [
            self._piece_of(slot, place - int(self._rows_before[number]), epoch)
            for slot in self._kinds[number].slots
        ]
        # the end-of-text id of the document before stands where a later piece's first id would
        return np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])

    def _piece_of(self, slot: Slot, row: int, epoch: int) -> Integer[np.ndarray, " length"]:
        """What stands in a slot of row number `row` of its kind."""
        index = permute(slot.first + row, int(self._counts[slot.key]), self.seed, epoch, slot.key)
        document = int(self._by_key[int(self._first_of_key[slot.key]) + index])
        if slot.key < self.context_length:
            return self._piece(document, 0, slot.key)
        start, after = self.dataset.document_bounds(document)
        rest = slot.key - self.context_length
        return self._piece(document, after - start - rest, rest)

    def _piece(self, document: int, skip: int, length: int) -> Integer[np.ndarray, " length"]:
        """The id before, then `length` ids of a document after its first `skip`."""
        start = int(self.dataset.document_starts[document]) + skip
        if skip:
            return self.dataset.read(start - 1, length + 1)
        before = np.array([self._end], dtype=self.dataset.dtype)
        return np.concatenate([before, self.dataset.read(start, length)])
