"""Loaders: token shards come in, rows of ids go out, each a pure function of (seed, step, row).

    inputs  = row[:-1]      what the model reads
    targets = row[1:]       what it must predict: the same ids, one place on

Three ways of choosing where a row begins, and one (data/packed.py) that puts whole documents together:

    windows      anywhere, independently of all others: CS336's get_batch
    epochs       the shards are cut into blocks of context_length; each block comes once an epoch, shuffled
    documents    at a document, after the end-of-text id before it; each comes once an epoch, shuffled
    packed       rows of whole documents, each once an epoch; where none fits, the end of a row is no target

Nothing is remembered between calls: step 1,000 of a resumed run reads what step 1,000 of the first one would
have read, and a machine that takes part of a step's rows reads what a single one would have read for them.
"""

import operator
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from scratchlm.data import LOADERS
from scratchlm.data.permutation import permute, uniform
from scratchlm.data.shards import TokenDataset


class Batch(NamedTuple):
    """Rows of ids and what follows each of them."""

    inputs: Int[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]


class Batches(ABC):
    """What a trainer reads: items of a step, numbered from 0, as tensors."""

    padded: ClassVar[bool] = False
    """Whether some targets are IGNORED, so that batches differ in how many count."""
    foreseen: ClassVar[bool] = True
    """Whether a step's items are known before the step begins, so that they may be read ahead."""

    rows_per_step: int
    """Items of one optimizer step."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the data."""

    @abstractmethod
    def rows(self, step: int, first: int, count: int) -> Any:
        """Items first .. first + count - 1 of step `step`: a NamedTuple of tensors, `inputs` among them."""

    def again(self, step: int) -> Any | None:
        """All items of a step that was read before; None where they cannot be made a second time."""
        return self.rows(step, 0, self.rows_per_step)


class Loader(Batches):
    """Rows of a dataset in an order that is computed."""

    def __init__(self, dataset: TokenDataset, rows_per_step: int, context_length: int, seed: int) -> None:
        """Check that a row fits into the dataset.

        Args:
            dataset: Where the ids lie.
            rows_per_step: Rows of one optimizer step over all machines and micro-batches, at least 1.
            context_length: Ids that the model reads at once, at least 1.
            seed: Another seed, another order.

        Raises:
            ValueError: A number is not positive, or the context is longer than the corpus.
        """
        if rows_per_step < 1 or context_length < 1:
            raise ValueError(
                f"rows_per_step={rows_per_step}, context_length={context_length}: at least 1 each."
            )
        if dataset.num_tokens <= context_length:
            raise ValueError(
                f"context_length={context_length} is longer than the corpus: {dataset.folder} holds "
                f"{dataset.num_tokens} tokens, and a row needs {context_length + 1}. Choose a context_length "
                f"below {dataset.num_tokens} or add text."
            )
        self.dataset, self.rows_per_step = dataset, rows_per_step
        self.context_length, self.seed = context_length, seed

    @property
    @abstractmethod
    def num_rows_per_epoch(self) -> int:
        """Rows after which everything has come once (for windows: as many as cover as many ids)."""

    @abstractmethod
    def _row(self, step: int, row: int) -> Integer[np.ndarray, " row_length"]:
        """The ids of a row that exists."""

    def row(self, step: int, row: int) -> Integer[np.ndarray, " row_length"]:
        """Ids of row `row` (0 .. rows_per_step - 1) of step `step`: context_length + 1; packed, maybe fewer.

        Raises:
            ValueError: There is no such row.
        """
        step, row = operator.index(step), operator.index(row)
        if step < 0 or not 0 <= row < self.rows_per_step:
            raise ValueError(
                f"step={step}, row={row}: rows go from 0 to {self.rows_per_step - 1}, steps from 0."
            )
        return self._row(step, row)

    @property
    def fingerprint(self) -> str:
        """That of the dataset."""
        return self.dataset.fingerprint

    def rows(self, step: int, first: int, count: int) -> Batch:
        """Rows first .. first + count - 1 of step `step` as int64 tensors."""
        ids = np.stack([self.row(step, first + offset) for offset in range(count)]).astype(np.int64)
        return Batch(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))

    def _place(self, step: int, row: int) -> tuple[int, int]:
        """The epoch, and which item this row takes when every item shall come once an epoch."""
        epoch, index = divmod(step * self.rows_per_step + row, self.num_rows_per_epoch)
        return epoch, permute(index, self.num_rows_per_epoch, self.seed, epoch)


