"""Requests of clients come in, answers go out: the routes of the server.

    parse the body   ->   make a job of it   ->   whole answer, or stream        (stream.py)
    protocol.py           jobs.py                 both raced against the client's leaving

Every request passes `Counted` and `Guard` first.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scratchlm.serve.answers import names
from scratchlm.serve.errors import (
    ApiError,
    answer_api_error,
    answer_failure,
    answer_http_error,
    bad_request,
    busy,
)
from scratchlm.serve.jobs import Job, chat_job, completion_job, tokenize
from scratchlm.serve.limits import Guard, ServeConfig, read_body
from scratchlm.serve.metrics import LEFT, Counted, Metrics
from scratchlm.serve.page import load_page
from scratchlm.serve.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse
from scratchlm.serve.stream import EventStream, collect, unless_disconnected
from scratchlm.serve.worker import Served, Worker
from scratchlm.tokenizer.base import END_OF_TEXT


def build_app(worker: Worker, config: ServeConfig) -> Starlette:
    """Make the ASGI application; it starts the worker and stops it."""
    metrics = Metrics(worker)
    handlers = Handlers(worker, config, metrics)
    routes = handlers.routes()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Counted, metrics=metrics, routes=[route.path for route in routes]),
            Middleware(Guard, config=config),
        ],
        exception_handlers={
            ApiError: answer_api_error,
            HTTPException: answer_http_error,
            ClientDisconnect: _nobody,
            Exception: answer_failure,
        },
    )


class Handlers:
    """One method a route."""

    def __init__(self, worker: Worker, config: ServeConfig, metrics: Metrics) -> None:
        """Answer with the models of `worker`."""
        self.worker, self.config, self.metrics = worker, config, metrics
        self._page = load_page()

    def routes(self) -> list[Route]:
        """Paths, methods and what answers."""
        return [
            Route("/", self.index),
            Route("/health", self.health),
            Route("/metrics", self.metrics_text),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
        ]

    async def index(self, request: Request) -> Response:
        """The page."""
        return Response(self._page.body, headers=self._page.headers)

    async def health(self, request: Request) -> Response:
        """Whether requests are taken."""
        if self.worker.state != "ready":
            raise busy(503, f"the server is {self.worker.state}.", self.worker.state)
        return JSONResponse({"status": "ok"})

    async def metrics_text(self, request: Request) -> Response:
        """Counters and gauges."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """All models."""
        self.worker.find(None)
        data = [self._about(model) for model in self.worker.models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def one_model(self, request: Request) -> Response:
        """One model."""
        return JSONResponse(self._about(self.worker.find(request.path_params["name"])))

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        body = parse(CompletionBody, await read_body(request, self.config))
        return await self._answer(request, completion_job(body, self.worker.find(body.model), self.config))

    async def chat(self, request: Request) -> Response:
        """Say the next turn of a conversation."""
        body = parse(ChatBody, await read_body(request, self.config))
        return await self._answer(request, chat_job(body, self.worker.find(body.model), self.config))

    async def tokenize(self, request: Request) -> Response:
        """Text to ids."""
        body = parse(TokenizeBody, await read_body(request, self.config))
        model = self.worker.find(body.model)
        ids = tokenize(body, model)
        found = {"tokens": ids, "count": len(ids), "max_model_len": model.context_length}
        return JSONResponse(
            {**found, "token_strs": names(model.tokenizer, ids) if body.return_token_strs else None}
        )

    async def detokenize(self, request: Request) -> Response:
        """Ids to text."""
        body = parse(DetokenizeBody, await read_body(request, self.config))
        try:
            return JSONResponse({"prompt": self.worker.find(body.model).tokenizer.decode(body.tokens)})
        except ValueError as error:
            raise bad_request(f"tokens: {error}", param="tokens") from None

    async def tokenizer_info(self, request: Request) -> Response:
        """What a client must know to cut texts as we do."""
        model = self.worker.find(request.query_params.get("model"))
        return JSONResponse(
            {
                "tokenizer_class": type(model.tokenizer).__name__,
                "eos_token": END_OF_TEXT,
                "bos_token": END_OF_TEXT,
                "pad_token": END_OF_TEXT,
                "special_tokens": model.tokenizer.special_tokens,
                "vocab_size": model.vocab_size,
                "model_max_length": model.context_length,
                "chat_template": model.template.jinja,
            }
        )

    def _about(self, model: Served) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "scratchlm",
            "context_length": model.context_length,
            "vocab_size": model.vocab_size,
            "step": model.step,
            "chat_tokens": model.template.special,
            "max_tokens": self.config.max_tokens,
            "max_choices": self.config.max_choices,
        }

    async def _answer(self, request: Request, job: Job) -> Response:
        if job.reply.body.stream:
            return EventStream(self.worker, job, self.metrics)
        whole = await unless_disconnected(request.receive, collect(self.worker, job, self.metrics))
        return Response(status_code=LEFT) if whole is None else JSONResponse(whole)


async def _nobody(request: Request, error: Exception) -> Response:
    """The client left while it sent its body."""
    return Response(status_code=LEFT)
