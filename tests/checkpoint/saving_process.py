"""Processes that save and are killed: `python saving_process.py MODE=FOLDER ...` prints a line of JSON each.

Each mode runs in a fork of this process and forks its victims: torch is imported once, and a kill costs
milliseconds.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from scratchlm.checkpoint import Saver, latest, load_checkpoint, save_checkpoint

TRACED = ("/scratchlm/", "/shutil.py")
DEADLINE_SECONDS = 400
"""When a process of this script ends by itself, whatever became of the one that waits for it."""


def tensors_of(step, rows=64):
    """What a checkpoint of this step holds: 1 MB whose every number says the step."""
    return {
        "model": {"weight": torch.full((rows, 1024), float(step)), "bias": torch.arange(step, step + 7)},
        "optimizer": {f"0.{name}": torch.full((rows, 1024), step / 2) for name in ("m", "v")},
    }


def state_of(step):
    return {"done": step, "rows": list(range(step % 5))}


def check(path, rows=64):
    """Assert that a checkpoint is exactly what a full save of its step is, and return the step."""
    found = load_checkpoint(path)
    wanted = tensors_of(found.step, rows)
    assert found.state == state_of(found.step)
    assert found.tensors.keys() == wanted.keys()
    for group, named in wanted.items():
        assert found.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(found.tensors[group][name], tensor), (path, group, name)
    return found.step


def fork(work):
    """Run `work` in a child process and return its id; the child never comes back here."""
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE_SECONDS)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def save_for_ever(folder, first, acknowledge, background):
    with Saver(folder, newest=2, background=background) as saver:
        for step in range(first, first + 10_000):
            saver.save(step, tensors_of(step), state_of(step), {"tokenizer": "abc"})
            if not background:
                os.write(acknowledge, step.to_bytes(8, "little"))


def kill_at_random(folder, rounds=50):
    """Kill a process that saves in a loop; what `latest` names is whole and never older than promised."""
    started = time.perf_counter()
    for step in (1, 2, 3):
        save_checkpoint(folder, step, tensors_of(step), state_of(step))
    seconds_per_save = (time.perf_counter() - started) / 3
    draw = random.Random(0)
    newest, in_the_middle, backgrounds = 3, 0, 0
    for number in range(rounds):
        reader, writer = os.pipe()
        background = number % 2 == 1
        child = fork(lambda: save_for_ever(folder, newest + 1, writer, background))  # noqa: B023 - at once
        os.close(writer)
        time.sleep(draw.uniform(0, 4 * seconds_per_save))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
        promised = [newest]
        while block := os.read(reader, 8):
            promised.append(int.from_bytes(block, "little"))
        os.close(reader)
        in_the_middle += any(folder.glob(".step-*"))
        backgrounds += background
        path = latest(folder)
        assert path is not None
        found = check(path)
        assert found >= max(promised), (found, promised)
        newest = found
    with Saver(folder, newest=2):
        pass
    return {
        "rounds": rounds,
        "in_the_middle": in_the_middle,
        "saved": newest,
        "names": sorted(path.name for path in folder.iterdir()),
    }


def kill_at_lines(folder, step, stride):
    """Kill a save of `step` at every `stride`-th line of Python that it runs; steps 1 and 2 lie there.

    The child's trace function counts the lines of this package and of shutil and kills at the n-th.
    """
    template, work = folder / "template", folder / "work"
    for old in (1, 2):
        save_checkpoint(template, old, tensors_of(old, 1), state_of(old))
    after_kill, after_opening = set(), set()
    line = 0
    while True:
        shutil.copytree(template, work)
        child = fork(lambda: save_with_kill(work, step, line))  # noqa: B023 - runs at once
        _, status = os.waitpid(child, 0)
        path = latest(work)
        assert path is not None, line
        after_kill.add(check(path, 1))
        Saver(work, newest=1)
        path = latest(work)
        assert path is not None, line
        after_opening.add(check(path, 1))
        left = [path.name for path in work.iterdir() if path.name.startswith(".")]
        assert not left, (line, left)
        shutil.rmtree(work)
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            break
        line += stride
    return {"lines": line, "after_kill": sorted(after_kill), "after_opening": sorted(after_opening)}


def save_with_kill(folder, step, line):
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not any(part in frame.f_code.co_filename for part in TRACED):
            return None
        if event == "line":
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
        return trace

    saver = Saver(folder, newest=1, background=False)
    tensors, state = tensors_of(step, 1), state_of(step)
    sys.settrace(trace)
    saver.save(step, tensors, state)
    sys.settrace(None)


def disk_full(folder):
    """Save under a limit of 100 kB a file: refused with a clear error, the old one stays, later ones work."""
    found = []
    for background in (False, True):
        place = folder / str(background)
        with Saver(place, newest=2, background=background) as saver:
            saver.save(1, tensors_of(1), state_of(1))
            saver.wait()
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            try:
                saver.save(2, tensors_of(2), state_of(2))
                saver.wait()
            except OSError as error:
                found.append([errno.errorcode[error.errno], error.strerror, Path(error.filename).name])
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert [path.name for path in place.iterdir()] == ["step-0000001"]
            assert check(latest(place)) == 1
            saver.save(3, tensors_of(3), state_of(3))
            saver.wait()
            assert check(latest(place)) == 3
    return {"errors": found}


def read_only(folder):
    """Save into a folder that this user may not write to; root becomes nobody first."""
    place = folder / "checkpoints"
    save_checkpoint(place, 1, tensors_of(1), state_of(1))
    place.chmod(0o555)
    if os.getuid() == 0:
        os.setuid(65534)
    found = []
    for background in (False, True):
        saver = Saver(place, newest=2, background=background)
        try:
            saver.save(2, tensors_of(2), state_of(2))
            saver.close()
        except OSError as error:
            found.append([type(error).__name__, error.strerror, Path(error.filename).name])
    assert check(latest(place)) == 1
    return {"errors": found}


def leave_at_once(folder):
    """Interrupt a run while a slow disk writes its checkpoint: the process does not wait for it."""
    from scratchlm.checkpoint import folder as module

    save_checkpoint(folder, 1, tensors_of(1), state_of(1))
    module.write_tensors = lambda *ignored: time.sleep(60)
    started = time.perf_counter()

    def interrupted():
        with Saver(folder, newest=2) as saver:
            saver.save(2, tensors_of(2), state_of(2))
            while not any(folder.glob(".*")) and time.perf_counter() - started < 20:
                time.sleep(0.01)
            raise KeyboardInterrupt

    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE_SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        interrupted()  # an ordinary end of the interpreter, not os._exit
    _, status = os.waitpid(child, 0)
    left = [path.name for path in folder.glob(".*")]
    Saver(folder, newest=2)
    return {
        "seconds": time.perf_counter() - started,
        "failed": status != 0,
        "left": len(left),
        "latest": check(latest(folder)),
        "names": [path.name for path in folder.iterdir()],
    }


MODES = {
    "kill-at-random": kill_at_random,
    "kill-at-any-line": lambda folder: kill_at_lines(folder, step=3, stride=13),
    "kill-a-replacement": lambda folder: kill_at_lines(folder, step=2, stride=13),
    "kill-at-every-line": lambda folder: kill_at_lines(folder, step=3, stride=1),
    "kill-every-replacement": lambda folder: kill_at_lines(folder, step=2, stride=1),
    "disk-full": disk_full,
    "read-only": read_only,
    "leave-at-once": leave_at_once,
}


def run(mode, folder):
    result = MODES[mode](Path(folder))
    os.write(sys.stdout.fileno(), (json.dumps({"mode": mode, **result}) + "\n").encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.alarm(DEADLINE_SECONDS)
    statuses = []
    for word in sys.argv[1:]:
        _, status = os.waitpid(fork(lambda: run(*word.split("="))), 0)  # noqa: B023 - runs at once
        statuses.append(status)
    sys.exit(int(any(statuses)))
