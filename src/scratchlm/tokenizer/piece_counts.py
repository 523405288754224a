r"""Texts or files -> the table of their distinct pieces, counted by several threads.

    a file    |--- job ---|---- job ----|--- job ---|    cut where no piece crosses (windows.ranges)
    threads         1            2            1          each with its own windows and its own table
    result    table 1 + table 2

A job is a stretch of text that takes some milliseconds; the next idle thread takes the next one, so that
uneven text keeps all of them busy. The compiled loops run without Python's lock. Which thread counts a
piece does not matter to the sum: the result is the same with any number of threads.

`max_pieces` bounds memory for text without end. Each job then has a table of its own, and these are added
up in the order of the text, so that again the number of threads changes nothing; whenever the sum has more
kinds of pieces than that, the rarest of them are forgotten, down to three quarters of it. Below the bound
the counts are exact.
"""

import collections
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scratchlm.tokenizer.compiled.count import PieceTable
from scratchlm.tokenizer.sources import BytesSource, FileSource, Source
from scratchlm.tokenizer.streaming import utf8_of
from scratchlm.tokenizer.windows import RANGE_BYTES, Splitter, Window, ranges

BATCH_BYTES = 1 << 20
"""Short texts are handed to a thread in batches of this size: about a millisecond of work, in which what a
batch costs by itself, some 50 microseconds, is lost."""

_KEPT_SHARE = 0.75  # less would forget more than needed; more would look for the rarest after every job

Job = Callable[[Splitter], Iterator[Window]]
"""A stretch of text, given as the windows that a thread's own splitter makes of it."""