class StartLoader(Loader):
    """Rows of consecutive ids, which differ in where they begin only."""

    @abstractmethod
    def start(self, step: int, row: int) -> int:
        """Where row `row` of step `step` begins; -1 is the last id of the dataset."""

    def _row(self, step: int, row: int) -> Integer[np.ndarray, " row_length"]:
        start, length, size = self.start(step, row), self.context_length + 1, self.dataset.num_tokens
        if 0 <= start <= size - length:
            return self.dataset.read(start, length)
        before = self.dataset.read(start % size, min(length, size - start % size))  # runs on at the beginning
        return np.concatenate([before, self.dataset.read(0, length - len(before))])


@LOADERS.register("windows")
class WindowLoader(StartLoader):
    """Rows that begin anywhere, each start equally likely (CS336's get_batch)."""

    @property
    def num_rows_per_epoch(self) -> int:
        """As many rows as it takes to read as many ids as there are."""
        return max(1, (self.dataset.num_tokens - 1) // self.context_length)

    def start(self, step: int, row: int) -> int:
        """A start from 0 .. num_tokens - context_length - 1, as in the source."""
        return uniform(self.dataset.num_tokens - self.context_length, self.seed, step, row)


@LOADERS.register("epochs")
class EpochLoader(StartLoader):
    """Blocks of context_length that each come once an epoch, in another order every epoch."""

    @property
    def num_rows_per_epoch(self) -> int:
        """Whole blocks; the ids after the last one (fewer than context_length) are left out."""
        return (self.dataset.num_tokens - 1) // self.context_length

    def start(self, step: int, row: int) -> int:
        """The first id of a block."""
        return self._place(step, row)[1] * self.context_length


@LOADERS.register("documents")
class DocumentLoader(StartLoader):
    """Rows that begin at a document, after an end-of-text id, and run on into the next documents.

    That is how evaluation and generation begin, too. A document longer than context_length begins several
    rows, one every context_length ids, so that all of it is read.
    """

    def __init__(self, dataset: TokenDataset, rows_per_step: int, context_length: int, seed: int) -> None:
        super().__init__(dataset, rows_per_step, context_length, seed)
        ends = np.append(dataset.document_starts[1:], dataset.num_tokens)
        pieces = -(-(ends - dataset.document_starts) // context_length)
        self._rows_before = np.concatenate([[0], np.cumsum(pieces)])  # rows of all documents before each

    @property
    def num_rows_per_epoch(self) -> int:
        """One row per document that fits into the context, more for longer ones."""
        return int(self._rows_before[-1])

    def start(self, step: int, row: int) -> int:
        """The id before a document: an end-of-text id, for the first document the last of the dataset."""
        _, place = self._place(step, row)
        document = int(np.searchsorted(self._rows_before, place, side="right")) - 1
        piece = place - int(self._rows_before[document])
        return int(self.dataset.document_starts[document]) + piece * self.context_length - 1


def get_batch(
    dataset: Integer[np.ndarray, " length"], batch_size: int, context_length: int, device: str | torch.device
) -> Batch:
    """Draw random windows from one array of ids, with torch's global generator (CS336's interface).

    Args:
        dataset: Token ids, in memory or memory-mapped.
        batch_size: Rows, at least 1.
        context_length: Ids per row; starts are uniform over 0 .. length - context_length - 1.
        device: Where the batch shall lie.

    Raises:
        ValueError: The context is longer than the dataset.
    """
    if len(dataset) <= context_length:
        raise ValueError(
            f"context_length={context_length} is longer than the corpus of {len(dataset)} tokens; "
            f"choose one below {len(dataset)}."
        )
    starts = torch.randint(len(dataset) - context_length, (batch_size, 1)).numpy()
    ids = torch.from_numpy(np.asarray(dataset[starts + np.arange(context_length + 1)]).astype(np.int64))
    return Batch(ids[:, :-1].to(device), ids[:, 1:].to(device))
