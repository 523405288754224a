"""The meeting place: processes that know an address come in; a roll call and texts for each other go out.

    process 0      hello? ---- welcome/NONCE = g -->   g/here/0
    process 1      hello/1 = NONCE          <------    g/here/1        all here: g/all
    process 2      (never came)                        "no process 2 within 600 s"

Before anything travels between processes they meet at a key-value store, which the launcher or process 0
keeps. The store may outlive the processes: those that are started again find what the lost ones left. So
process 0 opens a new room, g, for each start, and lets in who shows a nonce that it has just drawn. Who fails
says why in the room, and whoever waits there stops waiting and hands it on.

Source: the store and its variables are torch's (torch.distributed.TCPStore, torchrun's environment); the roll
call is ours, since the library says "timed out" where we want to know who is missing.
"""

import os
import time
import uuid
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

from scratchlm.distributed.store import BoundedStore, within

POLL_SECONDS = 0.02
"""Between two looks at the store; each takes less than a millisecond of processor time."""
SLOW_POLL_SECONDS = 0.2
"""The same after a second of waiting: a thousand processes may wait for hours for the first one."""
STORE_SECONDS = (5.0, 30.0)
"""How long the store's host may be silent: at least, and at most where the usual limit is longer. A network
that finds another way, or a host that swaps, takes some seconds."""


class MissingError(TimeoutError):
    """Processes from whom nothing came in time."""

    def __init__(self, ranks: Collection[int], where: str = "") -> None:
        """Remember who they are; `where` and why they are missed, if known."""
        self.ranks = sorted(ranks)
        many = "es" if len(self.ranks) > 1 else ""
        shown = ", ".join(map(str, self.ranks[:8])) + (" ..." if len(self.ranks) > 8 else "")
        super().__init__(f"no answer from process{many} {shown}{where}")


class FailedError(RuntimeError):
    """Another process said why it failed."""


class Meeting:
    """One process's place in the room in which all that were started together meet."""

    def __init__(self, rank: int, world_size: int, *, timeout_seconds: float) -> None:
        """Find the store and wait until all are here.

        Args:
            rank: This process's number.
            world_size: How many shall come.
            timeout_seconds: How long this one waits for another.

        Raises:
            ValueError: The port is taken by another program.
            MissingError: Not all processes came.
            StoreError: The store's host says nothing any more; so for all methods.
        """
        self.rank, self.world_size, self.timeout_seconds = rank, world_size, timeout_seconds
        least, most = STORE_SECONDS
        found = BoundedStore(connect(rank, timeout_seconds), seconds=min(most, max(least, timeout_seconds)))
        entrance = found.under("scratchlm")
        nonce = uuid.uuid4().hex
        room = nonce if rank == 0 else self._enter(entrance, nonce)
        self.store = entrance.under(room)
        """Keys of this start alone."""
        self.say("here", "yes")
        if rank == 0:
            self._welcome(entrance, room)
        else:
            self._wait(lambda: self.store.check("all"), self.timeout_seconds, self._absent)

    def say(self, name: str, text: str) -> None:
        """Leave a text for the others, under a name and this process's number."""
        self.store.set(f"{name}/{self.rank}", text)

    def hear(self, name: str, rank: int = 0, *, seconds: float | None = None) -> str:
        """Wait for what process `rank` says under `name`.

        Args:
            name: As in `say`.
            rank: Who.
            seconds: How long; the usual limit by default, and inf waits for ever.

        Raises:
            MissingError: Nothing came in time.
            FailedError: A process failed meanwhile.
        """
        key = f"{name}/{rank}"
        limit = self.timeout_seconds if seconds is None else seconds
        self._wait(lambda: self.store.check(key), limit, lambda: [rank])
        return self.store.get(key)

    def fail(self, text: str) -> None:
        """Tell all others why this process ends; who said so first counts."""
        self.store.compare_set("failed", "", f"process {self.rank} failed: {text}")
        if self.rank == 0:  # the store may end with this process: let those who wait there look once more
            time.sleep(2 * SLOW_POLL_SECONDS)

    def failure(self) -> str:
        """What `fail` was told first; empty while nobody failed."""
        return self.store.get("failed") if self.store.check("failed") else ""

    def silent(self, name: str, *, seconds: float) -> list[int]:
        """Who has not said anything under `name` after so many seconds of waiting."""
        others = set(range(self.world_size)) - {self.rank}
        deadline = time.monotonic() + seconds
        while others and time.monotonic() < deadline:
            others = {rank for rank in others if not self.store.check(f"{name}/{rank}")}
            time.sleep(POLL_SECONDS)
        return sorted(others)

    def _enter(self, entrance: BoundedStore, nonce: str) -> str:
        """Show that this process has just come; return the name of the room."""
        entrance.set(f"hello/{self.rank}", nonce)
        self._wait(lambda: entrance.check(f"welcome/{nonce}"), self.timeout_seconds, lambda: [0])
        return entrance.get(f"welcome/{nonce}")

    def _welcome(self, entrance: BoundedStore, room: str) -> None:
        """Answer every nonce, those of an earlier start too, until all are in the room."""
        awaited, answered = set(range(1, self.world_size)), set()

        def all_here() -> bool:
            for rank in sorted(awaited):
                if entrance.check(f"hello/{rank}"):
                    nonce = entrance.get(f"hello/{rank}")
                    if nonce not in answered:
                        answered.add(nonce)
                        entrance.set(f"welcome/{nonce}", room)
                if self.store.check(f"here/{rank}"):
                    awaited.discard(rank)
            return not awaited

        self._wait(all_here, self.timeout_seconds, lambda: awaited)
        self.store.set("all", "here")

    def _absent(self) -> list[int]:
        """Who is not in the room; nobody: process 0 has gone since."""
        return [r for r in range(self.world_size) if not self.store.check(f"here/{r}")] or [0]

    def _wait(
        self, ready: Callable[[], bool], seconds: float, missing: Callable[[], Collection[int]]
    ) -> None:
        started = time.monotonic()
        while not ready():
            waited = time.monotonic() - started
            if hasattr(self, "store") and self.failure():
                raise FailedError(self.failure())
            if waited > seconds:
                raise MissingError(missing())
            time.sleep(POLL_SECONDS if waited < 1 else SLOW_POLL_SECONDS)


def connect(rank: int, timeout_seconds: float) -> Any:
    """The store at MASTER_ADDR:MASTER_PORT; process 0 keeps it where the launcher does not.

    Raises:
        ValueError: The port is taken by another program.
        MissingError: Nobody answers there in time.
    """
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    limit = timedelta(seconds=timeout_seconds)

    def build() -> Any:
        return TCPStore(host, port, is_master=keeps, timeout=limit, wait_for_workers=False, multi_tenant=True)

    try:
        return within(timeout_seconds + 1, build)  # the library's own message comes first where there is one
    except RuntimeError as error:
        if keeps:
            raise ValueError(
                f"MASTER_PORT={port}: another program listens at this port of {host} "
                f"({_reason(error)}); choose a free one (torchrun --master-port PORT), or say torchrun "
                "--standalone."
            ) from None
        reason = _reason(error)
    except TimeoutError:  # a program that is no store takes the call and says nothing
        reason = "whoever listens there is none of these processes"
    raise MissingError([0], f" at {host}:{port} ({reason})")


def _reason(error: Exception) -> str:
    """The library's message, cut to what a line holds."""
    text = " ".join(str(error).split())
    return text.partition("message: ")[2] or text[:160]
