"""A task comes in, a process that does it comes out, and what it left when it ended.

Each process is a fresh interpreter in a session of its own, so that Ctrl-C in the terminal reaches the runner
alone, which then asks every process to stop. Its output goes to a log beside its request.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scratchlm.config import Config
from scratchlm.lab.cells import StudyFolder, read_note
from scratchlm.lock import lock_holder
from scratchlm.runtime import write_text_atomically

STOP_SECONDS = 120.0
"""How long a process may take to save and leave; a step of a large model on a CPU takes seconds."""
LOCK_SECONDS = 60.0
"""How long the process of a killed runner may still be saving in a folder that is wanted."""


class Task(NamedTuple):
    """What a process shall do."""

    key: str
    do: Literal["cell", "prepare", "start"]
    folder: Path
    config: Config
    shared: Path | None
    """Tokenizer and shards to link first."""
    experiment: str
    measures: tuple[str, ...] = ()
    """Files that are then made from the run (worker.py)."""


class Job:
    """A running task."""

    def __init__(self, task: Task, folder: StudyFolder, process: subprocess.Popen[bytes]) -> None:
        """Watch `process` do `task`."""
        self.task, self.folder, self.process = task, folder, process

    def ended(self) -> bool:
        """Whether the process has left."""
        return self.process.poll() is not None

    def ask_to_stop(self) -> None:
        """Let the run save and leave."""
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)

    def finish(self) -> dict[str, Any]:
        """Close what belongs to an ended process; return its failure, empty where all went well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.folder.note(self.task.key, "progress").unlink(missing_ok=True)
        path = self.folder.note(self.task.key, "failure")
        failure = read_note(path)
        if self.process.returncode and not failure:
            failure = {"kind": "failed", "error": self._last_words()}
            write_text_atomically(path, json.dumps(failure) + "\n")
        return failure

    def _last_words(self) -> str:
        """Why a process left that could not say it: a signal, or the last line of its traceback."""
        code = self.process.returncode
        log = self.folder.note(self.task.key, "log")
        if code < 0:
            name = signal.Signals(-code).name
            why = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return f"ended by {name}{why}"
        lines = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        return f"{lines[-1].strip() if lines else f'exit code {code}'} (see {log})"


def start(task: Task, folder: StudyFolder, *, threads: int, plugins: Sequence[Path]) -> Job:
    """Start a process for `task`.

    Args:
        task: What to do.
        folder: The study's.
        threads: Of its arithmetic.
        plugins: Python files that register parts.
    """
    until = time.monotonic() + LOCK_SECONDS
    while lock_holder(task.folder) is not None and time.monotonic() < until:
        time.sleep(0.1)  # the process of a runner that was killed is saving its checkpoint
    for kind in ("failure", "progress"):
        folder.note(task.key, kind).unlink(missing_ok=True)
    request = {
        "do": task.do,
        "experiment": task.experiment,
        "measures": task.measures,
        "config": task.config.model_dump(mode="json"),
        "folder": str(task.folder),
        "shared": None if task.shared is None else str(task.shared),
        "progress": str(folder.note(task.key, "progress")),
        "failure": str(folder.note(task.key, "failure")),
        "plugins": [str(path) for path in plugins],
        "watched": True,
    }
    path = folder.note(task.key, "request")
    write_text_atomically(path, json.dumps(request) + "\n")
    with folder.note(task.key, "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scratchlm.lab.worker", str(path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )
    return Job(task, folder, process)


def drain(jobs: Sequence[Job]) -> None:
    """End all: each saves a checkpoint; whoever takes too long is killed."""
    for job in jobs:
        job.ask_to_stop()
    until = time.monotonic() + STOP_SECONDS
    for job in jobs:
        try:
            job.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        assert job.process.stdin is not None
        job.process.stdin.close()
