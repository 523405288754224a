"""Saving while training goes on: tensors are copied at once, a thread writes the copy.

    save(100, ...)   |copy|                       the trainer goes on with step 101
                          |---- write, flush, rename, remove old ones ----|
    save(200, ...)        waits for the one before, copies, ...

What a checkpoint holds is decided before `save` returns: tensors are copied and the state is made text, so no
later step leaks in. An error of the disk is not lost in the thread: `wait` and `close` raise it; the next
`save` first tries once more, and waits for it, since a disk that was full for a moment need not end a run.
`close` (or leaving the `with`) waits for the thread, but a KeyboardInterrupt does not: then the process ends
in the middle of a write, which costs that checkpoint alone.

Several processes that train together each have a saver and save the same steps; none waits for another's disk
in the trainer. What all of them hold is shared out among them, so they copy and write a part each. When one
could not write its part there is no checkpoint: the error, which names that process, is raised on all.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from scratchlm.checkpoint.coordinator import Coordinator
from scratchlm.checkpoint.folder import render_state, write_checkpoint
from scratchlm.checkpoint.manifest import folder_name
from scratchlm.checkpoint.piece import Piece, own_pieces
from scratchlm.checkpoint.retention import discard_after, keep_only, remove_leftovers
from scratchlm.distributed.process import ProcessError
from scratchlm.runtime import log

JOIN_SECONDS = 1.0
"""While waiting for a thread: between two looks whether the other processes can be reached at all."""


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
        coordinator: Coordinator | None = None,
    ) -> None:
        """Open the folder; what killed saves left in it is removed.

        Args:
            folder: Where checkpoints lie; made when missing, but not the folder above it. No other run may
                write there (`run_lock`).
            newest: How many of the newest stay.
            every: Steps that are multiples of it stay too.
            background: Whether a thread writes; otherwise `save` returns when all is on the disk.
            on_saved: Called with step and folder after each checkpoint, by whoever wrote it: in the
                background by the thread. Of several processes, on the first only.
            coordinator: Of several processes that save together; None: this is the only one.
        """
        self.folder, self.newest, self.every = folder, newest, every
        self.background, self.on_saved = background, on_saved
        self._thread: threading.Thread | None = None
        self._outcome: list[BaseException | None] = []
        self.coordinator = coordinator
        if coordinator is None or coordinator.first:
            remove_leftovers(folder)
        if coordinator is not None:
            coordinator.open()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor | Piece]],
        state: Mapping[str, Any],
        identity: Mapping[str, str | int] | None = None,
        protect: Iterable[int] = (),
    ) -> None:
        """Save one checkpoint; it makes those of later steps, from before a rollback, obsolete.

        Args:
            step: Number of finished optimizer steps.
            tensors: By group and name, copied before this returns. A Tensor is the same on all processes,
                which share the writing; a Piece is what this process alone writes.
            state: Plain values; made text before this returns. Of several processes the first one's is saved.
            identity: What the run was made of; the first one's too.
            protect: Steps whose checkpoints stay, such as the best.

        Raises:
            OSError: This write failed, in the foreground or after the one before had; the message names the
                checkpoint. Checkpoints before it are untouched.
            TypeError: The state holds something that JSON has no form for.
            ValueError: A piece reaches beyond its tensor.
        """
        failed = self._failure_before()
        background = self.background and failed is None
        together = self.coordinator
        text = "" if together and not together.first else render_state(state)
        names, protected = dict(identity or {}), set(protect)
        pieces = own_pieces(tensors, together.rank, together.world_size) if together else own_pieces(tensors)
        if together is None and not background:
            self._write(step, pieces, text, names, protected)
            _tell(failed, step)
            return
        copies = _copied(pieces) if background else pieces
        self._thread = threading.Thread(
            target=self._write_and_report,
            args=(step, copies, text, names, protected),
            name=f"save-{folder_name(step)}",
            daemon=True,
        )
        self._thread.start()
        if not background:
            self.wait()  # and not in this thread: a store that does not answer would keep it for ever
            _tell(failed, step)

    def wait(self) -> None:
        """Wait until the checkpoint before is on the disk.

        Raises:
            OSError: It could not be written; the message names it.
        """
        if self._thread is None:
            return
        while self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
            if self._thread.is_alive() and self.coordinator is not None and self.coordinator.unreachable:
                raise self.coordinator.cut_off()
        thread, self._thread = self._thread, None
        if not self._outcome:
            raise RuntimeError(f"{thread.name}: the thread ended with an error that is shown above.")
        error = self._outcome.pop()
        if error is not None:
            raise error

    def _failure_before(self) -> OSError | None:
        """Why the checkpoint before could not be written, if it is worth to try again."""
        try:
            self.wait()
        except ProcessError:
            raise  # somebody is lost
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        """Wait for the last checkpoint, as `wait`, and take part in no other."""
        try:
            self.wait()
        finally:
            if self.coordinator is not None:
                self.coordinator.close()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            if self.coordinator is not None:
                self.coordinator.close(at_once=True)
            return  # the user does not want to wait for the disk
        try:
            self.close()
        except OSError as failed:
            if error is None:
                raise
            log.warning("%s", _said(failed))  # the error that got us here comes first

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
        pieces: Mapping[str, Mapping[str, Piece]],
        text: str,
        identity: Mapping[str, str | int],
        protected: set[int],
    ) -> None:
        path = write_checkpoint(self.folder, step, pieces, text, identity, self.coordinator)
        if self.coordinator is not None and not self.coordinator.first:
            return
        try:
            discard_after(self.folder, step)
            keep_only(self.folder, self.newest, also=protected, every=self.every)
        except OSError as error:  # the new checkpoint is safe; old ones in the way are no reason to stop
            log.warning("%s: an old checkpoint could not be removed (%s).", error.filename, error.strerror)
        if self.on_saved is not None:
            self.on_saved(step, path)


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _tell(failed: OSError | None, step: int) -> None:
    if failed is not None:
        log.warning("%s; the checkpoint of step %d was written.", _said(failed), step)


def _copied(pieces: Mapping[str, Mapping[str, Piece]]) -> dict[str, dict[str, Piece]]:
    """The same numbers in memory of their own."""
    return {
        group: {
            name: piece._replace(tensor=piece.tensor.detach().to("cpu", copy=True))
            for name, piece in named.items()
        }
        for group, named in pieces.items()
    }
