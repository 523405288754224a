"""What the server does comes in, Prometheus' text goes out.

    scratchlm_requests_total{route, status}         counter     499: the client left
    scratchlm_request_seconds{route}                histogram   whole requests
    scratchlm_first_token_seconds{model}            histogram   from admission to the first event
    scratchlm_tokens_total{model, kind}             counter     kind: prompt (through the model), new
    scratchlm_slots{model}, _running, _waiting      gauges      of the engine, after its newest step
    scratchlm_in_flight{model}                      gauge       texts of clients that are not done
    scratchlm_state{state}                          gauge       1 for the state that it is in

Numbers of the engine are read when somebody asks, so a step costs nothing for them. Each server has its own
registry: two in one process do not mix.

Source: https://prometheus.io/docs/practices/naming/
"""

import time
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scratchlm.serve.worker import State, Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Borders of the histograms: from one step of a small model to the longest answers."""
LEFT = 499
"""The status of a request whose client left before the answer; nginx' number."""


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self, worker: Worker) -> None:
        """Count for the server of `worker`."""
        self._registry = CollectorRegistry()
        self._registry.register(EngineMetrics(worker))
        self.requests = Counter(
            "scratchlm_requests", "Requests by route and status.", ["route", "status"], registry=None
        )
        self.request_seconds = Histogram(
            "scratchlm_request_seconds", "Whole requests.", ["route"], buckets=SECONDS, registry=None
        )
        self.first_token_seconds = Histogram(
            "scratchlm_first_token_seconds", "To the first event.", ["model"], buckets=SECONDS, registry=None
        )
        for metric in (self.requests, self.request_seconds, self.first_token_seconds):
            self._registry.register(metric)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class EngineMetrics:
    """Asks the worker when it is asked."""

    def __init__(self, worker: Worker) -> None:
        """Ask `worker`."""
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yield the newest numbers."""
        worker = self._worker
        stats = worker.stats.items()
        tokens = CounterMetricFamily("scratchlm_tokens", "Tokens computed.", labels=["model", "kind"])
        for name, found in stats:
            tokens.add_metric([name, "prompt"], found.prompt_tokens)
            tokens.add_metric([name, "new"], found.new_tokens)
        yield tokens
        yield _gauge("slots", "Texts that can be written at once.", ((n, s.slots) for n, s in stats))
        yield _gauge("running", "Texts that have a slot.", ((n, s.running) for n, s in stats))
        yield _gauge("waiting", "Texts that wait for a slot.", ((n, s.waiting) for n, s in stats))
        in_flight = ((name, worker.in_flight[name]) for name in worker.models)
        yield _gauge("in_flight", "Texts of clients that are not done.", in_flight)
        states = GaugeMetricFamily("scratchlm_state", "1 for the state that it is in.", labels=["state"])
        for state in get_args(State):
            states.add_metric([state], float(worker.state == state))
        yield states


class Counted:
    """ASGI middleware: counts requests and their time by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[str]) -> None:
        """Stand before `app`.

        Args:
            app: The server.
            metrics: Where to count.
            routes: Paths that are counted by their names; all others are "other", so that nobody can fill
                the memory with names.
        """
        self.app, self.metrics, self.routes = app, metrics, frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, failed = time.perf_counter(), LEFT, True

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
            failed = False
        finally:
            status = 500 if failed and status == LEFT else status
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def _gauge(name: str, help: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    made = GaugeMetricFamily(f"scratchlm_{name}", help, labels=["model"])
    for model, value in values:
        made.add_metric([model], value)
    return made
