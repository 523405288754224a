r"""A job comes in; its answer goes to the client while it is being written, or nothing if the client leaves.

    data: {"id": "cmpl-1", ..., "choices": [{"index": 0, "text": "Once"}]}\n\n
    data: [DONE]\n\n

The ticket is taken inside of the task that is raced against the disconnect, and its `with` ends with that
task: never in a generator, which might not be entered or not be closed. The status is decided by the first
event, so an overfull or failing server is seen as such; what happens later is an error inside of the stream.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from scratchlm.serve.errors import ApiError
from scratchlm.serve.jobs import Job
from scratchlm.serve.limits import until_disconnected
from scratchlm.serve.metrics import Metrics
from scratchlm.serve.worker import Ticket, Told, Worker

Answer = TypeVar("Answer")

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""A proxy shall not wait until a buffer is full; the second is nginx' name for that."""


class EventStream(Response):
    """An answer in Server-Sent Events."""

    media_type = "text/event-stream"

    def __init__(self, worker: Worker, job: Job, metrics: Metrics) -> None:
        """Prepare; everything is done when the server calls."""
        self.worker, self.job, self.metrics = worker, job, metrics
        self.background = None
        self.status_code = 200
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the answer is over or the client has left."""
        await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        begun = False
        try:
            with self.worker.admit(self.job.model, self.job.requests) as ticket:
                async for batch in timed(ticket, self.metrics):
                    data = self._data(batch)
                    if not begun:
                        await self._begin(send)
                        begun = True
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
        except ApiError as error:
            if not begun:
                raise
            await self._finish(send, event(error.body))
            return
        usage = self.job.reply.body.stream_options.include_usage
        await self._finish(send, event(self.job.reply.last_chunk()) if usage else b"")

    def _data(self, batch: list[Told]) -> bytes:
        reply = self.job.reply
        return b"".join(event(chunk) for told in batch for chunk in reply.chunks(reply.piece(told)))

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _finish(self, send: Send, data: bytes) -> None:
        body = data + b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": False})


async def collect(worker: Worker, job: Job, metrics: Metrics) -> dict[str, Any]:
    """The answer as a whole.

    Raises:
        ApiError: There is no room, or something went wrong.
    """
    with worker.admit(job.model, job.requests) as ticket:
        async for batch in timed(ticket, metrics):
            for told in batch:
                job.reply.add(job.reply.piece(told))
    return job.reply.whole()


async def timed(ticket: Ticket, metrics: Metrics) -> AsyncIterator[list[Told]]:
    """A ticket's events; the time until the first of them is noted."""
    started, first = time.perf_counter(), True
    async for batch in ticket.events():
        if first:
            seconds = time.perf_counter() - started
            metrics.first_token_seconds.labels(ticket.model.name).observe(seconds)
            first = False
        yield batch


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """Do `work` to its end, or until the client leaves; return its result, or None."""
    tasks = asyncio.create_task(work), asyncio.create_task(until_disconnected(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    except ClientDisconnect:  # it did not take its answer in time
        return None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
