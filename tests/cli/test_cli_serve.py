"""`scratchlm serve`: what is wrong is said before anything is read; a signal ends it in order."""

import builtins
import http.client
import json
import re
import signal
import socket
import subprocess
import sys

import pytest

from scratchlm.cli.serve import _is_loopback

SECONDS = 120


@pytest.fixture
def run(tmp_path):
    """A folder that is a run as far as its settings are looked at."""
    from scratchlm.cli.run import read_recipe

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(read_recipe("demo", None).to_json(), encoding="utf-8")
    return folder


def test_what_is_no_run_is_said_at_once(cli, tmp_path):
    assert "no run folder" in cli("serve", tmp_path).error
    assert "no run folder" in cli("serve", tmp_path / "nothing").error


def test_a_port_that_is_taken_is_named(cli, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = cli("serve", run, "--port", port).error
    assert f"127.0.0.1:{port}" in error
    assert "address already in use" in error


def test_a_run_without_checkpoints_ends_the_server(cli, run):
    result = cli("serve", run, "--port", 0)
    assert result.code == 2
    assert "error: " in result.err
    assert "Traceback" not in result.err


def test_a_missing_extra_is_named(cli, run, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(("scratchlm.serve", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'scratchlm[serve]'" in cli("serve", run).error


def test_a_key_of_odd_characters_is_refused(cli, run):
    assert "api_key" in cli("serve", run, "--api-key", "two words").error


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_it_is_known_which_addresses_only_this_machine_reaches(host, expected):
    assert _is_loopback(host) is expected


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, body=data, headers={"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_two_runs_are_served_until_a_signal(finished_run, sent, code):
    words = [sys.executable, "-m", "scratchlm", "serve", finished_run, finished_run, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = []
            while not any(line.startswith("Ctrl-C") for line in lines):
                lines.append(server.stdout.readline())
                assert lines[-1], server.stderr.read()
            port = int(re.search(r"http://127.0.0.1:(\d+)\n", "".join(lines))[1])
            names = [model["id"] for model in ask(port, "GET", "/v1/models")[1]["data"]]
            assert names == ["small", "small-2"]
            for name in names:
                body = {"model": name, "prompt": "Once", "max_tokens": 4, "temperature": 0}
                status, answer = ask(port, "POST", "/v1/completions", body)
                assert status == 200
                assert answer["usage"]["completion_tokens"] <= 4
            server.send_signal(sent)
            assert server.wait(SECONDS) == code
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()
