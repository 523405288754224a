"""The meeting place: threads stand for processes; who is missing is named, and who failed is heard."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from together import TORCHRUN, free_port
from torch.distributed import TCPStore

from scratchlm.distributed import meeting
from scratchlm.distributed.meeting import FailedError, Meeting, MissingError, connect
from scratchlm.distributed.store import StoreError

pytestmark = pytest.mark.distributed


@pytest.fixture
def store(monkeypatch):
    """A store that outlives all who meet there, as a launcher keeps it."""
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    point(monkeypatch, kept.port)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return kept


def point(monkeypatch, port):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))


def meet(world_size, *ranks, seconds=10):
    """What each got: a Meeting, or the error."""
    found = {}

    def come(rank):
        try:
            found[rank] = Meeting(rank, world_size, timeout_seconds=seconds)
        except (MissingError, FailedError) as error:
            found[rank] = error

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in ranks]


def test_all_meet_in_one_room_and_hear_each_other(store):
    first, second, third = meet(3, 0, 1, 2)
    third.say("word", "hello")
    assert [one.hear("word", 2) for one in (first, second, third)] == ["hello"] * 3
    assert second.silent("word", seconds=0.1) == [0]


def test_those_who_start_again_do_not_hear_what_was_said_before(store):
    for one in meet(2, 0, 1):
        one.say("turn/1", "done")
        one.fail("lost")
    first, second = meet(2, 0, 1)
    assert second.failure() == ""
    with pytest.raises(MissingError):
        second.hear("turn/1", seconds=0.1)
    first.say("turn/1", "done")
    assert second.hear("turn/1") == "done"


@pytest.mark.parametrize(("ranks", "missing"), [((0, 1), "2, 3"), ((1, 2), "0")])
def test_who_does_not_come_is_named(store, ranks, missing):
    started = time.monotonic()
    errors = meet(4, *ranks, seconds=0.5)
    assert time.monotonic() - started < 10
    assert [str(error) for error in errors] == [
        f"no answer from process{'es' if ',' in missing else ''} {missing}"
    ] * 2


def test_who_waits_for_a_failed_process_stops_and_says_why_it_failed(store):
    first, second = meet(2, 0, 1)
    second.fail("no such corpus")
    first.fail("process 1 is gone")
    with pytest.raises(FailedError, match=r"^process 1 failed: no such corpus$"):
        first.hear("choice", 1, seconds=60)


def test_a_port_that_another_program_has_is_named_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        point(monkeypatch, port)
        with pytest.raises(ValueError, match=rf"MASTER_PORT={port}: another program .* already in use"):
            connect(0, 30)


def test_another_program_at_the_port_of_process_0_keeps_nobody_waiting(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        point(monkeypatch, listener.getsockname()[1])
        with pytest.raises(MissingError, match=r"process 0 at 127.0.0.1:\d+ \(whoever listens there is none"):
            connect(1, 0.5)


def test_nobody_at_the_port_is_process_0_that_is_missing(monkeypatch):
    port = free_port()
    point(monkeypatch, port)
    with pytest.raises(MissingError, match=rf"no answer from process 0 at 127.0.0.1:{port} \("):
        connect(1, 1)


KEEPING = """
import time
from torch.distributed import TCPStore
kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(kept.port, flush=True)
time.sleep(300)
"""


def test_a_store_that_says_nothing_any_more_keeps_nobody_waiting(monkeypatch):
    keeper = subprocess.Popen([sys.executable, "-c", KEEPING], stdout=subprocess.PIPE, text=True)
    try:
        point(monkeypatch, int(keeper.stdout.readline()))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        first, second = meet(2, 0, 1)
        first.store.seconds = second.store.seconds = 1.0  # instead of STORE_SECONDS: all have come
        keeper.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(StoreError, match="no answer from the common store within 1 s"):
            first.hear("choice", 1, seconds=float("inf"))
        assert 1 <= time.monotonic() - started < 10
        ways = [first.failure, lambda: first.say("word", "hello"), lambda: first.fail("lost")]
        ways += [lambda: first.silent("word", seconds=60), lambda: first.hear("choice", 1)]
        started = time.monotonic()
        for call in ways:
            with pytest.raises(StoreError):
                call()
        assert time.monotonic() - started < 1, "waited again for who said nothing before"
        with pytest.raises(StoreError):  # of its own connection, whichever call it makes first
            second.say("word", "hello") or second.failure()
    finally:
        keeper.kill()
        keeper.wait()


def test_the_limit_of_the_store_follows_the_usual_one(store):
    (one,) = meet(1, 0, seconds=600)
    assert one.store.seconds == meeting.STORE_SECONDS[1]
    (one,) = meet(1, 0, seconds=0.5)
    assert one.store.seconds == meeting.STORE_SECONDS[0]
