"""A server for the page's tests: it says what a test wants, and waits where a test wants it to."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scratchlm.serve.page import load_page

SECONDS = 60
"""The longest wait for anything."""
OTHERS = [" cat", " dog", " bird", " fish"]


def cut(text):
    """A text's tokens: words with the blank before them."""
    return re.findall(r"\s?[^\s]+|\s", text)


class Stub:
    """Answers in the form of serve/protocol.py.

    Attributes:
        say: From a request's JSON to the texts of the tokens that are answered.
        gate: The stream pauses after `held_after` tokens until this is set.
        asked: Every request so far: (path, JSON).
        break_after: The connection ends after so many tokens.
        broken: Set when a client left in the middle of a stream.
        refuse: Path -> (status, message, headers): answered instead.
    """

    def __init__(self, models=("demo",), chat_tokens=True):
        self.models, self.chat_tokens = list(models), chat_tokens
        self.ids = {}
        self.say = lambda body: [" Hello", ",", " I", " am", f" {body['model']}", "."]
        self.gate, self.held_after = threading.Event(), 2
        self.gate.set()
        self.break_after = None
        self.asked, self.broken, self.refuse = [], threading.Event(), {}
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answers,), {"stub": self}))
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.gate.set()
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join(SECONDS)

    def bodies(self, path):
        return [body for where, body in self.asked if where == path]

    def id_of(self, text):
        return self.ids.setdefault(text, len(self.ids) + 1)

    def entry(self, text, logprob=-0.5):
        def short(text, logprob):
            data = list(text.encode("utf-8"))
            return {"token": text, "token_id": self.id_of(text), "bytes": data, "logprob": logprob}

        others = [short(other, -1.5 - rank) for rank, other in enumerate(OTHERS)]
        return {**short(text, logprob), "top_logprobs": [short(text, logprob), *others]}

    def lists(self, entries):
        return {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "token_ids": [e["token_id"] for e in entries],
            "text_offset": [0 for e in entries],
            "top_logprobs": [{o["token"]: o["logprob"] for o in e["top_logprobs"]} for e in entries],
            "top_token_ids": [[o["token_id"] for o in e["top_logprobs"]] for e in entries],
        }


class Answers(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    stub = None

    def log_message(self, *words):
        pass

    def do_GET(self):
        if self.path == "/":
            page = load_page()
            self.reply(200, page.body, page.headers)
        elif self.refused():
            return
        elif self.path == "/v1/models":
            one = {"object": "model", "created": 1, "owned_by": "scratchlm", "context_length": 64}
            self.json(
                {"data": [{"id": i, **one, "chat_tokens": self.stub.chat_tokens} for i in self.stub.models]}
            )
        else:
            self.json({"error": {"message": "not here"}}, 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.stub.asked.append((self.path, body))
        if self.refused():
            return
        if self.path == "/tokenize":
            tokens = ["<|endoftext|>", *cut(body["prompt"])]
            self.json({"tokens": [self.stub.id_of(text) for text in tokens], "count": len(tokens)})
        elif body.get("stream"):
            self.stream(body)
        else:  # the scores of a prompt
            texts = {number: text for text, number in self.stub.ids.items()}
            entries = [self.stub.entry(texts[number], -0.02) for number in body["prompt"]]
            entries[0].update(logprob=None, top_logprobs=[])
            self.json({"choices": [{"index": 0, "text": "", "logprobs": self.stub.lists(entries)}]})

    def refused(self):
        if self.path not in self.stub.refuse:
            return False
        status, message, headers = self.stub.refuse[self.path]
        self.json({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, headers)
        return True

    def stream(self, body):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        chat = self.path.endswith("chat/completions")
        try:
            for number, text in enumerate(self.stub.say(body)):
                if number == self.stub.break_after:
                    return
                if number == self.stub.held_after:
                    self.wait()
                entry = self.stub.entry(text)
                if chat:
                    choice = {"delta": {"content": text}, "logprobs": {"content": [entry]}}
                else:
                    choice = {"text": text, "logprobs": self.stub.lists([entry])}
                self.event({"choices": [{"index": 0, "finish_reason": None, **choice}], "usage": None})
            end = {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                **({"delta": {}} if chat else {"text": ""}),
            }
            self.event({"choices": [end], "usage": None})
            self.event({"choices": [], "usage": {"completion_tokens": 1}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.stub.broken.set()

    def wait(self):
        """Until the gate opens; OSError when the client has left meanwhile."""
        until = time.monotonic() + SECONDS
        while not self.stub.gate.wait(0.02) and time.monotonic() < until:
            self.wfile.write(b": still here\n\n")
            self.wfile.flush()

    def event(self, it):
        self.wfile.write(f"data: {json.dumps(it)}\n\n".encode())
        self.wfile.flush()

    def json(self, it, status=200, headers=None):
        self.reply(status, json.dumps(it).encode(), {"content-type": "application/json", **(headers or {})})

    def reply(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
