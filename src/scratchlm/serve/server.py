"""Run folders come in; a server that answers, until a signal ends it.

    serve([Path("demo")], ServeConfig())      127.0.0.1:8000

The port is bound and answers (503, "loading") while models are read. SIGINT or SIGTERM: no new requests are
taken, those under way get drain_seconds, then everything ends; a second SIGINT ends it at once. HTTP itself
is uvicorn's and h11's. What they leave open is closed here: a connection that never sends the head of a
request, and one whose client never takes its answer.
"""

import asyncio
import functools
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from scratchlm.generate.engine import Engine
from scratchlm.serve.app import build_app
from scratchlm.serve.limits import ServeConfig
from scratchlm.serve.worker import Served, Worker
from scratchlm.tokenizer.chat import ChatTemplate
from scratchlm.train.folder import load_run

BACKLOG = 512
"""Connections that the kernel keeps until they are accepted."""


def serve(
    paths: Sequence[Path],
    config: ServeConfig,
    *,
    device: str = "auto",
    checkpoint: str = "newest",
    on_bound: Callable[[str], None] | None = None,
    on_ready: Callable[[str, Worker], None] | None = None,
) -> None:
    """Serve models until a signal comes.

    Args:
        paths: Run folders; the first one answers requests that name no model.
        config: Where to listen and what to take.
        device: Where the models shall be.
        checkpoint: Which checkpoint of each.
        on_bound: Called with the address before the models are read.
        on_ready: Called with the address when requests are taken.

    Raises:
        ValueError: A folder is no run, or its model cannot be read.
        OSError: The port is taken, or a file cannot be read.
        RuntimeError: The models stopped computing.
    """
    listener = bind(config)
    if on_bound is not None:
        on_bound(address(listener))
    load = functools.partial(load_models, paths, slots=config.slots, device=device, checkpoint=checkpoint)
    worker = Worker(load, config)
    server = Server(worker, config, listener, on_ready)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    if worker.failure is not None:
        raise worker.failure
    if server.broken:
        raise RuntimeError("the models stopped computing; the lines above say why")


def bind(config: ServeConfig) -> socket.socket:
    """Take the address, so that a wrong one is an error before anything is read.

    Raises:
        OSError: It is taken, or no address of this machine.
    """
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, config.port))
    except OSError as error:
        listener.close()
        error.filename = f"{config.host}:{config.port}"
        raise
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def load_models(paths: Sequence[Path], *, slots: int, device: str, checkpoint: str) -> list[Served]:
    """Read runs, each under the name of its folder.

    What is compiled at first use is compiled here, so that no client waits for it.

    Raises:
        ValueError: A folder is no run, or its model cannot be read.
    """
    models: list[Served] = []
    for path in paths:
        run = load_run(path, device=device, checkpoint=checkpoint)
        name = _new_name(run.folder.path.resolve().name, {model.name for model in models})
        engine = Engine(run.model, run.tokenizer, slots=slots)
        engine.warm_up()
        created = int(run.folder.config.stat().st_mtime)
        models.append(
            Served(
                name=name,
                engine=engine,
                tokenizer=run.tokenizer,
                template=ChatTemplate(run.tokenizer),
                created=created,
                step=run.step,
            )
        )
    return models


class Connection(H11Protocol):
    """A connection that is closed when it says nothing, and when nobody takes what it is told."""

    def __init__(self, *args: Any, head_seconds: float, client_seconds: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._head_seconds, self._client_seconds = head_seconds, client_seconds
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        made = transport.get_extra_info("socket")
        if made is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            # a client that does not read lets the kernel wait for ever; this lets it give up
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._client_seconds))
        self._expect_head(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have come already."""
        before = self.cycle
        super().on_response_complete()
        self._expect_head(before)

    def _expect_head(self, before: object) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(self._head_seconds, self._close_unless_asked, before)

    def _close_unless_asked(self, before: object) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn's server; it drains the worker first, and ends when the worker has ended."""

    def __init__(
        self,
        worker: Worker,
        config: ServeConfig,
        listener: socket.socket,
        on_ready: Callable[[str, Worker], None] | None = None,
    ) -> None:
        """Prepare to serve `worker` on `listener`."""
        super().__init__(
            uvicorn.Config(
                build_app(worker, config),
                http=functools.partial(
                    Connection, head_seconds=config.head_seconds, client_seconds=config.client_seconds
                ),
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                limit_concurrency=config.max_connections,
                timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
            )
        )
        self.worker, self.broken = worker, False
        self._address, self._on_ready = address(listener), on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no further requests, then end."""
        self.worker.drain()
        super().handle_exit(sig, frame)
        if sig == signal.SIGTERM and len(self._captured_signals) > 1:
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: tell once that all is ready; end when nothing computes any more."""
        if self._on_ready is not None and self.worker.state == "ready":
            self._on_ready(self._address, self.worker)
            self._on_ready = None
        if self.worker.state == "stopped" and not self.should_exit:
            self.broken = self.should_exit = True
        return await super().on_tick(counter)


def _new_name(name: str, taken: set[str]) -> str:
    """`name`, or name-2, name-3, ... where it is taken."""
    return next(
        made
        for number in range(1, len(taken) + 2)
        if (made := name if number == 1 else f"{name}-{number}") not in taken
    )
