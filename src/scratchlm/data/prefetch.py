"""Prefetching: asked for rows of a step, a batch goes out; what is asked for next is read meanwhile.

    main thread      compute step 7        | compute step 8
    second thread        read step 8       |     read step 9

A loader is a pure function of (step, row), so reading ahead cannot change what a step sees, and a request
that was not foreseen (after a rollback, or with smaller micro-batches) is simply answered at once.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from scratchlm.data.loader import Batches


class Request(NamedTuple):
    """Rows first .. first + count - 1 of step `step`."""

    step: int
    first: int
    count: int


class Prefetcher:
    """A loader whose next rows are read in a thread; use it as a context manager or call close()."""

    def __init__(self, loader: Batches, *, pin_memory: bool = False) -> None:
        """Start no thread yet.

        Args:
            loader: Where rows come from.
            pin_memory: Put batches where a GPU can fetch them without waiting.
        """
        self.loader, self.pin_memory = loader, pin_memory
        self._pool: ThreadPoolExecutor | None = None
        self._foreseen: dict[Request, Future[Any]] = {}

    def rows(self, request: Request, then: Iterable[Request] = ()) -> Any:
        """Return the rows of `request` and begin to read those of `then`; all others are forgotten."""
        future = self._foreseen.pop(request, None)
        batch = self._read(request) if future is None else future.result()
        wanted = list(then) if self.loader.foreseen else []
        for other in set(self._foreseen) - set(wanted):
            self._foreseen.pop(other).cancel()
        for other in wanted:
            if other not in self._foreseen:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="scratchlm-rows")
                self._foreseen[other] = self._pool.submit(self._read, other)
        return batch

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._foreseen = None, {}

    def _read(self, request: Request) -> Any:
        batch = self.loader.rows(*request)
        return type(batch)(*(tensor.pin_memory() for tensor in batch)) if self.pin_memory else batch
