"""The command that starts several processes: small programs stand for them; what happens is told once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from scratchlm.cli import processes
from scratchlm.cli.errors import Interrupted
from scratchlm.cli.processes import Ended, start
from scratchlm.distributed.process import ProcessError

pytestmark = pytest.mark.distributed

PROGRAM = """#!{python} -S
import json, os, signal, sys, time
from pathlib import Path
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
here = Path({here!r})

def tell(code, kind, text):
    message = {{"message": {{"message": text, "kind": kind}}}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(message))
    sys.exit(code)

def stop(number, frame):
    with (here / f"heard-{{rank}}").open("a") as stream:
        stream.write(f"{{number}}\\n")
    if not (here / "deaf").exists():
        tell(128 + number, "Interrupted", "stopped after step 3; go on with: me")

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(here / f"started-{{rank}}-{{attempt}}").write_text(" ".join(sys.argv[3:]))
{body}
"""
WAIT = "time.sleep(60)"


def settings(nproc, rows, *, device="cpu", **more):
    """What `start` asks of a run's settings."""
    ddp = SimpleNamespace(name="ddp", settings={})
    train = SimpleNamespace(device=device)
    return SimpleNamespace(
        **{"nproc": nproc, "rows_per_step": rows, "train": train, "distributed": ddp} | more
    )


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Make every process run a body of code instead; return how to start two of them."""

    def begin(body, *, restarts=1):
        path = tmp_path / "program"
        path.write_text(PROGRAM.format(python=sys.executable, here=str(tmp_path), body=body))
        path.chmod(0o755)
        monkeypatch.setattr(processes.sys, "executable", str(path))
        again = "scratchlm train quick --resume"
        start(["train", "quick"], settings(2, 4, restarts=restarts), tmp_path, again=lambda: again)

    begin.here = tmp_path
    return begin


def when_started(here, act, attempt=0):
    """Do something once both processes run."""

    def wait():
        deadline = time.monotonic() + 20
        names = [here / f"started-{rank}-{attempt}" for rank in (0, 1)]
        while not all(name.exists() for name in names) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def heard(here):
    return [(here / f"heard-{rank}").read_text().split() for rank in (0, 1)]


def test_all_get_the_words_and_the_launcher_is_silent_when_all_are_done(program, capfd):
    # a session of its own: Ctrl-C in the terminal reaches the launcher, and the process through it alone
    program("assert os.getsid(0) == os.getpid()\nprint('view of', rank)")
    assert (program.here / "started-1-0").read_text() == "train quick"
    assert capfd.readouterr() == ("view of 0\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once_and_one_message_is_told(program, number):
    thread = when_started(program.here, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=r"^stopped after step 3; go on with: me$") as caught:
        program(WAIT)
    thread.join()
    assert caught.value.code == 128 + number
    assert heard(program.here) == [[str(int(number))]] * 2


def test_a_second_ctrl_c_ends_all_at_once(program):
    (program.here / "deaf").touch()

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread, started = when_started(program.here, twice), time.monotonic()
    with pytest.raises(Interrupted, match="stopped at once; go on with: scratchlm train quick --resume"):
        program(WAIT + "\n" + WAIT)
    thread.join()
    assert time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def test_a_lost_process_ends_the_others_and_all_start_again(program, capfd, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    program(f"if attempt == 0:\n    rank == 1 and os.kill(os.getpid(), signal.SIGKILL)\n    {WAIT}")
    assert (program.here / "started-0-1").exists()
    assert capfd.readouterr().err == (
        "process 1 was killed by SIGKILL; all start again from step 1 (1 of 1).\n"
    )


def test_where_there_is_a_checkpoint_all_start_again_from_it(program, capfd, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    (program.here / "checkpoints" / "step-0000005").mkdir(parents=True)
    program(f"if attempt == 0:\n    rank == 1 and os.kill(os.getpid(), signal.SIGKILL)\n    {WAIT}")
    assert "all start again from the last checkpoint (1 of 1)" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_a_launcher_that_hangs_without_processes_is_ended_and_one_with_some_is_not(monkeypatch, busy):
    body = "import subprocess, time\n" + ("subprocess.Popen(['sleep', '9'])\n" if busy else "")
    launcher = subprocess.Popen([sys.executable, "-S", "-c", body + "time.sleep(9)"], start_new_session=True)
    try:
        monkeypatch.setattr(processes, "GRACE_SECONDS", 0.4)
        monkeypatch.setattr(processes.os, "getppid", lambda: launcher.pid)
        processes.end_launcher_later(0.4)
        if busy:
            with pytest.raises(subprocess.TimeoutExpired):
                launcher.wait(2)
        else:
            assert launcher.wait(9) == -signal.SIGKILL
    finally:
        os.killpg(launcher.pid, signal.SIGKILL) if launcher.poll() is None else None


def test_a_process_that_is_lost_again_and_again_is_an_error(program, capfd, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    with pytest.raises(
        ProcessError, match=r"^process 1 ended with code 7 \(no memory\); go on .* scratchlm train quick"
    ):
        program(f"rank == 1 and (print('no memory', file=sys.stderr), sys.exit(7))\n{WAIT}", restarts=1)
    assert (program.here / "started-0-1").exists()
    assert not (program.here / "started-0-2").exists()
    assert capfd.readouterr().err.count("\n") == 1


def test_an_error_is_told_once_and_nobody_starts_again(program, capfd):
    with pytest.raises(ValueError, match=r"^no such corpus$"):
        program("""if rank == 1: tell(2, "ValueError", "no such corpus")
