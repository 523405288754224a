"""The thread that computes: requests of clients go in, batches of events come out.

    event loop                     inbox (a queue)          thread
    admit(model, requests)  ---->  Submit, Leave   ---->    engine.submit, engine.cancel
    ticket.events()         <----  call_soon_threadsafe <-- engine.step, for each engine that has work

One thread owns every engine, so no engine and no kernel is ever entered twice at once; the loop never waits
for it. How much is under way is counted on the loop's side, before anything is computed or queued, and
counted off when the client's request is over, not when its text is: a client that does not read its answer
holds its place. A ticket is closed by whoever opened it (`with`), which takes its texts out of the engine,
whatever became of the client.

If a model breaks (not one request: the whole computation), every ticket gets an error and the state is
"stopped".
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple

import torch

from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Event, Request, Stats
from scratchlm.serve.errors import ApiError, busy
from scratchlm.serve.limits import ServeConfig
from scratchlm.tokenizer import Tokenizer
from scratchlm.tokenizer.chat import ChatTemplate

State = Literal["loading", "ready", "draining", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as clients see it."""

    name: str
    """The id that requests name."""
    engine: Engine
    """Entered by the worker's thread alone; its runner's sizes are constants."""
    tokenizer: Tokenizer
    template: ChatTemplate
    created: int
    """When the checkpoint was written, in seconds since 1970."""
    step: int
    """Of the checkpoint."""

    @property
    def context_length(self) -> int:
        """How many tokens the model sees."""
        return self.engine.runner.context_length

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows."""
        return self.engine.runner.vocab_size


class Told(NamedTuple):
    """What a step brought for one prompt of a ticket."""

    prompt: int
    """Number of the prompt."""
    event: Event


class Ticket:
    """A client's place: its requests to one model, from admission until the answer is over."""

    def __init__(self, worker: "Worker", model: Served, requests: Sequence[Request]) -> None:
        """Made by `Worker.admit`."""
        self.model, self.requests = model, tuple(requests)
        self.size = sum(request.n for request in requests)
        self.loop = asyncio.get_running_loop()
        self.ids: list[int] = []
        self._worker = worker
        self._open = self.size
        self._batches: asyncio.Queue[list[Told] | None] = asyncio.Queue()
        self._started = time.monotonic()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker._leave(self)

    async def events(self) -> AsyncIterator[list[Told]]:
        """Yield what each step brings, until all continuations have ended.

        Raises:
            ApiError: It takes too long, or the worker has stopped.
        """
        config, seconds = self._worker.config, self._worker.config.queue_seconds
        while self._open:
            try:
                async with asyncio.timeout(seconds):
                    batch = await self._batches.get()
            except TimeoutError:
                raise busy(503, f"no answer within {seconds:.0f} seconds.", "timeout") from None
            if batch is None:
                raise busy(503, "the server stopped computing.", "stopped")
            seconds = max(self._started + config.answer_seconds - time.monotonic(), 0.001)
            self._open -= sum(told.event.finish_reason is not None for told in batch)
            yield batch

    def put(self, batch: list[Told] | None) -> None:
        """Take what the worker brings; called in the loop."""
        self._batches.put_nowait(batch)


class Submit(NamedTuple):
    """Queue a ticket's requests."""

    ticket: Ticket


class Leave(NamedTuple):
    """Forget them, and take out of the engine what is still under way."""

    ticket: Ticket


