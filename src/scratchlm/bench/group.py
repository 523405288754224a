r"""A measurement and a number of processes come in; what process 0 finds goes out, as soon as it finds it.

    parent: a store on a free port --+-- process 0: work(...) --> lines of JSON --> read_group yields them
                                     +-- process 1: work(...)
                                     +-- ...

Benchmarks of communication need several processes that begin together; nobody should have to start them by
hand. The parent keeps the store through which they meet, so no port can be lost between choosing and using
it, starts `python -m scratchlm.bench.group` once for each process, and ends them all when one of them fails
or the caller stops; if the parent is killed, the end of their input ends them. Each gets an equal share of
the cores; over gloo none sees a GPU.
"""

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from scratchlm.config import Config
from scratchlm.distributed.process import ProcessError, Processes
from scratchlm.runtime import num_cores

BACKENDS = ("gloo", "nccl")
"""gloo: tensors on the CPU; nccl: on GPUs, one for each process."""
TIMEOUT_SECONDS = 120.0
"""How long a process waits for another: the slowest call measured, 1 GB among 4 processes, took 6 s."""
POLL_SECONDS = 0.1
"""Between two looks at whether all processes live."""
LAST_WORDS_SECONDS = 3.0
"""The others are ended that long after one has failed; until then they may fail and say why, too."""

Report = Callable[[dict[str, Any]], None]
"""What `work` calls with what it found; only process 0's calls are heard."""


def read_group(
    name: str, case: Config, *, world_size: int, backend: str = "gloo"
) -> Iterator[dict[str, Any]]:
    """Start processes that all call `work(case, processes, report)` of scratchlm/bench/<name>.py.

    Args:
        name: The module; its `CASE` is the class that reads the case.
        case: What to measure.
        world_size: Number of processes.
        backend: "gloo" or "nccl".

    Yields:
        What process 0 reports, in its order.

    Raises:
        ProcessError: A process ended without finishing; its last words are in the message.
    """
    from torch import distributed

    limit = timedelta(seconds=TIMEOUT_SECONDS)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        children = []
        for rank in range(world_size):
            words = stack.enter_context((Path(folder) / str(rank)).open("w+", encoding="utf-8"))
            child = subprocess.Popen(
                [sys.executable, "-m", "scratchlm.bench.group", name, case.model_dump_json()],
                env=_environment(rank, world_size, store.port, backend),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=words,
                text=True,
            )
            stack.callback(_end, child)
            children.append((child, words))
        yield from _lines(children)


def _environment(rank: int, world_size: int, port: int, backend: str) -> dict[str, str]:
    """What torchrun would set, and this process's share of the machine."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        # the store is the parent's: process 0 joins it like the others, as under torchrun
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "OMP_NUM_THREADS": max(1, num_cores() // world_size),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if backend == "gloo" else {}
    return os.environ | {key: str(value) for key, value in place.items()} | hidden


def _lines(children: list[tuple[subprocess.Popen[str], IO[str]]]) -> Iterator[dict[str, Any]]:
    """Read process 0 while looking after all of them."""
    lines: queue.Queue[str | None] = queue.Queue()
    source = children[0][0].stdout

    def read() -> None:
        for line in source:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    open_ended = True
    while open_ended or any(child.poll() is None for child, _ in children):
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=POLL_SECONDS) if open_ended else time.sleep(POLL_SECONDS)
            open_ended = open_ended and line is not None
            if line is not None:
                yield json.loads(line)
        if any(child.poll() not in (None, 0) for child, _ in children):
            break
    failed = [rank for rank, (child, _) in enumerate(children) if child.poll() not in (None, 0)]
    if failed:
        raise ProcessError(_last_words(children, failed[0]))


def _last_words(children: list[tuple[subprocess.Popen[str], IO[str]]], first: int) -> str:
    """The first process that failed, and what it said; one that only missed it says less."""
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while time.monotonic() < deadline and any(child.poll() is None for child, _ in children):
        time.sleep(POLL_SECONDS)
    child, words = children[first]
    words.seek(0)
    said = [line.strip() for line in words.read().splitlines() if line.strip()]
    code = child.poll()
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"process {first} of {len(children)} {ended}: {said[-1] if said else 'it said nothing'}"


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def main(words: list[str]) -> None:
    """Be one process: join the others, do the work, leave."""
    name, text = words
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    module = importlib.import_module(f"scratchlm.bench.{name}")
    case = module.CASE.model_validate_json(text)
    processes = Processes.from_environment(timeout_seconds=TIMEOUT_SECONDS)

    def report(record: dict[str, Any]) -> None:
        if processes.first:
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()

    module.work(case, processes, report)
    processes.barrier()
    sys.stdout.flush()
    # a thread of gloo's may abort an interpreter that is being taken down; all is said, so leave at once
    os._exit(0)


def _leave_with_parent() -> None:
    sys.stdin.read()  # nothing comes: it ends when the parent does
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
