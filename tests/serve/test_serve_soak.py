"""Many clients of every kind for a while: nothing is left behind, and memory stays where it was."""

import random
import threading
import time

import psutil
import pytest
from live_server import ENDLESS, live


@pytest.mark.slow
def test_memory_and_room_stay_as_they_were():
    random_numbers = random.Random(0)
    jobs = [random_numbers.random() for _ in range(3000)]
    failures = []

    def client(server, mine):
        for number, choice in enumerate(mine):
            if choice < 0.3:
                body = {"prompt": "x" * 40, "stream": True, "logprobs": 5, **ENDLESS}
                with server.open("/v1/completions", body) as connection:
                    connection.recv(100 if choice < 0.15 else 20_000)
                continue
            if choice < 0.5:
                answer = server.chat("x" * int(100 * choice), max_tokens=4)
            else:
                answer = server.complete(prompt=["Once", "Twice"], max_tokens=8, seed=number, logprobs=3)
            if answer.status not in (200, 400, 429):
                failures.append(answer)

    def round_of(server, some):
        threads = [threading.Thread(target=client, args=(server, some[i::8])) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.idle()
        time.sleep(0.1)
        return psutil.Process().memory_info().rss, len(threading.enumerate())

    with live(slots=4, max_waiting=4) as server:
        round_of(server, jobs[:1000])  # buffers grow to what they need
        before, threads_before = round_of(server, jobs[:1000])
        after, threads_after = round_of(server, jobs[1000:])
        assert not failures
        assert not server.worker._owners
        assert threads_after == threads_before
        # 2000 requests that kept 10 kB each would be 20 MB
        assert after - before < 10e6
        assert server.complete(prompt=["x"] * 4, n=2, max_tokens=2).status == 200
