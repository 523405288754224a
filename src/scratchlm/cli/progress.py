"""One progress bar for the single stages: it moves on a terminal and keeps quiet anywhere else."""

import time
from types import TracebackType
from typing import Any, Self


class Bar:
    """A progress bar on stderr, made when the first figures arrive."""

    def __init__(self, title: str, *, is_bytes: bool = False) -> None:
        """Choose what stands before the bar and whether the figures are bytes (then it shows MB/s)."""
        self.title = title
        self._is_bytes = is_bytes
        self._progress: Any = None
        self._task: Any = None
        self._shown = ""
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        """Start to show."""
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        from scratchlm.cli.console import err

        figures = (
            [DownloadColumn(), TransferSpeedColumn()]
            if self._is_bytes
            else [TextColumn("{task.percentage:>3.0f}%")]
        )
        columns = [TextColumn("{task.description}"), BarColumn(), *figures, TimeRemainingColumn(compact=True)]
        console = err()
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._progress.stop()

    def update(self, done: int, total: int | None, detail: str = "") -> None:
        """Show that `done` of `total` are done; a new `detail` starts the bar again."""
        text = f"{self.title}: {detail}" if detail else self.title
        if self._task is None:
            self._task = self._progress.add_task(text, total=total)
        elif text.split(",")[0] != self._shown:
            self._progress.reset(self._task, total=total)
        self._shown = text.split(",")[0]
        self._progress.update(self._task, completed=done, total=total or None, description=text)

    @property
    def seconds(self) -> float:
        """Since the bar was made."""
        return time.perf_counter() - self._started
