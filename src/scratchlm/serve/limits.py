"""Settings of the server, and what it refuses before a request is read: other hosts, no key, too much.

    a connection    must send a request's head in head_seconds                  closed    (server.py)
    Host            must be a name of this machine, or in allowed_hosts         403
    Origin          must be this server: pages of others do not ask us          403
    key             Authorization: Bearer KEY, or KEY as Basic's password       401
    body            application/json, at most max_body_bytes, in client_seconds 415, 413, 408
    an answer       must be taken in client_seconds a piece                     closed

A server that listens on this machine alone is still asked by every web page that its user opens: a name that
its owner points at 127.0.0.1 makes our answers readable to that page (Ollama's CVE-2024-28224), and a simple
form can post without asking. Hence Host, Origin and the content type are looked at, and nothing allows other
sites to read (no CORS). The browser asks for the key itself (Basic), so the page works with one, too.
"""

import asyncio
import base64
import binascii
import hmac

from pydantic import Field
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scratchlm.config import Config
from scratchlm.serve.errors import ApiError

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine for itself."""

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
"""Of every answer: no guessing of types, no frames, no window of another site with a hold on ours."""


class ServeConfig(Config):
    """Where the server listens and what it takes."""

    host: str = "127.0.0.1"
    """Address to listen on; this machine alone by default."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0: any free one."""
    api_key: str | None = Field(default=None, min_length=1, pattern=r"^[!-~]+$")
    """What every request must bring. None: nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which clients may call this server; "*": any."""
    begin_prompts: bool = False
    """Whether token ids are computed behind the end-of-text token, too, which is not told: lm-eval sends ids
    without it, and a model that never saw a text begin otherwise gives other numbers than `evaluate` has."""
    slots: int = Field(default=8, ge=1, le=1024)
    """Texts that each model writes at once."""
    max_waiting: int = Field(default=128, ge=0)
    """Texts that wait for a slot; more are refused with 429."""
    max_tokens: int = Field(default=4096, ge=1)
    """The most new tokens of one text."""
    max_choices: int = Field(default=16, ge=1, le=128)
    """The most continuations of one prompt (n)."""
    max_prompts: int = Field(default=128, ge=1)
    """The most prompts of one request."""
    max_body_bytes: int = Field(default=4_000_000, ge=1000)
    """The longest body of a request: 128 prompts of 4,000 token ids fit."""
    queue_seconds: float = Field(default=60.0, gt=0)
    """How long a request may wait for its first token."""
    answer_seconds: float = Field(default=600.0, gt=0)
    """How long an answer may take; OpenAI's client gives up after as long."""
    client_seconds: float = Field(default=30.0, gt=0)
    """How long a client may take to send its body, and to take a piece of the answer."""
    head_seconds: float = Field(default=10.0, gt=0)
    """How long a connection may stay open without a whole head of a request."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long answers under way may go on when the server is stopped."""
    max_connections: int = Field(default=512, ge=1)
    """Open connections; the last guard, far above what the queue takes."""


class Guard:
    """ASGI middleware: refuses what the settings do not allow, and clients that do not take their answer."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        """Stand before `app`."""
        self.app, self.config = app, config
        self._hosts = {*LOCAL, config.host.lower(), *(name.lower() for name in config.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {name.lower() for name, _ in message["headers"]}
                more = [header for header in SECURITY_HEADERS if header[0] not in told]
                message = {**message, "headers": [*message["headers"], *more]}
            try:
                async with asyncio.timeout(self.config.client_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        try:
            self._check(Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, send_in_time)
            return
        await self.app(scope, receive, send_in_time)

    def _check(self, headers: Headers) -> None:
        """Raise an `ApiError` where a header is not allowed."""
        if not self._is_ours(_without_port(headers.get("host", ""))):
            raise ApiError(
                403,
                f"host {headers.get('host', '')[:100]!r} is not allowed; start the server with --allow-host.",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own_page(origin, headers.get("host", "")):
            raise ApiError(403, "pages of other sites may not ask this server.", code="origin_not_allowed")
        if self.config.api_key is not None and not _has_key(headers, self.config.api_key):
            raise ApiError(
                401,
                "wrong or missing key; send Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="scratchlm", charset="UTF-8"'},
            )

    def _is_own_page(self, origin: str, host: str) -> bool:
        """Whether a page is of this server, not of another one on this machine, or of an allowed name."""
        place = origin.partition("://")[2].lower()
        named = {name.lower() for name in self.config.allowed_hosts}
        return bool(place) and (place == host.lower() or _without_port(place) in named)

    def _is_ours(self, name: str) -> bool:
        return "*" in self._hosts or name.lower() in self._hosts


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """Read a request's JSON text.

    Raises:
        ApiError: It is of another type, too long, or too slow.
        ClientDisconnect: The client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body must be application/json (header Content-Type).")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > config.max_body_bytes:
        raise _too_long(config)
    body = bytearray()
    try:
        async with asyncio.timeout(config.client_seconds):
            async for part in request.stream():
                body += part
                if len(body) > config.max_body_bytes:
                    raise _too_long(config)
    except TimeoutError:
        message = f"the body did not arrive in {config.client_seconds:g} seconds."
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    return bytes(body)


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has left; for requests whose body has been read.

    `Request.is_disconnected` is no help to a task that computes: it must be asked.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_long(config: ServeConfig) -> ApiError:
    message = f"the body has more than {config.max_body_bytes} bytes; send less at once."
    return ApiError(413, message, headers={"Connection": "close"})


def _without_port(host: str) -> str:
    """The name alone: "[::1]:8000" -> "[::1]", "localhost:8000" -> "localhost"."""
    end = host.find("]")
    return host[: end + 1] if end >= 0 else host.partition(":")[0]


def _has_key(headers: Headers, key: str) -> bool:
    """Whether one of the two headers brings the key; takes as long wherever the first difference is."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode("utf-8"), key.encode("utf-8"))
