"""Packing for evaluation: token shards come in, rows go out in which every token is predicted exactly once.

    context_length 8, documents  a b c .   d e .   f g h i .        (. = end-of-text)

        inputs   . a b c . d e .        . f g h i . . .
        targets  a b c . d e . -        f g h i . - - -             (- = -1, not scored)

A row begins with end-of-text, as generation does, and holds whole documents: nothing is predicted from half a
document, so the mean loss depends neither on chance nor on the number of rows. A document goes into the first
open row with room for it (first fit). One longer than the context is cut into pieces of context_length; a
later piece begins with the id before it in place of end-of-text.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from scratchlm.data.loader import Batch
from scratchlm.data.shards import TokenDataset

IGNORED = -1
"""Target that is not scored; the loss leaves it out."""
OPEN_ROWS = 32
"""Rows that wait for a document that fits: more save padding, but every one is memory and search."""


def evaluation_rows(
    dataset: TokenDataset, context_length: int, max_rows: int | None = None
) -> Iterator[Batch]:
    """Yield rows of whole documents, one at a time, in an order that depends on nothing but the arguments.

    Args:
        dataset: What to evaluate on.
        context_length: Ids that the model reads at once, at least 1.
        max_rows: Stop after so many rows; None for the whole dataset.

    Raises:
        ValueError: A number is not positive, or the dataset does not name its end-of-text id.
    """
    if context_length < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"context_length={context_length}, max_rows={max_rows}: at least 1 each.")
    end = dataset.end_of_text_id
    for number, row in enumerate(_pack(_pieces(dataset, context_length, end), context_length)):
        if number == max_rows:
            return
        ids = np.concatenate(row).astype(np.int64)
        inputs = np.full((1, context_length), end, dtype=np.int64)
        targets = np.full((1, context_length), IGNORED, dtype=np.int64)
        inputs[0, : len(ids) - 1], targets[0, : len(ids) - 1] = ids[:-1], ids[1:]
        yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


def documents_of(ids: Int[Tensor, "rows time"], end_of_text_id: int) -> Int[Tensor, "rows time"]:
    """Return the number of each id's document in its row: how many end-of-text ids came up to it.

    An end-of-text id belongs to the document that follows it, as in the rows above: from it the model
    predicts that document's first id.

    Example: . a b . c with "." = end-of-text -> 1 1 1 2 2; a b . c -> 0 0 1 1.
    """
    return (ids == end_of_text_id).cumsum(dim=-1)


class _Piece(NamedTuple):
    """The id before, then ids to predict."""

    ids: Integer[np.ndarray, " length"]
    begins_document: bool

    @property
    def num_targets(self) -> int:
        return len(self.ids) - 1


def _pieces(dataset: TokenDataset, context_length: int, end: int) -> Iterator[_Piece]:
    """All documents in order, cut to at most context_length ids."""
    for index in range(dataset.num_documents):
        start, after = dataset.document_bounds(index)
        for first in range(start, after, context_length):
            ids = dataset.read(first, min(context_length, after - first))
            before = np.array([end], dtype=ids.dtype) if first == start else dataset.read(first - 1, 1)
            yield _Piece(np.concatenate([before, ids]), begins_document=first == start)


def _pack(pieces: Iterator[_Piece], context_length: int) -> Iterator[list[np.ndarray]]:
    """Put each piece into the first open row with room; yield the arrays that make up a row.

    A piece that follows another leaves its first id out: the end-of-text id stands there already. The later
    pieces of a long document never follow. A row is given out when it is full, the oldest one when OPEN_ROWS
    are open.
    """
    rows: list[list[np.ndarray]] = []
    room: list[int] = []
    for piece in pieces:
        fits = (place for place, free in enumerate(room) if free >= piece.num_targets)
        place = next(fits, None) if piece.begins_document else None
        if place is None:
            rows.append([piece.ids])
            room.append(context_length)
            place = len(rows) - 1
        else:
            rows[place].append(piece.ids[1:])
        room[place] -= piece.num_targets
        if room[place] == 0 or len(rows) > OPEN_ROWS:
            gone = place if room[place] == 0 else 0
            room.pop(gone)
            yield rows.pop(gone)
    yield from rows
