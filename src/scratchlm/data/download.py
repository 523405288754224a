"""Downloading: an address comes in, a whole and checked file comes out under its name, or nothing does.

The bytes go to `NAME.part`, with the server's ETag in `NAME.part.json`. When the connection breaks off, and
when a later call finds these two, the rest is asked for with `Range: bytes=N-` and `If-Range: ETag`: a server
whose file has changed, or that knows no ranges, answers with the whole file and we start over. Only when the
length and the sha256 are right does the file get its name. Redirections are followed, but never from https
to http.

Source: RFC 9110, section 13.1.5 (If-Range) and 14 (Range Requests), https://www.rfc-editor.org/rfc/rfc9110.
"""

import contextlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm import __version__
from scratchlm.data.shard_writer import naming
from scratchlm.data.shards import hash_file

Progress = Callable[[int, int | None], None]
"""Called after each block with (bytes that are here, bytes in all or None)."""

BLOCK_BYTES = 2**18
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP states that may pass: too busy, too early, a gateway without an answer."""


class DownloadError(ValueError):
    """A download that failed; nothing lies under the final name."""


class _Interrupted(Exception):  # noqa: N818 - not an error yet: the caller tries again
    """The connection failed or ended early; what came is kept."""


class _Answer(NamedTuple):
    """What the server said before the bytes."""

    body: http.client.HTTPResponse
    first: int
    """Place of the first byte in the file."""
    total: int | None
    """Bytes of the whole file, if the server says so."""
    etag: str | None


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    retries: int = 3,
    wait_seconds: float = 1.0,
    timeout_seconds: float = 60.0,
) -> Path:
    """Download `url` to `path`, going on where an earlier call was interrupted.

    Args:
        url: An http or https address.
        path: Where the file shall lie; when it is there already and right, nothing is downloaded.
        size: Bytes it must have, if known.
        sha256: Checksum in hex that it must have, if known.
        progress: Called after each block.
        retries: Failures in a row, without a new byte in between, that are tried again.
        wait_seconds: Pause before the first of them; it doubles each time.
        timeout_seconds: How long the server may be silent.

    Raises:
        DownloadError: No connection, no such file, a wrong length or a wrong checksum.
        OSError: The disk is full or not writable.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: not an http or https address.")
    if path.is_file() and _mistake(path, size, sha256) is None:
        return path
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            with naming(part):
                path.parent.mkdir(parents=True, exist_ok=True)
                _fetch(url, part, size, sha256, progress, timeout_seconds)
            break
        except _Interrupted as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures > retries:
                raise DownloadError(f"{url}: {error}. What came is kept; try again later.") from None
            time.sleep(wait_seconds * 2 ** (failures - 1) if failures else 0)
    if mistake := _mistake(part, size, sha256):
        _discard(part)
        raise DownloadError(f"{url}: {mistake}. What came was removed; has the file changed at its source?")
    with naming(part):
        part.replace(path)
        _discard(part)
    return path


def _fetch(
    url: str,
    part: Path,
    size: int | None,
    sha256: str | None,
    progress: Progress | None,
    timeout_seconds: float,
) -> None:
    """Ask for what is missing of `part` and append it; returns when the server has sent all it promised."""
    here, etag = _kept(part, url, checked=sha256 is not None)
    with _ask(url, here, etag, timeout_seconds) as answer:
        if answer is None:  # 416: nothing comes after `here`
            return
        if answer.first not in (0, here):
            _discard(part)
            raise _Interrupted(f"the server sent bytes from {answer.first} on instead of {here}")
        if size is not None and answer.total not in (None, size):
            _discard(part)
            raise DownloadError(f"{url}: the server has {answer.total} bytes where {size} are expected.")
        _note(part).write_text(json.dumps({"url": url, "etag": answer.etag}), encoding="utf-8")
        here = answer.first
        with part.open("r+b" if here else "wb") as file:
            file.seek(here)
            file.truncate()
            for block in _blocks(answer.body):
                file.write(block)
                here += len(block)
                if progress is not None:
                    progress(here, answer.total)
            file.flush()
            os.fsync(file.fileno())
        if answer.total is not None and here < answer.total:
            raise _Interrupted(f"the connection ended after {here} of {answer.total} bytes")


def _kept(part: Path, url: str, *, checked: bool) -> tuple[int, str | None]:
    """How many bytes of an earlier attempt can be kept, and the ETag of the file they are from.

    Without an ETag they might be from an older file: they are kept only when a checksum will tell.
    """
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        etag = note.get("etag")
        if note.get("url") == url and (etag is not None or checked):
            return _size(part), etag
    return 0, None


@contextlib.contextmanager
def _ask(url: str, here: int, etag: str | None, timeout_seconds: float) -> Iterator[_Answer | None]:
    """Send the request; None when the server says that the file ends at `here`."""
    headers = {"User-Agent": f"scratchlm/{__version__}", "Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    if here and etag:
        headers["If-Range"] = etag
    opener = urllib.request.build_opener(_NoDowngrade)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{here}":
            yield None
            return
        if error.code == 416:
            raise DownloadError(
                f"{url}: the server cannot go on at byte {here}; remove the .part file."
            ) from None
        if error.code in TRANSIENT:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
        raise DownloadError(f"{url}: HTTP {error.code} {error.reason}.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({getattr(error, 'reason', None) or error!r})") from None
    with response:
        yield _read_headers(response.status, response.headers, response)


def _read_headers(status: int, headers: Message, body: http.client.HTTPResponse) -> _Answer:
    """What part of the file an answer holds."""
    length = headers.get("Content-Length", "")
    etag = headers.get("ETag")
    etag = None if etag is None or etag.startswith("W/") else etag  # weak: not byte for byte the same
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if status == 206 and ranged:
        total = int(ranged[2]) if ranged[2] != "*" else None
        return _Answer(body, first=int(ranged[1]), total=total, etag=etag)
    return _Answer(body, first=0, total=int(length) if length.isdigit() else None, etag=etag)


def _blocks(body: http.client.HTTPResponse) -> Iterator[bytes]:
    """The bytes of an answer; a connection that fails in between is no error of the disk."""
    while True:
        try:
            block = body.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the connection broke off ({error!r})") from None
        if not block:
            return
        yield block


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirections, but not out of https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Refuse an address that is less safe than the one asked for."""
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            raise DownloadError(f"{req.full_url}: leads to {newurl}, which is not https; refused.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _mistake(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a downloaded file, or None."""
    if size is not None and _size(path) != size:
        return f"{_size(path)} bytes came where {size} are expected"
    if sha256 is not None and (found := hash_file(path)) != sha256:
        return f"its sha256 is {found}, not {sha256}"
    return None


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
