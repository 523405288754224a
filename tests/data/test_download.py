"""Against a server on this machine that behaves as badly as it is told."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scratchlm.data.download import DownloadError, download

CONTENT = bytes(number * 7 % 251 for number in range(1_000_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"wait_seconds": 0.001, "timeout_seconds": 5.0}


class Server(ThreadingHTTPServer):
    """What it serves and how it misbehaves; `requests` records the Range and If-Range headers that came."""

    daemon_threads = True
    content = CONTENT
    etag: str | None = '"v1"'
    break_after: int | None = None  # bytes of each answer
    claimed_length: int | None = None
    knows_ranges = True
    states: tuple[int, ...] = ()  # HTTP states of the first answers
    location: str | None = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}/data.txt"

    def handle_error(self, request, client_address):
        """Broken connections are the point."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.headers.get("Range"), self.headers.get("If-Range")))
        if server.states:
            state, server.states = server.states[0], server.states[1:]
            self.send_response(state)
            if server.location:
                self.send_header("Location", server.location)
            self.end_headers()
            return
        first, asked = 0, self.headers.get("Range")
        if asked and server.knows_ranges and self.headers.get("If-Range", server.etag) == server.etag:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
        if first and first >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        if first:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.content)}")
        self.send_header("Content-Length", str(server.claimed_length or len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.break_after])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_with_progress(server, tmp_path):
    calls = []
    path = download(
        server.url,
        tmp_path / "new" / "data.txt",
        size=len(CONTENT),
        sha256=SHA256,
        progress=lambda *done: calls.append(done),
        **QUICK,
    )
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path / "new") == ["data.txt"]
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert len(calls) > 2


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path):
    for _ in range(2):
        download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert len(server.requests) == 1


def test_a_damaged_file_under_the_final_name_is_replaced(server, tmp_path):
    (tmp_path / "data.txt").write_bytes(CONTENT[:-1] + b"x")
    download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert (tmp_path / "data.txt").read_bytes() == CONTENT


def test_a_connection_that_breaks_off_again_and_again_is_resumed(server, tmp_path):
    server.break_after = 300_000
    download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert (tmp_path / "data.txt").read_bytes() == CONTENT
    assert server.requests == [
        (None, None),
        ("bytes=300000-", '"v1"'),
        ("bytes=600000-", '"v1"'),
        ("bytes=900000-", '"v1"'),
    ]
    assert names_in(tmp_path) == ["data.txt"]


def test_a_later_call_goes_on_with_what_an_earlier_one_kept(server, tmp_path):
    server.break_after = 0
    (tmp_path / "data.txt.part").write_bytes(CONTENT[:400_000])
    (tmp_path / "data.txt.part.json").write_text(
        f'{{"url": "{server.url}", "etag": "\\"v1\\""}}', encoding="utf-8"
    )
    with pytest.raises(
        DownloadError, match=r"ended after 400000 of 1000000 bytes. What came is kept; try again"
    ):
        download(server.url, tmp_path / "data.txt", **QUICK)
    assert names_in(tmp_path) == ["data.txt.part", "data.txt.part.json"]
    server.break_after = None
    download(server.url, tmp_path / "data.txt", **QUICK)
    assert (tmp_path / "data.txt").read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=400000-", '"v1"')


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server, tmp_path):
    (tmp_path / "data.txt.part").write_bytes(b"old" * 1_000)
    (tmp_path / "data.txt.part.json").write_text(
        f'{{"url": "{server.url}", "etag": "\\"v0\\""}}', encoding="utf-8"
    )
    download(server.url, tmp_path / "data.txt", **QUICK)
    assert server.requests == [("bytes=3000-", '"v0"')]
    assert (tmp_path / "data.txt").read_bytes() == CONTENT


def test_a_part_without_an_etag_is_not_trusted_without_a_checksum(server, tmp_path):
    server.etag = None
    (tmp_path / "data.txt.part").write_bytes(b"old" * 1_000)
    (tmp_path / "data.txt.part.json").write_text(f'{{"url": "{server.url}", "etag": null}}', encoding="utf-8")
    download(server.url, tmp_path / "data.txt", **QUICK)
    assert server.requests == [(None, None)]
    assert (tmp_path / "data.txt").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / "data.txt.part").write_bytes(CONTENT[:400_000])
    (tmp_path / "data.txt.part.json").write_text(
        f'{{"url": "{server.url}", "etag": "\\"v1\\""}}', encoding="utf-8"
    )
    download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert (tmp_path / "data.txt").read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_breaks_off_ends_in_an_error(server, tmp_path):
    server.knows_ranges, server.break_after = False, 300_000
    with pytest.raises(DownloadError, match="the connection ended after 300000 of 1000000 bytes"):
        download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert not (tmp_path / "data.txt").exists()
    assert len(server.requests) == 5


def test_a_server_that_promises_more_than_it_has_is_found_out(server, tmp_path):
    server.claimed_length = len(CONTENT) + 10
    with pytest.raises(DownloadError, match=r"the server has 1000010 bytes where 1000000 are expected"):
        download(server.url, tmp_path / "data.txt", size=len(CONTENT), **QUICK)
    assert names_in(tmp_path) == []


def test_a_server_that_sends_less_than_the_file_is_found_out_by_the_length(server, tmp_path):
    server.content = CONTENT[:-5]
    with pytest.raises(DownloadError, match=r"the server has 999995 bytes where 1000000 are expected"):
        download(server.url, tmp_path / "data.txt", size=len(CONTENT), **QUICK)
    assert names_in(tmp_path) == []


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(
        DownloadError, match=rf"its sha256 is [0-9a-f]{{64}}, not {SHA256}. What came was removed"
    ):
        download(server.url, tmp_path / "data.txt", size=len(CONTENT), sha256=SHA256, **QUICK)
    assert names_in(tmp_path) == []


def test_a_stale_part_is_caught_by_the_checksum(server, tmp_path):
    server.etag = None
    (tmp_path / "data.txt.part").write_bytes(b"x" * 500_000)
    (tmp_path / "data.txt.part.json").write_text(f'{{"url": "{server.url}", "etag": null}}', encoding="utf-8")
    with pytest.raises(DownloadError, match="its sha256 is"):
        download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert names_in(tmp_path) == []
    download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.states = (503, 429)
    download(server.url, tmp_path / "data.txt", sha256=SHA256, **QUICK)
    assert len(server.requests) == 3


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    server.states = (404,)
    with pytest.raises(DownloadError, match=r"data.txt: HTTP 404 Not Found"):
        download(server.url, tmp_path / "data.txt", **QUICK)
    assert len(server.requests) == 1
    assert names_in(tmp_path) == []


def test_a_redirection_to_another_kind_of_address_is_refused(server, tmp_path):
    server.states, server.location = (302,), "ftp://127.0.0.1/data.txt"
    with pytest.raises(
        DownloadError, match=r"leads to ftp://127.0.0.1/data.txt, which is not https; refused"
    ):
        download(server.url, tmp_path / "data.txt", **QUICK)


def test_a_file_address_is_refused(tmp_path):
    with pytest.raises(DownloadError, match="not an http or https address"):
        download("file:///etc/hostname", tmp_path / "data.txt")


def test_no_server_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(
        DownloadError, match=r"no connection \(.*refused.*\)\. What came is kept; try again later"
    ):
        download("http://127.0.0.1:9/data.txt", tmp_path / "data.txt", **QUICK)


def test_a_place_that_cannot_be_written_names_the_path(server, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        download(server.url, tmp_path / "file" / "data.txt", **QUICK)