def jobs_of_texts(texts: Iterable[str], pattern: str, specials: Sequence[str]) -> Iterator[Job]:
    """Cut texts into jobs: many short ones together, a long one alone or in several."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        encoded = utf8_of(text)
        if len(encoded) > RANGE_BYTES:
            source = BytesSource(encoded)
            for start, stop in ranges(source, pattern, specials):
                yield partial(_windows, source, start, stop)
            continue
        batch.append(encoded)
        size += len(encoded)
        if size >= BATCH_BYTES:
            yield partial(Splitter.batches, texts=batch)
            batch, size = [], 0
    if size:
        yield partial(Splitter.batches, texts=batch)


def jobs_of_files(paths: Iterable[Path], pattern: str, specials: Sequence[str]) -> Iterator[Job]:
    """Cut files into jobs; each file is a text for itself.

    Raises:
        ValueError: A file is missing or cannot be read; the message names it.
    """
    for path in paths:
        with FileSource(path) as source:
            for start, stop in ranges(source, pattern, specials):
                yield partial(_windows_of_file, path, start, stop)


class Counts(NamedTuple):
    """What was counted.

    Attributes:
        tables: The distinct pieces with their counts, still in several tables; see `add_tables`.
        num_bytes: Bytes of text, special tokens included.
        num_occurrences: Pieces of the text, equal ones counted each time.
        num_dropped: Occurrences that `max_pieces` made the tables forget.
    """

    tables: list[PieceTable]
    num_bytes: int
    num_occurrences: int
    num_dropped: int


def count_jobs(
    jobs: Iterable[Job],
    new_splitter: Callable[[], Splitter],
    *,
    num_threads: int,
    max_pieces: int | None = None,
    report: Callable[[int], None],
) -> Counts:
    """Count the pieces of every job.

    Args:
        jobs: The text; taken from the iterator in this thread, one by one.
        new_splitter: Called once for each thread that has something to do.
        num_threads: Threads at most.
        max_pieces: Kinds of pieces that memory is spent on; the rarest are forgotten. None: all.
        report: Called in this thread with the number of bytes counted so far.
    """
    counter = _Counter(new_splitter, num_threads, max_pieces, report)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                counter.start(pool, job)
            return counter.finish()
        finally:
            counter.stop()


def add_tables(tables: Sequence[PieceTable], num_threads: int) -> PieceTable:
    """Add up the tables, pair by pair, the smaller to the larger; they hold something else afterwards."""
    tables = sorted(tables, key=lambda table: -table.num_pieces) or [PieceTable()]
    with ThreadPoolExecutor(num_threads) as pool:
        while len(tables) > 1:
            half = (len(tables) + 1) // 2
            list(pool.map(PieceTable.add, tables[: len(tables) - half], tables[half:]))
            tables = tables[:half]
    return tables[0]


class _Worker:
    """What a thread has for itself; one job at a time."""

    def __init__(self, splitter: Splitter) -> None:
        self.splitter = splitter
        self.table = PieceTable()
        self.stopped = False

    def run(self, job: Job) -> tuple[int, int]:
        """Count a job; return its number of bytes and of pieces."""
        num_bytes = num_occurrences = 0
        for window in job(self.splitter):
            if self.stopped:
                break
            self.table.count(window.text, window.starts, window.bounds)
            num_bytes += window.num_bytes
            num_occurrences += len(window.starts) - len(window.specials)  # less one stop for each segment
        return num_bytes, num_occurrences


class _Counter:
    """Hands jobs to workers and keeps what they found."""

    def __init__(
        self,
        new_splitter: Callable[[], Splitter],
        num_threads: int,
        max_pieces: int | None,
        report: Callable[[int], None],
    ) -> None:
        self._new_splitter = new_splitter
        self._num_threads = num_threads
        self._max_pieces = max_pieces
        self._report = report
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._running: collections.deque[Future[tuple[int, int, PieceTable | None]]] = collections.deque()
        self._bounded = PieceTable()
        self._num_bytes = self._num_occurrences = self._num_dropped = 0

    def start(self, pool: ThreadPoolExecutor, job: Job) -> None:
        """Give the job to an idle worker, and wait for one if there is none."""
        if self._idle.empty() and len(self._workers) < self._num_threads:
            self._workers.append(_Worker(self._new_splitter()))
            self._idle.put(self._workers[-1])
        self._running.append(pool.submit(self._run, self._idle.get(), job))
        # Waiting for the oldest bounds the tables of jobs that are done behind a slow one.
        while self._running and (self._running[0].done() or len(self._running) > 2 * self._num_threads):
            self._collect()

    def finish(self) -> Counts:
        """Wait for the last jobs."""
        while self._running:
            self._collect()
        found = [self._bounded, *(worker.table for worker in self._workers)]
        tables = [table for table in found if table.num_pieces]
        return Counts(tables, self._num_bytes, self._num_occurrences, self._num_dropped)

    def stop(self) -> None:
        """After an error or Ctrl-C: threads stop at their next window instead of the end of their job."""
        for worker in self._workers:
            worker.stopped = True

    def _run(self, worker: _Worker, job: Job) -> tuple[int, int, PieceTable | None]:
        try:
            num_bytes, num_occurrences = worker.run(job)
            if self._max_pieces is None:
                return num_bytes, num_occurrences, None
            table, worker.table = worker.table, PieceTable()
            return num_bytes, num_occurrences, table
        finally:
            self._idle.put(worker)

    def _collect(self) -> None:
        """Take the result of the oldest job."""
        num_bytes, num_occurrences, table = self._running.popleft().result()
        self._num_bytes += num_bytes
        self._num_occurrences += num_occurrences
        if table is not None and self._max_pieces is not None:
            self._bounded.add(table)
            if self._bounded.num_pieces > self._max_pieces:
                self._num_dropped += self._bounded.drop_rarest(int(_KEPT_SHARE * self._max_pieces))
        self._report(self._num_bytes)


def _windows(source: Source, start: int, stop: int, splitter: Splitter) -> Iterator[Window]:
    return splitter.windows(source, start, stop)


def _windows_of_file(path: Path, start: int, stop: int, splitter: Splitter) -> Iterator[Window]:
    # Each job opens the file anew (20 microseconds): a thousand files do not stay open.
    with FileSource(path) as source:
        yield from splitter.windows(source, start, stop)
