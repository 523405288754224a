"""Several processes save together: `python saving_processes.py MODE=FOLDER ...` prints a line of JSON each.

All are forks of this process, so torch is imported once. The modes run at the same time: they mostly wait.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
from savers_together import equal, tensors_of, whole_tensors
from saving_process import DEADLINE_SECONDS, TRACED, fork
from torch.distributed import TCPStore

from scratchlm.checkpoint import (
    Coordinator,
    Piece,
    Saver,
    latest,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from scratchlm.distributed.process import ProcessError

PATIENCE_SECONDS = 1.5
"""Long enough for a busy machine: a process that lives must not seem lost."""

WAITING = ("_beat", "_wait_for", "_last_sign", "wait")
"""Functions that look again and again: a kill at their hundredth line is no other case than at the first."""

LIMIT = timedelta(seconds=60)


@contextlib.contextmanager
def new_store():
    """The port of a server for the processes of one attempt, as torchrun has one for each.

    It has a process of its own: a fork of one with the server's thread could inherit a lock that it held.
    """
    reader, writer = os.pipe()

    def serve():
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
        os.write(writer, server.port.to_bytes(8, "little"))
        time.sleep(DEADLINE_SECONDS)

    child = fork(serve)
    try:
        yield int.from_bytes(os.read(reader, 8), "little")
    finally:
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def coordinator_of(port, rank, world_size, patience_seconds=PATIENCE_SECONDS):
    """Connect as process `rank`; to be called after the fork."""
    own = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=LIMIT)
    return Coordinator(own, rank, world_size, patience_seconds=patience_seconds)


def wait_for(child):
    """The exit status of a child, which must come in bounded time."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("a process waits for another that is gone")


def add_one(reader, rank, world_size):
    """Read this process's rows of a checkpoint, add 1, and return them for saving."""
    tensors = {}
    for group in reader.groups:
        tensors[group] = {}
        for name in reader.names(group):
            rows = (reader.shape(group, name) or (1,))[0]
            first, end = rows * rank // world_size, rows * (rank + 1) // world_size
            if not reader.shape(group, name):
                if rank == 0:
                    tensors[group][name] = Piece.whole(reader.read(group, name) + 1)
                continue
            tensors[group][name] = Piece(reader.read(group, name, first, end - first) + 1, first, rows)
    return tensors


def another_number(folder):
    """Go on with 4, 2, 1 and 3 processes, each reading and writing its own rows; weights stay equal."""
    save_checkpoint(folder, 0, whole_tensors(7), {})
    sums = []
    for step, world_size in enumerate((4, 2, 1, 3), 1):
        with new_store() as port:
            work = functools.partial(go_on, folder, step, world_size, port)
            children = [fork(lambda: work(rank)) for rank in range(world_size)]  # noqa: B023 - runs at once
            assert [wait_for(child) for child in children] == [0] * world_size
        found = load_checkpoint(latest(folder))
        assert (found.step, found.identity) == (step, {"world_size": world_size})
        wanted = whole_tensors(7)
        for group, named in wanted.items():
            for name, tensor in named.items():
                for _ in range(step):
                    tensor = tensor + 1
                assert torch.equal(found.tensors[group][name], tensor), (step, group, name)
        sums.append(len(list(latest(folder).glob("model*"))))
    return {"files": sums}


def go_on(folder, step, world_size, port, rank):
    path = latest(folder)
    assert path.name == f"step-{step - 1:07d}"
    with Saver(folder, newest=9, coordinator=coordinator_of(port, rank, world_size)) as saver:
        with open_checkpoint(path) as reader:
            saver.save(step, add_one(reader, rank, world_size), {}, {"world_size": world_size})


def save_for_ever(folder, first, rank, world_size, port, report, background):
    """Save until another is lost; say what was promised, and why it ended."""
    with Saver(
        folder, newest=2, background=background, coordinator=coordinator_of(port, rank, world_size)
    ) as saver:
        try:
            for step in range(first, first + 10_000):
                saver.save(step, tensors_of(step, rank, world_size), {"done": step})
                if not background:
                    os.write(report, f"{step}\n".encode())
        except ProcessError as error:
            os.write(report, f"{error}\n".encode())


