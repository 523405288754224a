"""One process per run folder, and no lock outlives its process."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from scratchlm import lock
from scratchlm.lock import lock_holder, run_lock

HOLD = """
import sys, time
from pathlib import Path
from scratchlm.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_trains_there(tmp_path, holder):
    message = (
        rf"run: process {holder.pid} on {re.escape(socket.gethostname())} has been training here since 20.*"
    )
    message += rf"wait for it, stop it \(kill {holder.pid}\), or choose another folder"
    with pytest.raises(ValueError, match=message):
        with run_lock(tmp_path / "run"):
            pytest.fail("two processes hold the lock")
    assert lock_holder(tmp_path / "run").pid == holder.pid


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock_holder(tmp_path / "run") is None
    with run_lock(tmp_path / "run"):
        assert lock_holder(tmp_path / "run").pid == os.getpid()


def test_the_lock_ends_with_its_block_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with run_lock(tmp_path):
            raise ZeroDivisionError
    assert lock_holder(tmp_path) is None
    with run_lock(tmp_path):
        pass


def test_one_process_cannot_take_it_twice(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
            with run_lock(tmp_path):
                pytest.fail("taken twice")
        assert lock_holder(tmp_path).pid == os.getpid(), "being refused must not erase the holder's name"


def test_two_folders_do_not_exclude_each_other(tmp_path):
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "b"):
        pass


def test_asking_who_holds_it_makes_nothing(tmp_path):
    assert lock_holder(tmp_path / "missing") is None
    assert lock_holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_asking_at_the_same_moment_does_not_refuse_a_run(tmp_path, monkeypatch):
    """`lock_holder` takes a shared lock for a moment; a run that starts then tries again."""
    with run_lock(tmp_path):
        pass
    descriptor = os.open(tmp_path / lock.LOCK_FILE, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: fcntl.flock(descriptor, fcntl.LOCK_UN))
    with run_lock(tmp_path):
        os.close(descriptor)


def test_a_program_started_by_the_run_does_not_inherit_the_lock(tmp_path):
    code = "import time; print('up', flush=True); time.sleep(60)"
    with run_lock(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE, text=True
        )
    try:
        assert child.stdout.readline() == "up\n"  # until its program runs it has all that its parent has
        assert lock_holder(tmp_path) is None
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_file_system_without_locks_is_named_in_a_warning(tmp_path, monkeypatch, caplog):
    def refuses(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with run_lock(tmp_path):
        pass
    assert "no locks here (No locks available); do not work in this folder twice" in caplog.text
