"""What the server refuses and survives: strangers, floods, slow clients, garbage."""

import base64
import contextlib
import json
import random
import socket

import pytest
from live_server import ENDLESS, SECONDS, live, until


@pytest.fixture(scope="module")
def strict():
    """A server with a key and little room."""
    settings = {"api_key": "secret", "slots": 1, "max_waiting": 1, "max_body_bytes": 2000}
    with live(**settings, allowed_hosts=("model.example",)) as made:
        yield made


@pytest.fixture(scope="module")
def impatient():
    """A server that does not wait for slow clients."""
    with live(client_seconds=1.0, head_seconds=2.0) as made:
        yield made


KEY = {"Authorization": "Bearer secret"}


def read_all(connection):
    """Everything until the server closes the connection."""
    found = b""
    with connection:
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                found += data
    return found


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "a@localhost:1"]
)
def test_other_names_for_this_machine_are_refused(server, host):
    answer = server.get("/v1/models", Host=host)
    assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000"])
def test_names_of_this_machine_are_taken(server, host):
    assert server.get("/health", Host=host).status == 200


def test_an_allowed_name_is_taken(strict):
    assert strict.get("/health", Host="model.example", **KEY).status == 200


FOREIGN = ["http://evil.example", "null", "file://", "https://localhost.evil.example", "http://127.0.0.1:1"]


@pytest.mark.parametrize("origin", [*FOREIGN, "", "//[", "http://[::1"])
def test_pages_of_other_sites_may_not_ask(server, origin):
    answer = server.post("/v1/completions", {"prompt": "x"}, Origin=origin)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_may_ask(server):
    assert server.complete().status == 200
    body = {"prompt": "x", "max_tokens": 1}
    assert server.post("/v1/completions", body, Origin=server.url).status == 200


