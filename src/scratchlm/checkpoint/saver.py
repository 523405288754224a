"""Saving while training goes on: tensors are copied at once, a thread writes the copy.

    save(100, ...)   |copy|                       the trainer goes on with step 101
                          |---- write, flush, rename, remove old ones ----|
    save(200, ...)        waits for the one before, tells its error, copies, ...

What a checkpoint holds is decided before `save` returns: tensors are copied and the state is made text, so no
later step leaks in. An error of the disk is not lost in the thread: the next `save`, `wait` or `close` raises
it. `close` (or leaving the `with`) waits for the thread, but a KeyboardInterrupt does not: then the process
ends in the middle of a write, which costs that checkpoint alone.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from scratchlm.checkpoint.folder import render_state, write_checkpoint
from scratchlm.checkpoint.manifest import folder_name
from scratchlm.checkpoint.retention import discard_after, keep_only, remove_leftovers
from scratchlm.runtime import log


class Saver:
    """Writes the checkpoints of one run, one at a time, and removes those that need not stay."""

    def __init__(
        self,
        folder: Path,
        *,
        newest: int,
        every: int | None = None,
        background: bool = True,
        on_saved: Callable[[int, Path], None] | None = None,
    ) -> None:
        """Open the folder; what killed saves left in it is removed.

        Args:
            folder: Where checkpoints lie; made when missing. No other process may write there (`run_lock`).
            newest: How many of the newest stay.
            every: Steps that are multiples of it stay too.
            background: Whether a thread writes; otherwise `save` returns when all is on the disk.
            on_saved: Called with step and folder after each checkpoint, by whoever wrote it: in the
                background by the thread.
        """
        self.folder, self.newest, self.every = folder, newest, every
        self.background, self.on_saved = background, on_saved
        self._thread: threading.Thread | None = None
        self._outcome: list[BaseException | None] = []
        remove_leftovers(folder)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        identity: Mapping[str, str | int] | None = None,
        protect: Iterable[int] = (),
    ) -> None:
        """Save one checkpoint; it makes those of later steps, from before a rollback, obsolete.

        Args:
            step: Number of finished optimizer steps.
            tensors: Tensors by group and name; copied before this returns.
            state: Plain values; made text before this returns.
            identity: What the run was made of.
            protect: Steps whose checkpoints stay, such as the best.

        Raises:
            OSError: This write (in the foreground) or the one before (in the background) failed; the message
                names the checkpoint. Checkpoints before it are untouched.
            TypeError: The state holds something that JSON has no form for.
        """
        self.wait()
        text, names, protected = render_state(state), dict(identity or {}), set(protect)
        if not self.background:
            self._write(step, tensors, text, names, protected)
            return
        copies = {
            group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for group, named in tensors.items()
        }
        self._thread = threading.Thread(
            target=self._write_and_report,
            args=(step, copies, text, names, protected),
            name=f"save-{folder_name(step)}",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint before is on the disk.

        Raises:
            OSError: It could not be written; the message names it.
        """
        if self._thread is None:
            return
        self._thread.join()
        thread, self._thread = self._thread, None
        if not self._outcome:
            raise RuntimeError(f"{thread.name}: the thread ended with an error that is shown above.")
        error = self._outcome.pop()
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the last checkpoint, as `wait`."""
        self.wait()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return  # the user does not want to wait for the disk
        try:
            self.close()
        except OSError as failed:
            if error is None:
                raise
            log.warning("%s: %s", failed.filename, failed.strerror)  # the error that got us here comes first

    def _write_and_report(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
            self._outcome.append(error)
        else:
            self._outcome.append(None)

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        text: str,
        identity: Mapping[str, str | int],
        protected: set[int],
    ) -> None:
        path = write_checkpoint(self.folder, step, tensors, text, identity)
        try:
            discard_after(self.folder, step)
            keep_only(self.folder, self.newest, also=protected, every=self.every)
        except OSError as error:  # the new checkpoint is safe; old ones in the way are no reason to stop
            log.warning("%s: an old checkpoint could not be removed (%s).", error.filename, error.strerror)
        if self.on_saved is not None:
            self.on_saved(step, path)
