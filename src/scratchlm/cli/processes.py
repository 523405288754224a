"""Several processes from one command: words and a number come in, a run by that many processes goes out.

    scratchlm train quick nproc=2
        keeps the store -+- process 0: the same words --restartable     its view is on the terminal
                         +- process 1: the same words --restartable     is silent
        Ctrl-C, SIGTERM       on to all; they stop after the same step, with one checkpoint
        Ctrl-C again          all end at once
        one is lost           the others end, all start again from the last checkpoint (`restarts` times)
        one has an error      the others end, and the error is told once

The processes see the variables that torchrun sets, so a run under torchrun is the same run. We start them
ourselves and not by torchrun's agent, for which every end but 0 is the same: it would start a mistake in the
settings again, take SIGTERM on one process (143) for a failure, and tell an error once for each process.

Source: the variables are those of torchrun, https://docs.pytorch.org/docs/stable/elastic/run.html.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from scratchlm.distributed.process import Processes
    from scratchlm.train.config import RunConfig

LAUNCHER = "SCRATCHLM_LAUNCHER"
"""Variable with the number of the process that started this one, and tells its errors."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the file for the message of an error; torchrun shows it too."""
POLL_SECONDS = 0.05
"""Between two looks at the processes."""
GRACE_SECONDS = 30.0
"""How long the others may take to end after one has; torchrun's own limit."""
STOPPED = {130, 143, -signal.SIGINT, -signal.SIGTERM}
"""Ends that somebody asked for."""
INTERRUPTIONS = {"Interrupted", "KeyboardInterrupt", "Abort"}
"""What a process tells that somebody stopped, even where it broke while it left."""
LAST_CHARACTERS = 200
"""Of the last line that a lost process wrote."""
PR_SET_PDEATHSIG = 1
"""Linux' prctl(2): the signal to send to this process when its parent ends."""
WATCH = """
import os, pathlib, signal, sys, time
parent, seconds = int(sys.argv[1]), float(sys.argv[2])
def about(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
try:
    begun = about(parent)[19]
    time.sleep(seconds)
    children = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    if about(parent)[19] == begun and all(about(child)[0] == "Z" for child in children):
        os.kill(parent, signal.SIGKILL)
except OSError:
    pass
"""
"""Ends a launcher that has no process any more; its number could have gone to another one meanwhile."""
SHOW_CURSOR = "\x1b[?25h"
"""A view that was killed has left the terminal without one."""


class Ended(NamedTuple):
    """How one process ended."""

    rank: int
    code: int
    kind: str
    """Class of its error; empty where it told none."""
    text: str
    """What it told, or what it wrote last."""
    when: int

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped it."""
        return self.code in STOPPED or self.kind in INTERRUPTIONS

    @property
    def lost(self) -> bool:
        """Whether it ended by no wish and told no error."""
        return self.code != 0 and not self.stopped and not self.kind

    @property
    def is_cause(self) -> bool:
        """Whether it told an error that is not about another process."""
        return self.code != 0 and not self.stopped and self.kind not in ("", "ProcessError")


def started_by_launcher() -> bool:
    """Whether torchrun or this file has started this process."""
    return "WORLD_SIZE" in os.environ


def follow_launcher() -> None:
    """Ask the system for SIGTERM when the launcher is killed: nobody else could tell us then."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):
        raise KeyboardInterrupt  # it was killed before we asked


def check_machine(config: "RunConfig", here: int, world_size: int) -> None:
    """See that so many processes can share a run's steps and this machine's devices.

    Args:
        config: The run's settings.
        here: Processes on this machine.
        world_size: Processes on all.

    Raises:
        ValueError: They cannot; the message says what can.
    """
    import torch

    from scratchlm.runtime import choose_device
    from scratchlm.train.build import check_sharing

    check_sharing(config, world_size)
    device = choose_device(config.train.device)
    if device.type == "mps":
        raise ValueError(
            f"train.device={config.train.device}: several processes cannot share this machine's GPU; "
            "say train.device=cpu, or nproc=1."
        )
    if device.type == "cuda" and (device.index is not None or torch.cuda.device_count() < here):
        raise ValueError(
            f"train.device={config.train.device}: each of {here} processes takes a GPU of its own, and this "
            f"machine has {torch.cuda.device_count()}; choose at most that many processes (nproc), with "
            "train.device=cuda, or train.device=cpu."
        )


