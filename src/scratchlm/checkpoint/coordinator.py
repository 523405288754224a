"""Several processes write one checkpoint: this process's part goes in, everybody's comes out at the first.

    common store   save/1/folder        save/1/part/1, 2, 3             save/1/end
    process 0      makes it, says so    writes its part, collects theirs, writes the manifest, renames: "end"
    process 1..3   wait for it          write their parts, say so       wait for the end

No process waits for another inside a collective: threads poll a common key-value store, so that training goes
on meanwhile and its own collectives keep their order. A thread beats: once a second every process adds one to
its number in the store. Whoever is awaited and stands still for too long is lost: the first names it, gives
the checkpoint up and tells the others. Nothing has the final name then; the one before stays the newest.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from scratchlm.checkpoint.manifest import CheckpointError
from scratchlm.distributed.process import ProcessError
from scratchlm.distributed.store import within

PATIENCE_SECONDS = 30.0
"""A process without a sign of life for so long is lost: one that swaps may be silent for seconds."""

BEAT_SECONDS = 1.0
"""Between two signs of life; each takes some 0.1 ms of processor time."""

POLL_SECONDS = (0.01, 0.5)
"""Between two looks at the store: first and longest; of a thousand waiting processes 2,000 a second."""

READ_SECONDS = 5.0
"""How long the first stays for the others to read how a save ended: ten times their longest pause."""

LEFT = b"left"


class Coordinator:
    """This process among all that save together; every process makes one, in the same order."""

    def __init__(
        self, store: Any, rank: int, world_size: int, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Take part; signs of life begin with `open`.

        Args:
            store: A `torch.distributed.Store` that all processes reach; a second connection to it is made.
            rank: This process's number, 0 .. world_size - 1; the first one writes the manifest.
            world_size: Number of processes that save.
            patience_seconds: How long another may be silent before it is lost.

        Raises:
            ProcessError: The store does not answer.
        """
        from torch.distributed import PrefixStore

        self.rank, self.world_size, self.patience_seconds = rank, world_size, patience_seconds

        def reach() -> Any:
            own = PrefixStore("checkpoint", store.clone())  # the main thread's may be busy for minutes
            number = own.add(f"opened/{rank}", 1)  # a second run of the same processes has keys of its own
            return PrefixStore(str(number), own)

        try:
            self._store = within(patience_seconds, reach)
        except (RuntimeError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ProcessError(
                f"process {rank} of {world_size} cannot reach the others ({reason}): process 0 or torchrun "
                "is gone. Go on from the last checkpoint with --resume."
            ) from None
        self._saves, self._step = 0, 0
        self._cause: dict[str, Any] | None = None
        self._over, self._num_lost = False, 0
        self.given_up = False
        """Whether another process said that the save at hand makes no checkpoint."""
        self._stopped, self._at_once = threading.Event(), False
        self._beating: threading.Thread | None = None
        self._last_beat = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this process collects the parts and writes the manifest."""
        return self.rank == 0

    @property
    def unreachable(self) -> bool:
        """Whether the store has not answered this process for longer than its patience."""
        return time.monotonic() - self._last_beat > self.patience_seconds

    def open(self) -> None:
        """Begin to show signs of life."""
        self._last_beat = time.monotonic()
        self._beating = threading.Thread(target=self._beat, name="save-beat", daemon=True)
        self._beating.start()

    def close(self, *, at_once: bool = False) -> None:
        """Tell the others that this process takes no part any more.

        The first waits for a moment until they know how the last save ended: the store may end with it.

        Args:
            at_once: Do not wait; a save that is not over then is given up.
        """
        self._at_once = at_once
        self._stopped.set()
        if self._beating is not None and not at_once:
            self._beating.join(READ_SECONDS + BEAT_SECONDS)  # a store that does not answer keeps nobody

    def begin(self, step: int) -> None:
        """Begin the next save; all processes call it for the same steps."""
        self._saves, self._step, self._cause, self._over = self._saves + 1, step, None, False
        self.given_up = False

    def announce(self, folder: str) -> None:
        """As the first: say into which folder all write; its name, beside the checkpoints."""
        self._set("folder", folder)

    def folder(self) -> str:
        """As another: wait until the first has made the folder, and return its name.

        Raises:
            OSError, CheckpointError: The first could not, or is lost.
        """
        key, value = self._wait_for(0, "folder", "end")
        if key == "end":
            self._over = True
            self._count_reader()
            self._raise(value)
        return value.decode()

    def deliver(self, part: str) -> None:
        """As another: hand the manifest of what this process wrote to the first."""
        self._set(f"part/{self.rank}", json.dumps({"part": part}))

    def fail(self, error: BaseException) -> None:
        """Say that this process could not write; the first then tells all, whoever it was.

        Raises:
            OSError, CheckpointError: The first gave up before. That takes the others' folder away, so
                its reason stands for what they found.
        """
        if self._over:
            return
        self._over = True
        end = None if self.first else self._look("end")
        if end is not None:
            self._count_reader()
            self._raise(end)
        if self._cause is None:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._cause = {
                "lost": isinstance(error, ProcessError),
                "errno": getattr(error, "errno", None),
                "text": reason if isinstance(error, ProcessError) else f"process {self.rank}: {reason}",
            }
        with contextlib.suppress(ProcessError):  # without a store they find out by themselves
            self._set("end" if self.first else f"part/{self.rank}", json.dumps({"error": self._cause}))
            self._count_reader()  # it has no need of the end

    def collect(self) -> list[str]:
        """As the first: wait for what all others wrote.

        Raises:
            OSError, CheckpointError: Another could not write, or is lost.
        """
        parts = []
        for rank in range(1, self.world_size):
            key, value = self._wait_for(rank, f"part/{rank}")
            parts.append(self._raise(value)["part"])
            self._forget(f"{self._saves}/{key}")
        before = self._saves - 1  # all have left it behind them
        self._forget(*(f"{before}/{key}" for key in ("folder", "end", "read")))
        return parts

    def finish(self) -> None:
        """As the first: say that the checkpoint is complete."""
        self._set("end", "{}")

    def wait_for_end(self) -> None:
        """As another: wait until the checkpoint has its name.

        Raises:
            OSError, CheckpointError: It was given up; the message says which process could not write.
        """
        end = self._wait_for(0, "end")[1]
        self._over = True
        self._count_reader()
        self._raise(end)

    def cut_off(self, reason: str = "no answer") -> ProcessError:
        """The error for a store that does not answer."""
        return ProcessError(
            f"process {self.rank} of {self.world_size} cannot reach the others ({reason}), so the checkpoint "
            f"of step {self._step} may not have been saved; process 0 or torchrun is gone. Go on from the "
            "last checkpoint with --resume."
        )

    def _wait_for(self, rank: int, *names: str) -> tuple[str, bytes]:
        """Wait until process `rank` has set one of the keys; return which, and its value."""
        keys = {name: f"{self._saves}/{name}" for name in names}
        pause, longest = POLL_SECONDS[0], min(POLL_SECONDS[1], self.patience_seconds / 5)
        beat, since = b"", time.monotonic()
        with self._reaching():
            while True:
                last, beat = beat, self._last_sign(rank)
                for name, key in keys.items():
                    if self._store.check([key]):
                        return name, self._store.get(key)
                if beat == LEFT:
                    raise self._lost(rank, "ended")
                if beat != last:
                    since = time.monotonic()
                if time.monotonic() - since > self.patience_seconds:
                    raise self._lost(rank, f"has not been heard of for {self.patience_seconds:g} s")
                time.sleep(pause)
                pause = min(1.5 * pause, longest)

    def _look(self, name: str) -> bytes | None:
        """The value of a key, if it is there and the store answers."""
        key = f"{self._saves}/{name}"
        with contextlib.suppress(RuntimeError):
            return self._store.get(key) if self._store.check([key]) else None
        return None

    def _last_sign(self, rank: int) -> bytes:
        key = f"alive/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""

    def _beat(self) -> None:
        """Show signs of life until `close`; a store that is gone ends it, and `unreachable` tells."""
        every = min(BEAT_SECONDS, self.patience_seconds / 5)
        beats = 0
        with contextlib.suppress(RuntimeError):
            while not self._stopped.is_set():
                beats += 1
                self._store.set(f"alive/{self.rank}", str(beats))
                self._last_beat = time.monotonic()
                self._stopped.wait(every)
            deadline = time.monotonic() + READ_SECONDS
            while self.first and self._saves and not self._at_once and time.monotonic() < deadline:
                if self._store.add(f"{self._saves}/read", 0) >= self.world_size - 1 - self._num_lost:
                    break
                time.sleep(POLL_SECONDS[0])
            self._store.set(f"alive/{self.rank}", LEFT)

    def _set(self, name: str, value: str) -> None:
        with self._reaching():
            self._store.set(f"{self._saves}/{name}", value)

    def _count_reader(self) -> None:
        if not self.first:
            with self._reaching():
                self._store.add(f"{self._saves}/read", 1)

    def _forget(self, *keys: str) -> None:
        with self._reaching():
            for key in keys:
                self._store.delete_key(key)

    def _raise(self, value: bytes) -> dict[str, Any]:
        """Return what another process said, or raise the error that it told."""
        found = json.loads(value)
        self._cause = found.get("error")
        if self._cause is None:
            return found
        self.given_up = True
        text, number = self._cause["text"], self._cause["errno"]
        if self._cause["lost"]:
            raise ProcessError(text)
        if number is not None:
            raise OSError(number, text)
        raise CheckpointError(f"the checkpoint of step {self._step} was not saved: {text}")

    def _lost(self, rank: int, what: str) -> ProcessError:
        self._num_lost = 1
        return ProcessError(
            f"process {rank} of {self.world_size} {what} while the checkpoint of step {self._step} was being "
            "saved; it was given up, and the one before it stays. Go on from there with --resume."
        )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say what it means that the store does not answer."""
        try:
            yield
        except RuntimeError as error:
            raise self.cut_off(" ".join(str(error).split())[:160]) from None
