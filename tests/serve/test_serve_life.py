"""From start to end: loading, clients that leave, draining, and a model that breaks."""

import threading

import pytest
from live_server import ENDLESS, SECONDS, live, served, tiny_model, until

from scratchlm.serve.worker import Worker


def test_clients_that_leave_free_their_slots_a_hundred_times(server):
    cancelled = server.metric("scratchlm_requests_total", route="/v1/completions", status="499")
    for number in range(100):
        body = {"prompt": "x", "seed": number, "stream": number % 2 == 0, **ENDLESS}
        with server.open("/v1/completions", body) as connection:
            if body["stream"]:
                found = b""
                while found.count(b"data: ") < 2:
                    found += connection.recv(4096)
            else:
                until(lambda: server.worker.in_flight["tiny"] > 0)
    server.idle()
    left = {"route": "/v1/completions", "status": "499"}  # streams had their 200
    until(lambda: server.metric("scratchlm_requests_total", **left) == cancelled + 50)
    assert server.metric("scratchlm_running", model="tiny") == 0
    assert server.metric("scratchlm_in_flight", model="tiny") == 0
    assert not server.worker._owners
    # as much room as before: twelve at once, not one more
    assert server.complete(prompt=["x"] * 4, n=3, max_tokens=2).status == 200


def test_while_models_are_read_the_server_says_so():
    go = threading.Event()

    def load():
        assert go.wait(SECONDS)
        return [served()]

    with live(load, ready=False) as server:
        try:
            for answer in (server.get("/health"), server.get("/v1/models"), server.complete()):
                assert (answer.status, answer.error["code"]) == (503, "loading")
                assert "retry-after" in answer.headers
            assert server.get("/").status == 200
            assert server.metric("scratchlm_state", state="loading") == 1
        finally:
            go.set()
        assert server.worker.wait(SECONDS) == "ready"
        assert server.get("/health").json == {"status": "ok"}


def test_a_server_that_is_going_finishes_what_it_has_begun_and_takes_no_more():
    with live() as server:
        body = {"prompt": "x", "max_tokens": 400, "full": "slide", "stream": True, "logit_bias": {"0": -100}}
        with server.open("/v1/completions", body) as connection:
            found = connection.recv(4096)
            server.worker.drain()
            for answer in (server.get("/health"), server.complete()):
                assert (answer.status, answer.error["code"]) == (503, "draining")
            server.server.should_exit = True
            while data := connection.recv(1 << 16):
                found += data
    assert b'"finish_reason":"length"' in found
    assert b"data: [DONE]" in found
    assert server.worker.state == "stopped"


def test_what_is_under_way_at_the_end_of_patience_is_told_or_cut():
    with live(drain_seconds=1) as server:
        with server.open("/v1/completions", {"prompt": "x", "stream": True, **ENDLESS}) as connection:
            assert connection.recv(12) == b"HTTP/1.1 200"
            server.server.should_exit = True
            while connection.recv(1 << 16):
                pass


class BreaksError(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_breaks_leaves_no_client_waiting():
    model = served(slots=2)
    go = threading.Event()
    step = model.engine.step

    def breaks():
        if go.is_set():
            raise BreaksError
        return step()

    model.engine.step = breaks
    with live(lambda: [model], slots=2) as server:
        with server.open("/v1/completions", {"prompt": "x", "stream": True, **ENDLESS}) as connection:
            found = connection.recv(4096)
            go.set()
            while data := connection.recv(1 << 16):
                found += data
        assert b'"code":"stopped"' in found
        assert b"data: [DONE]" in found
        until(lambda: server.server.broken)


def test_logits_that_are_no_numbers_are_an_error_of_one_request():
    model = tiny_model()
    model.lm_head.weight.data[5] = float("nan")
    with live(lambda: [served(model=model)]) as server:
        answer = server.complete()
        assert (answer.status, answer.error["code"]) == (500, "generation_error")
        assert "error" in server.complete(stream=True).json
        assert server.complete(max_tokens=0, echo=True, logprobs=1).status == 500
        assert server.get("/health").status == 200


def test_why_models_cannot_be_read_is_kept():
    def load():
        raise ValueError("no run folder")

    with live(load, ready=False) as server:
        until(lambda: server.worker.state == "stopped")
        until(lambda: server.server.broken)
    assert str(server.worker.failure) == "no run folder"


def test_a_worker_that_never_started_stops():
    from scratchlm.serve.limits import ServeConfig

    assert Worker(lambda: [], ServeConfig()).stop(1)
