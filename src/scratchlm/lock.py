"""One process per folder: whoever holds the lock works there, a second is told who does.

    with run_lock(folder): ...      .run.lock: {"pid": 4711, "host": "node3", "since": "2026-11-21 08:00:00"}

The lock is the kernel's (flock), not the file's existence: it ends with its process, however that dies, so no
stale lock ever has to be removed by hand. Linux passes flock on to the server of an NFS folder (since 2.6.12,
as a lock of the whole file), so two machines exclude each other too; where a file system has no locks at all,
a warning says so and the work goes on.

Source: flock(2), https://man7.org/linux/man-pages/man2/flock.2.html.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scratchlm.runtime import log

LOCK_FILE = ".run.lock"
ATTEMPTS = 5
"""How often a held lock is tried, a tenth of a second apart: `lock_holder` holds it for microseconds."""

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Holder(NamedTuple):
    """The process that works in a folder."""

    pid: int
    host: str
    since: str


@contextlib.contextmanager
def run_lock(folder: Path, *, doing: str = "training") -> Iterator[None]:
    """Hold a folder for this process; it is made when missing.

    Args:
        folder: What no other process may write to.
        doing: What the other process is told that this one does.

    Raises:
        ValueError: Another process holds it; the message says which and what to do.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for attempt in range(ATTEMPTS):
            if _try_lock(descriptor, folder, shared=False):
                break
            if attempt + 1 == ATTEMPTS:
                raise ValueError(_refusal(folder, doing, _read(descriptor)))
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        holder = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        os.pwrite(descriptor, json.dumps(holder._asdict()).encode("utf-8"), 0)
        yield
        os.ftruncate(descriptor, 0)  # the file stays: removing it would let two processes lock two files
    finally:
        os.close(descriptor)


def lock_holder(folder: Path) -> Holder | None:
    """The process that holds a run folder now, or None."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor, folder, shared=True) else _read(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, folder: Path, *, shared: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        log.warning("%s: this system has no flock; do not work in this folder twice at once.", folder)
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        reason = error.strerror
        log.warning("%s: no locks here (%s); do not work in this folder twice at once.", folder, reason)
    return True


def _read(descriptor: int) -> Holder:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # caught between locking and writing
        return Holder(0, "unknown", "just now")


def _refusal(folder: Path, doing: str, holder: Holder) -> str:
    who = f"process {holder.pid} on {holder.host}" if holder.pid else "another process"
    return (
        f"{folder}: {who} has been {doing} here since {holder.since}; wait for it, stop it "
        f"(kill {holder.pid or 'PID'}), or choose another folder."
    )
