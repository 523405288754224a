"""The common store, never waited for without end: a call goes in, its answer or StoreError comes out.

    main thread     check("failed/0")  --> a thread of its own --> torch's client --> the store's host
                    waits at most `seconds` <----- answer, or never

torch's client has a limit for keys that are not there, but none for a host that says nothing: where a cable
is cut or the store's process stopped, its call stays in recv for ever, and no signal ends it. So each call
has a thread, which is left behind when it does not come back in time; from then on every call fails at once,
since the connection is in the midst of an answer. TCP_USER_TIMEOUT would end it where a cable is cut, but the
system of a stopped process goes on answering for it.

Source: the store is torch's, https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.TCPStore;
the limit is ours.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")

OF_THE_LIBRARY = (RuntimeError, ValueError, TypeError, OSError)
"""What torch's calls raise; handed from their thread to the caller."""


class StoreError(RuntimeError):
    """The common store does not answer."""


class BoundedStore:
    """A store whose calls end in bounded time; for one thread at a time."""

    def __init__(self, raw: Any, *, seconds: float, lost: threading.Event | None = None) -> None:
        """Wrap a store.

        Args:
            raw: A `torch.distributed.Store`.
            seconds: How long a call may take; one on a host that lives takes less than a millisecond.
            lost: Set when a call did not come back; shared by those that share a connection.
        """
        self.raw, self.seconds, self._lost = raw, seconds, lost or threading.Event()

    def under(self, prefix: str) -> "BoundedStore":
        """The same store with a prefix to all keys."""
        from torch.distributed import PrefixStore

        return BoundedStore(PrefixStore(prefix, self.raw), seconds=self.seconds, lost=self._lost)

    def set(self, key: str, text: str) -> None:
        """Store a text.

        Raises:
            StoreError: No answer in time, now or before; so for all calls.
        """
        self._call(self.raw.set, key, text)

    def compare_set(self, key: str, expected: str, text: str) -> None:
        """Store a text where `expected` stands, or where nothing does and it is empty."""
        self._call(self.raw.compare_set, key, expected, text)

    def check(self, key: str) -> bool:
        """Whether the key is there."""
        return self._call(self.raw.check, [key])

    def get(self, key: str) -> str:
        """The text of a key that is there."""
        return self._call(self.raw.get, key).decode()

    def _call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        if not self._lost.is_set():
            try:
                return within(self.seconds, lambda: function(*arguments))
            except TimeoutError:
                self._lost.set()
        raise StoreError(f"no answer from the common store within {self.seconds:g} s")


def within(seconds: float, call: Callable[[], Found]) -> Found:
    """Return what `call` does, in a thread that is left behind when it takes too long.

    Raises:
        TimeoutError: It did; it may still end, or never.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except OF_THE_LIBRARY as error:
            results.put((None, error))

    threading.Thread(target=work, name="store-call", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no end within {seconds:g} s") from None
    if error is not None:
        raise error
    return result