def share(config: "RunConfig", processes: "Processes") -> None:
    """See that all processes have the same settings, and can share the work.

    Raises:
        ValueError: A process has other settings, or they cannot.
    """
    from scratchlm.runtime import log
    from scratchlm.train.changes import leaves

    processes.agree("configuration", dict(leaves(config.model_dump(mode="json"))))
    if processes.world_size > 1:
        check_machine(config, processes.local_world_size, processes.world_size)
    if processes.first and config.nproc not in (1, processes.world_size):
        log.warning("nproc=%d is not used: %d processes are here.", config.nproc, processes.world_size)


def versions() -> dict[str, str]:
    """What has to be the same on all machines."""
    import torch

    from scratchlm import __version__

    return {"scratchlm": __version__, "torch": torch.__version__}


def end_launcher_later(seconds: float) -> None:
    """Leave a process behind that ends torchrun on this machine, should it hang; on Linux.

    Where a cable is cut, torchrun's own calls of the store on the other machine have no limit, and no signal
    but SIGKILL ends them. It is left alone if it has started processes again by then.

    Args:
        seconds: How long it may take beyond the grace for its processes.
    """
    if sys.platform != "linux" or LAUNCHER in os.environ:
        return
    words = [sys.executable, "-S", "-c", WATCH, str(os.getppid()), str(seconds + GRACE_SECONDS)]
    subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start(words: Sequence[str], config: "RunConfig", folder: Path, *, again: Callable[[], str]) -> None:
    """Run `scratchlm WORDS` as `config.nproc` processes until all are done.

    Args:
        words: A command that begins, goes on or does nothing, as its folder asks.
        config: Its settings.
        folder: The run's.
        again: Gives the command that goes on with the run, for messages.

    Raises:
        Interrupted: Somebody stopped it.
        ValueError: A process failed; the message is its own.
        ProcessError: One was lost, more often than `config.restarts`.
    """
    from scratchlm.cli.console import err

    check_machine(config, config.nproc, config.nproc)
    debug = ["--debug"] if "--debug" in sys.argv else []
    with _hearing() as heard:
        for attempt in range(config.restarts + 1):
            with _together([*words, *debug], config.nproc, attempt) as group:
                at_once = group.attend(heard)
                ended = group.ended()
            lost = _who_is_lost(ended)
            if at_once or heard or not lost or attempt == config.restarts:
                break
            where = "from the last checkpoint" if any(folder.glob("checkpoints/step-*")) else "from step 1"
            text = f"{lost}; all start again {where} ({attempt + 1} of {config.restarts})."
            err().print(text, style="yellow")
    _conclude(ended, heard, again(), at_once=at_once)