time.sleep(0.3)
tell(2, "ProcessError", "process 0 of 2 failed at agreeing (process 1 failed: no such corpus)")""")
    assert not (program.here / "started-0-1").exists()
    assert capfd.readouterr() == ("", "")


def test_a_process_that_another_one_waits_for_in_vain_counts_as_lost(program, capfd):
    program("""if attempt == 0:
    text = "of 2 failed at agreeing after 1 s: gone. Waiting is limited to 1 s."
    tell(2, "ProcessError", f"process {rank} {text}")
""")
    assert "of 2 failed at agreeing after 1 s: gone; all start again" in capfd.readouterr().err


def test_what_one_process_was_told_stops_all(program, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    with pytest.raises(Interrupted, match=r"stopped after step 3") as caught:
        program(f"rank == 1 and os.kill(os.getpid(), signal.SIGTERM)\n{WAIT}")
    assert caught.value.code == 143
    assert not (program.here / "started-0-1").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nproc": 4, "rows": 6}, "6 rows cannot be shared evenly by 4 processes; .* one of 1, 2, 3, 6 proc"),
        ({"nproc": 8, "rows": 4}, "4 rows cannot be shared evenly by 8 processes; .* one of 1, 2, 4 proc"),
    ],
)
def test_rows_that_cannot_be_shared_are_refused_before_anything_is_started(config, message):
    with pytest.raises(ValueError, match=message):
        start(["train"], settings(config["nproc"], config["rows"]), Path("never"), again=lambda: "me")


def test_groups_of_shards_that_cannot_be_are_refused_before_anything_is_started():
    fsdp2 = SimpleNamespace(name="fsdp2", settings={"shard_processes": 3})
    with pytest.raises(ValueError, match=r"distributed.shard_processes=3: 4 .* choose from 2, 4, or"):
        start(["train"], settings(4, 8, distributed=fsdp2), Path("never"), again=lambda: "me")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    import torch

    from scratchlm import runtime

    monkeypatch.setattr(runtime, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"each of 2 processes takes a GPU .* machine has 1;"):
        start(["train"], settings(2, 4, device="auto"), Path("never"), again=lambda: "me")


def test_a_crash_is_told_with_the_last_words(tmp_path):
    (tmp_path / "1.err").write_text("noise\nterminate called\n\n", encoding="utf-8")
    ended = processes._read(1, -signal.SIGABRT, tmp_path)
    assert ended == Ended(1, -6, "", "terminate called", 0)
    assert processes._who_is_lost([ended]) == "process 1 was killed by SIGABRT (terminate called)"


def test_a_process_that_breaks_while_it_leaves_after_an_interruption_was_stopped_all_the_same():
    ended = [
        Ended(0, 143, "Interrupted", "stopped after step 10", 1),
        Ended(1, -6, "Interrupted", "stopped", 2),
    ]
    assert processes._who_is_lost(ended) == ""
    with pytest.raises(Interrupted, match="stopped after step 10") as caught:
        processes._conclude(ended, [], "me", at_once=False)
    assert caught.value.code == 143


ABORTS_AT_EXIT = """
import atexit, os, torch
from scratchlm import cli
atexit.register(os.abort)
cli.main = lambda: 143
cli.command()
"""


def test_a_process_of_several_leaves_without_taking_its_interpreter_down():
    shared = subprocess.run([sys.executable, "-c", ABORTS_AT_EXIT], env=os.environ | {"WORLD_SIZE": "2"})
    assert shared.returncode == 143
    alone = subprocess.run([sys.executable, "-c", ABORTS_AT_EXIT])
    assert alone.returncode == -signal.SIGABRT


def test_an_error_file_is_what_torchrun_reads_and_is_told_there_only(tmp_path, monkeypatch, capfd):
    from scratchlm.cli.errors import report

    told = tmp_path / "error.json"
    monkeypatch.setenv(processes.ERROR_FILE, str(told))
    assert report(ProcessError("process 1 is gone"), debug=False) == 2
    message = json.loads(told.read_text(encoding="utf-8"))["message"]
    assert (message["kind"], message["message"]) == ("ProcessError", "process 1 is gone.")
    assert int(message["extraInfo"]["timestamp"]) > 0
    assert capfd.readouterr().err == "error: process 1 is gone.\n"
    monkeypatch.setenv(processes.LAUNCHER, "1")
    assert report(ProcessError("process 1 is gone"), debug=False) == 2
    assert report(Interrupted("stopped", by="SIGTERM"), debug=False) == 143
    assert capfd.readouterr().err == ""