class Worker:
    """Owns the models and computes for all tickets.

    Attributes:
        state: What the server can do now.
        models: Name -> model, in order; empty while loading.
        stats: Name -> what the engine has done, after the newest step.
        failure: Why loading failed.
    """

    def __init__(self, load: Callable[[], Sequence[Served]], config: ServeConfig) -> None:
        """Prepare; `start` begins.

        Args:
            load: Called in the thread; a ValueError or OSError of it ends as `failure`.
            config: How much may be under way.
        """
        self.config = config
        self.state: State = "loading"
        self.models: dict[str, Served] = {}
        self.stats: dict[str, Stats] = {}
        self.failure: ValueError | OSError | None = None
        self.in_flight: dict[str, int] = defaultdict(int)
        self._load = load
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Submit | Leave | None] = queue.SimpleQueue()
        self._owners: dict[tuple[str, int], tuple[Ticket, int]] = {}
        self._decided = threading.Event()
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="scratchlm-engine", daemon=True)

    # the loop's side

    def start(self) -> None:
        """Begin to load, then to compute."""
        self._thread.start()

    def wait(self, seconds: float | None = None) -> State:
        """Wait until loading has ended, well or not; return the state."""
        self._decided.wait(seconds)
        return self.state

    def drain(self) -> None:
        """Take no further requests; those under way go on."""
        with self._lock:
            if self.state == "ready":
                self.state = "draining"

    def stop(self, seconds: float = 60.0) -> bool:
        """End the thread after its step; tickets still open get an error. Return whether it has ended."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def find(self, name: str | None) -> Served:
        """The model that a request names; the first one where it names none.

        Raises:
            ApiError: There is no such model, or none yet.
        """
        self._check_state()
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"model: there is no {name[:100]!r}; there is: {known}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[name]

    def admit(self, model: Served, requests: Sequence[Request]) -> Ticket:
        """Queue requests that were checked; use the ticket in a `with` statement.

        Raises:
            ApiError: There is no room now, or never for so many, or the server is going.
        """
        ticket = Ticket(self, model, requests)
        room = self.config.slots + self.config.max_waiting
        if ticket.size > room:
            raise ApiError(400, f"{ticket.size} texts at once; this server takes at most {room}.")
        with self._lock:
            self._check_state()
            if self.in_flight[model.name] + ticket.size > room:
                raise busy(429, "too many texts are waiting; try again soon.", "queue_full")
            self.in_flight[model.name] += ticket.size
            self._inbox.put(Submit(ticket))
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        self.in_flight[ticket.model.name] -= ticket.size
        self._inbox.put(Leave(ticket))

    def _check_state(self) -> None:
        why = {"loading": "still loading", "draining": "about to stop", "stopped": "not computing any more"}
        if self.state in why:
            raise busy(503, f"the server is {why[self.state]}.", self.state)

    # the thread's side

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # a setting of each thread
        try:
            if not self._open_models():
                return
            while self._take():
                for model in self.models.values():
                    if model.engine.is_busy:
                        self._deal(model, model.engine.step())
                self._note()
        finally:
            self._end()

    def _open_models(self) -> bool:
        try:
            models = self._load()
        except (ValueError, OSError) as error:
            self.failure = error
            return False
        self.models = {model.name: model for model in models}
        self._note()
        with self._lock:
            if self.state == "loading":
                self.state = "ready"
        self._decided.set()
        return True

    def _take(self) -> bool:
        """Do what the loop asks; without work to do, wait for it. Return False at the end."""
        wait = not any(model.engine.is_busy for model in self.models.values())
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if command is None:
                return False
            ticket = command.ticket
            engine, name = ticket.model.engine, ticket.model.name
            if isinstance(command, Submit):
                ticket.ids = [engine.submit(request) for request in ticket.requests]
                self._owners |= {(name, key): (ticket, number) for number, key in enumerate(ticket.ids)}
                continue
            for key in ticket.ids:
                engine.cancel(key)
                self._owners.pop((name, key), None)

    def _deal(self, model: Served, events: Sequence[Event]) -> None:
        """Hand a step's events to their tickets: one call for each loop, not for each event."""
        loops: dict[asyncio.AbstractEventLoop, dict[Ticket, list[Told]]] = {}
        for event in events:
            owner = self._owners.get((model.name, event.request_id))
            if owner is not None:
                ticket, number = owner
                loops.setdefault(ticket.loop, {}).setdefault(ticket, []).append(Told(number, event))
        for loop, batches in loops.items():
            _tell(loop, batches)

    def _note(self) -> None:
        self.stats = {name: model.engine.stats() for name, model in self.models.items()}

    def _end(self) -> None:
        with self._lock:
            self.state = "stopped"
        waiting = {ticket for ticket, _ in self._owners.values()}
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._inbox.get_nowait()
                if isinstance(command, Submit):
                    waiting.add(command.ticket)
        for ticket in waiting:
            _tell(ticket.loop, {ticket: None})
        self._decided.set()


def _tell(loop: asyncio.AbstractEventLoop, batches: Mapping[Ticket, list[Told] | None]) -> None:
    def put() -> None:
        for ticket, batch in batches.items():
            ticket.put(batch)

    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
        loop.call_soon_threadsafe(put)
