"""Signals: Ctrl-C or SIGTERM comes in, a wish to stop goes out, which the loop asks for between its steps.

first SIGINT or SIGTERM     the current step is given up or finished, a checkpoint is saved
second SIGINT               KeyboardInterrupt: stop at once (what is half-written is removed next time)
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """A context in which SIGINT and SIGTERM are remembered; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Which signal came first: "SIGINT" or "SIGTERM"; None while there was none."""
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether somebody wants to stop."""
        return self.name is not None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