def test_a_simple_form_of_another_site_cannot_ask(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert server.post("/v1/completions", b'{"prompt":"x"}', Content_Type=kind).status == 415
    assert server.ask("OPTIONS", "/v1/completions").status == 405


PATHS = ["/", "/health", "/metrics", "/v1/models", "/v1/models/x", "/tokenizer_info", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_needs_the_key(strict, path):
    answer = strict.get(path)
    assert (answer.status, answer.error["type"]) == (401, "authentication_error")
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert strict.get(path, **KEY).status in (200, 404)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_every_route_that_takes_a_body_needs_the_key(strict, path):
    assert strict.post(path, {"prompt": "x"}).status == 401


@pytest.mark.parametrize(
    "given",
    ["Bearer wrong", "Bearer", "Bearer secret2", "secret", "Basic !!!", "Basic c2VjcmV0", "Bearer s\xe9"],
)
def test_a_wrong_key_is_refused(strict, given):
    assert strict.get("/health", Authorization=given).status == 401


def test_a_browser_gives_the_key_as_a_password(strict):
    given = base64.b64encode(b"anybody:secret").decode()
    answer = strict.get("/", Authorization=f"Basic {given}")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_bodies_that_are_too_long_are_refused_early(strict):
    body = json.dumps({"prompt": "x" * 3000}).encode()
    assert strict.post("/tokenize", body, **KEY).status == 413
    # announced, never sent
    made = socket.create_connection(("127.0.0.1", strict.port), timeout=SECONDS)
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    head += "Content-Type: application/json\r\n"
    made.sendall((head + "Content-Length: 99999999999999999999\r\n\r\n").encode())
    assert b" 413 " in read_all(made).splitlines()[0]
    # not announced
    made = socket.create_connection(("127.0.0.1", strict.port), timeout=SECONDS)
    made.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
    with contextlib.suppress(ConnectionError):
        for _ in range(5):
            made.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    assert b" 413 " in read_all(made).splitlines()[0]


def test_a_slow_body_is_given_up(impatient):
    made = socket.create_connection(("127.0.0.1", impatient.port), timeout=SECONDS)
    head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    made.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
    assert b" 408 " in read_all(made).splitlines()[0]


def test_a_connection_without_a_request_is_closed(impatient):
    opened = [socket.create_connection(("127.0.0.1", impatient.port), timeout=SECONDS) for _ in range(3)]
    opened[1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
    opened[2].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
    assert [read_all(made)[:15] for made in opened] == [b"", b"", b"HTTP/1.1 200 OK"]


def test_a_client_that_does_not_read_loses_its_slot(impatient):
    # every token brings much text, so that what lies between us and the server is soon full
    body = {"prompt": "x", "stream": True, "logprobs": 20, "return_token_ids": True, **ENDLESS}
    with impatient.open("/v1/completions", body) as made:
        assert made.recv(12) == b"HTTP/1.1 200"
        impatient.idle()
    assert impatient.complete(max_tokens=1).status == 200


def test_a_full_queue_answers_429_and_takes_the_next_one_when_it_is_free(strict):
    body = {"prompt": "x", "stream": True, **ENDLESS}
    with strict.open("/v1/completions", body, **KEY), strict.open("/v1/completions", body, **KEY):
        until(lambda: strict.worker.in_flight["tiny"] == 2)
        for stream in (False, True):
            answer = strict.post("/v1/completions", {"prompt": "x", "stream": stream}, **KEY)
            assert (answer.status, answer.error["code"]) == (429, "queue_full")
            assert answer.error["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
        assert strict.get("/health", **KEY).status == 200
    strict.idle()
    assert strict.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, **KEY).status == 200


def test_who_waits_too_long_for_a_first_token_is_told():
    with live(slots=1, max_waiting=4) as server:
        with server.open("/v1/completions", {"prompt": "x", "stream": True, **ENDLESS}) as first:
            assert first.recv(12) == b"HTTP/1.1 200"
            server.worker.config = server.worker.config.model_copy(update={"queue_seconds": 0.2})
            for stream in (False, True):
                answer = server.complete(stream=stream)
                assert (answer.status, answer.error["code"]) == (503, "timeout")
        server.idle()


def test_an_answer_that_takes_too_long_is_ended():
    with live(answer_seconds=0.5) as server:
        assert server.complete(**ENDLESS).error["code"] == "timeout"
        events = server.complete(**ENDLESS, stream=True).events
        assert events[0]["choices"]
        assert events[-1]["error"]["code"] == "timeout"
        server.idle()


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    1e308,
    "",
    "x",
    "\u0000",
    "\U0001f600",
    [],
    [[]],
    {},
    [None],
    {"a": {}},
    "x" * 300,
]


def garbage(random_numbers):
    """A body that is nearly right, or bytes that are nearly JSON."""
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    body = {name: value for name, value in body.items() if random_numbers.random() < 0.8}
    fields = ["model", "prompt", "messages", "n", "stop", "logit_bias", "stream", "stream_options", "seed"]
    fields += ["tokens", "temperature", "logprobs", "echo", "full", "\u00e9", "top_k", "max_tokens"]
    for _ in range(random_numbers.randrange(4)):
        body[random_numbers.choice(fields)] = random_numbers.choice(VALUES)
    data = bytearray(json.dumps(body).encode())
    for _ in range(random_numbers.choice([0, 0, 1, 3])):
        data[random_numbers.randrange(len(data))] = random_numbers.randrange(256)
    return bytes(data)


def test_garbage_is_answered_and_the_server_goes_on(server):
    random_numbers = random.Random(0)
    paths = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
    statuses = set()
    for _ in range(150):
        answer = server.post(random_numbers.choice(paths), garbage(random_numbers))
        statuses.add(answer.status)
        if answer.status != 200:
            assert answer.error["message"]
    assert statuses <= {200, 400, 404}
    assert {200, 400} <= statuses
    for data in (
        b"\x16\x03\x01\x02\x00",
        b"GET /\r\n\r\n",
        b"\x00" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        made = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        with contextlib.suppress(ConnectionError):
            made.sendall(data)
            made.shutdown(socket.SHUT_WR)
        read_all(made)
    server.idle()
    assert server.complete(max_tokens=1).status == 200


def test_counted_paths_are_known_ones(server):
    server.get("/some/unknown/path")
    text = server.get("/metrics").data.decode()
    assert 'route="other",status="404"' in text
    assert "unknown" not in text
