"""A real server in this process: a tiny model, a thread, a free port; and the plainest of clients."""

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import NamedTuple

import torch

from scratchlm.generate.engine import Engine
from scratchlm.generate.request import Request
from scratchlm.generate.sampling import SamplingConfig
from scratchlm.model import MODELS, ModelConfig
from scratchlm.serve.limits import ServeConfig
from scratchlm.serve.server import Server, bind
from scratchlm.serve.worker import Served, Worker
from scratchlm.tokenizer.base import END_OF_TEXT
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.chat import CHAT_TOKENS, ChatTemplate

SECONDS = 60
"""The longest wait for anything."""
ENDLESS = {"max_tokens": 1_000_000, "full": "slide", "logit_bias": {"0": -100, "260": -100}}
"""Settings of an answer that goes on until somebody stops it."""


def byte_tokenizer(special=True):
    """One id per byte, 0 ends a text, the last four are the chat tokens."""
    names = [END_OF_TEXT, *(CHAT_TOKENS if special else ())]
    vocab = {0: END_OF_TEXT.encode(), **{i + 1: bytes([i]) for i in range(256)}}
    vocab |= {257 + i: name.encode() for i, name in enumerate(names[1:])}
    return BPETokenizer(vocab, [], names)


def tiny_model(vocab_size=261, context_length=64):
    torch.manual_seed(1)
    config = ModelConfig(
        vocab_size=vocab_size, context_length=context_length, d_model=32, num_layers=2, num_heads=4
    )
    model = MODELS.build("transformer", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "ffn" in name:
                parameter.mul_(3)  # large enough that the text depends on the past
    return model.eval()


def served(name="tiny", *, slots=4, special=True, model=None):
    tokenizer = byte_tokenizer(special)
    engine = Engine(model or tiny_model(tokenizer.vocab_size), tokenizer, slots=slots)
    engine.run([Request(prompt_ids=[0, 0], sampling=SamplingConfig(max_new_tokens=2), stop_ids=())])
    return Served(
        name=name,
        engine=engine,
        tokenizer=tokenizer,
        template=ChatTemplate(tokenizer),
        created=1_700_000_000,
        step=7,
    )


class Answer(NamedTuple):
    status: int
    headers: dict
    data: bytes

    @property
    def json(self):
        return json.loads(self.data)

    @property
    def error(self):
        """The error, after checking its form."""
        found = self.json
        assert set(found) == {"error"}, found
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert "Traceback" not in found["error"]["message"]
        return found["error"]

    @property
    def events(self):
        """The objects of a stream, after checking its end."""
        lines = [line for line in self.data.decode("utf-8").split("\n\n") if line]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
        assert lines[-1] == "data: [DONE]", lines[-1:]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Live:
    def __init__(self, server, worker, port):
        self.server, self.worker, self.port = server, worker, port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named = {"Content-Type": "application/json", **named}
        try:
            connection.request(method, path, body=data, headers=named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, body, **headers):
        return self.ask("POST", path, body, **headers)

    def complete(self, **body):
        return self.post("/v1/completions", {"prompt": "Once", **body})

    def chat(self, text="Hi", **body):
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body})

    def metric(self, name, **labels):
        """The value of one sample of /metrics; 0 if it was never counted."""
        for line in self.get("/metrics").data.decode().splitlines():
            found = line.startswith((name + "{", name + " "))
            if found and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0

    def open(self, path, body, **headers):
        """A socket on which a request was sent; the answer is not read."""
        data = json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Content-Type: application/json"]
        head += [f"Content-Length: {len(data)}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        made = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        made.sendall("\r\n".join(head).encode() + data)
        return made

    def idle(self):
        """Wait until no text is under way anywhere."""
        until(lambda: not any(self.worker.in_flight.values()))
        until(lambda: all(s.running == s.waiting == 0 for s in self.worker.stats.values()))


def until(condition):
    """Wait for what another thread does."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


@contextlib.contextmanager
def live(load=None, *, ready=True, **settings):
    """A server until the end of the `with`."""
    usual = {"port": 0, "slots": 4, "max_waiting": 8, "max_tokens": 1_000_000}
    config = ServeConfig(**{**usual, **settings})
    listener = bind(config)
    port = listener.getsockname()[1]
    worker = Worker(load or (lambda: [served(slots=config.slots)]), config)
    server = Server(worker, config, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        if ready:
            assert worker.wait(SECONDS) == "ready"
        yield Live(server, worker, port)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listener.close()
        assert not thread.is_alive()