def kill_one(folder, rounds=4, world_size=3):
    """Kill one of several processes that save in a loop; the others end and name it; `latest` is whole."""
    started = time.perf_counter()
    for step in (1, 2, 3):
        save_checkpoint(folder, step, whole_tensors(step), {"done": step})
    seconds_per_save = time.perf_counter() - started
    draw = random.Random(0)
    newest, in_the_middle, named, waited = 3, 0, [], []
    for number in range(rounds):
        victim, background = number % world_size, number >= rounds // 2
        with new_store() as port:
            reports, children = [os.pipe() for _ in range(world_size)], []
            for rank, (_, report) in enumerate(reports):
                work = (folder, newest + 1, rank, world_size, port, report, background)
                children.append(fork(lambda: save_for_ever(*work)))  # noqa: B023 - runs at once
            for _, writer in reports:
                os.close(writer)
            deadline = time.monotonic() + 20
            while latest_step(folder) == newest and time.monotonic() < deadline:
                time.sleep(0.005)  # until all have come together
            time.sleep(draw.uniform(0, 3 * seconds_per_save))
            os.kill(children[victim], signal.SIGKILL)
            in_the_middle += any(folder.glob(".step-*"))
            killed = time.monotonic()
            statuses = [wait_for(child) for child in children]
            waited.append(time.monotonic() - killed)
        assert [rank for rank, status in enumerate(statuses) if status] == [victim], statuses
        promised, words = read_reports(reports)
        named.append([f"process {victim} of {world_size} has not been heard of" in text for text in words])
        path = latest(folder)
        found = load_checkpoint(path)
        assert equal(found.tensors, found.step)
        assert found.state == {"done": found.step}
        assert found.step >= max([newest, *promised]), (found.step, promised)
        newest = found.step
    with Saver(folder, newest=2):
        pass
    names = sorted(path.name for path in folder.iterdir())
    return {
        "in_the_middle": in_the_middle,
        "named": named,
        "waited": max(waited),
        "saved": newest,
        "names": names,
    }


def latest_step(folder):
    return max(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def read_reports(reports):
    """Steps that were promised to be on the disk, and the last words of those that lived."""
    promised, words = [], []
    for reader, _ in reports:
        with os.fdopen(reader, encoding="utf-8") as stream:
            for line in stream:
                promised += [int(line)] if line.strip().isdigit() else []
                words += [] if line.strip().isdigit() else [line.strip()]
    return promised, words


def kill_at_lines(folder, *strides):
    """Kill one of several processes at every n-th line of a save of step 3; steps 1 and 2 lie there.

    `strides` has n for each process as the victim.
    """
    world_size = len(strides)
    template, work = folder / "template", folder / "work"
    for old in (1, 2):
        save_checkpoint(template, old, whole_tensors(old), {})
    found = {}
    for victim, stride in enumerate(strides):
        after_kill, after_opening, line = set(), set(), stride // 2
        while True:
            shutil.copytree(template, work)
            with new_store() as port:
                lines = [line if rank == victim else None for rank in range(world_size)]
                children = [
                    fork(lambda: save_with_kill(work, rank, lines, port))  # noqa: B023 - runs at once
                    for rank in range(world_size)
                ]
                statuses = [wait_for(child) for child in children]
            for seen in (after_kill, after_opening):
                saved = load_checkpoint(latest(work))
                assert equal(saved.tensors, saved.step)
                seen.add(saved.step)
                Saver(work, newest=1)
            left = [path.name for path in work.iterdir() if path.name.startswith(".")]
            assert not left, (line, left)
            shutil.rmtree(work)
            if not os.WIFSIGNALED(statuses[victim]):
                break
            line += stride
        found[victim] = {
            "lines": line,
            "after_kill": sorted(after_kill),
            "after_opening": sorted(after_opening),
        }
    return found


def save_with_kill(folder, rank, lines, port):
    world_size, line = len(lines), lines[rank]
    coordinator = coordinator_of(port, rank, world_size, PATIENCE_SECONDS / 2)
    count, lock = 0, threading.Lock()

    def trace(frame, event, argument):
        nonlocal count
        if not any(part in frame.f_code.co_filename for part in TRACED) or frame.f_code.co_name in WAITING:
            return None
        if event == "line":
            with lock:
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
        return trace

    saver = Saver(folder, newest=1, coordinator=coordinator)
    tensors = tensors_of(3, rank, world_size)
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        with saver:
            saver.save(3, tensors, {})
    except ProcessError:
        pass
    sys.settrace(None)


MODES = {
    "another-number": another_number,
    "kill-one": kill_one,
    "kill-at-any-line": lambda folder: kill_at_lines(folder, 800, 230),
    "kill-at-many-lines": lambda folder: kill_at_lines(folder, 41, 17),
}


def run(mode, folder):
    started = time.perf_counter()
    result = MODES[mode](Path(folder)) | {"seconds": time.perf_counter() - started}
    os.write(sys.stdout.fileno(), (json.dumps({"mode": mode, **result}) + "\n").encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(DEADLINE_SECONDS)
    modes = [fork(lambda: run(*word.split("="))) for word in sys.argv[1:]]  # noqa: B023 - runs at once
    sys.exit(int(any([os.waitpid(mode, 0)[1] for mode in modes])))