class Group:
    """Processes that were started together."""

    def __init__(self, words: Sequence[str], count: int, attempt: int, folder: Path) -> None:
        """Start them; what they leave for us goes into `folder`."""
        from torch.distributed import TCPStore

        # kept here, it outlives process 0, and the system chooses a port that is free
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.folder, self.killed = folder, set[int]()
        self.children: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            self.children.append(self._start(words, rank, count, attempt))

    def attend(self, heard: list[int]) -> bool:
        """Wait until all have ended, and see that they do.

        Args:
            heard: Signals that came; more may come.

        Returns:
            Whether they were ended at once, by a second Ctrl-C.
        """
        passed, deadline = 0, float("inf")
        while self.alive():
            time.sleep(POLL_SECONDS)
            for number in heard[passed:]:
                if number == signal.SIGINT and signal.SIGINT in heard[:passed]:
                    self.kill()
                    return True
                passed += 1
                for _, child in self.alive():
                    child.send_signal(number)
            if any(child.poll() for child in self.children):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > deadline:
                self.kill()
        return False

    def alive(self) -> list[tuple[int, "subprocess.Popen[bytes]"]]:
        """Those that run, with their numbers."""
        return [(rank, child) for rank, child in enumerate(self.children) if child.poll() is None]

    def kill(self) -> None:
        """End those that still run."""
        for rank, child in self.alive():
            self.killed.add(rank)
            child.kill()
        for child in self.children:
            child.wait()

    def ended(self) -> list[Ended]:
        """How each ended by itself."""
        return [
            _read(rank, child.returncode, self.folder)
            for rank, child in enumerate(self.children)
            if rank not in self.killed
        ]

    def _start(self, words: Sequence[str], rank: int, count: int, attempt: int) -> "subprocess.Popen[bytes]":
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": attempt,
            ERROR_FILE: self.folder / f"{rank}.json",
            LAUNCHER: os.getpid(),
        }
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # how a connection ended is for us to tell
        with (self.folder / f"{rank}.err").open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "scratchlm", *words],
                env=quiet | os.environ | {name: str(value) for name, value in variables.items()},
                stdin=subprocess.DEVNULL,
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else stream,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
            )


@contextlib.contextmanager
def _together(words: Sequence[str], count: int, attempt: int) -> Iterator[Group]:
    """A group that has ended when the context does."""
    with tempfile.TemporaryDirectory(prefix="scratchlm-") as folder:
        group = Group(words, count, attempt, Path(folder))
        try:
            yield group
        finally:
            group.kill()
            if sys.stdout.isatty():
                sys.stdout.write(SHOW_CURSOR)
                sys.stdout.flush()


@contextlib.contextmanager
def _hearing() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being ended by them."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before: dict[int, Any] = {
        number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read(rank: int, code: int, folder: Path) -> Ended:
    told = folder / f"{rank}.json"
    try:
        message = json.loads(told.read_text(encoding="utf-8"))["message"]
        return Ended(rank, code, message["kind"], message["message"], told.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError):  # it had no time to tell anything
        lines = (folder / f"{rank}.err").read_text(encoding="utf-8", errors="replace").split("\n")
        return Ended(rank, code, "", next((line for line in lines[::-1] if line.strip()), ""), 0)


def _who_is_lost(ended: Sequence[Ended]) -> str:
    """What is to be said of a lost process; empty where none is, or where an error is to be told instead."""
    if any(one.is_cause or one.stopped for one in ended):
        return ""
    for one in ended:
        if one.lost:
            code = one.code
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            # a process that is killed says nothing of it: its last line is about something else
            last = one.text.strip()[:LAST_CHARACTERS] if code != -signal.SIGKILL else ""
            return f"process {one.rank} {how}" + (f" ({last})" if last else "")
    waited = sorted((one for one in ended if one.kind == "ProcessError"), key=lambda one: one.when)
    return waited[0].text.partition(". Waiting is limited")[0] if waited else ""


def _conclude(ended: Sequence[Ended], heard: list[int], again: str, *, at_once: bool) -> None:
    """Say once how all of them ended."""
    from scratchlm.cli.errors import Interrupted
    from scratchlm.distributed.process import ProcessError

    if at_once:
        raise Interrupted(f"stopped at once; go on with: {again}")
    causes = sorted((one for one in ended if one.is_cause), key=lambda one: one.when)
    if causes:
        raise ValueError(causes[0].text)
    stopped = [one for one in ended if one.stopped]
    if stopped or heard:
        text = next((one.text for one in stopped if one.kind), f"stopped; go on with: {again}")
        terminated = signal.SIGTERM in heard or any(one.code in (143, -signal.SIGTERM) for one in stopped)
        raise Interrupted(text, by="SIGTERM" if terminated else "SIGINT")
    lost = _who_is_lost(ended)
    if lost:
        raise ProcessError(f"{lost}; go on with: {again}")
