"""64 clients ask the server for up to a minute: how long they wait, and that no answer is wrong or lost.

server     a process of its own: 6 layers, d_model 256, vocabulary 1024, 8 slots, one thread
clients    this process: each asks again as soon as it has its answer
4 of 8 want the whole answer, 3 of 8 a stream, 1 of 8 leaves in the middle of a stream
right      the token ids are those that the engine gives the same request alone, in this process
lost       no answer, an error, or a stream without its end
alone      the same requests through the engine in this process, 8 slots: what HTTP costs

python benchmarks/bench_serve.py [--clients 64] [--seconds 40]
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import harness
import torch
from rich.console import Console

from scratchlm.data.stories import generate_story
from scratchlm.generate import Engine, Request, SamplingConfig
from scratchlm.model import MODELS, ModelConfig
from scratchlm.serve.limits import ServeConfig
from scratchlm.serve.server import Server, bind
from scratchlm.serve.worker import Served, Worker
from scratchlm.tokenizer.bpe import BPETokenizer
from scratchlm.tokenizer.bpe_train import train_bpe
from scratchlm.tokenizer.chat import ChatTemplate

SLOTS, KINDS = 8, 64
WAYS = ("whole", "stream", "whole", "stream", "whole", "leave", "whole", "stream")


def build() -> tuple[torch.nn.Module, BPETokenizer]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = train_bpe((generate_story(0, index) for index in range(400)), vocab_size=1024)
    settings = {"context_length": 512, "d_model": 256, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **settings)
    return MODELS.build("transformer", config).eval(), tokenizer


def asked(number: int) -> dict[str, object]:
    """Request number i, of KINDS: prompts of 4 to 131 tokens, answers of 16 to 64."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(4, 132, (), generator=generator))
    ids = [0, *torch.randint(1, 1024, (length,), generator=generator).tolist()]
    allowed = {"logit_bias": {"0": -100}, "temperature": 0.8, "top_p": 0.95}
    return {"prompt": ids, "max_tokens": 16 + number % 49, "seed": number, **allowed}


def request(body: dict[str, object]) -> Request:
    sampling = SamplingConfig(
        temperature=body["temperature"],
        top_p=body["top_p"],
        max_new_tokens=body["max_tokens"],
        seed=body["seed"],
        logit_bias={0: -100.0},
    )
    return Request(prompt_ids=body["prompt"], sampling=sampling, full="stop")


def serve() -> None:
    """The server's process: it says its address and runs until it is stopped."""

    def load() -> list[Served]:
        model, tokenizer = build()
        engine = Engine(model, tokenizer, slots=SLOTS)
        engine.run([Request(prompt_ids=[0, 0], sampling=SamplingConfig(max_new_tokens=2))])
        template = ChatTemplate(tokenizer)
        return [
            Served(name="bench", engine=engine, tokenizer=tokenizer, template=template, created=0, step=0)
        ]

    config = ServeConfig(port=0, slots=SLOTS)
    listener = bind(config)
    ready = lambda url, worker: print(url, flush=True)  # noqa: E731 - one line for the other process
    Server(Worker(load, config), config, listener, ready).run(sockets=[listener])


@dataclass
class Found:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    left: int = 0
    wrong: int = 0
    lost: int = 0


async def ask(port: int, body: dict[str, object], way: str, expected: list[int], found: Found) -> None:
    """One request on a connection of its own."""
    data = json.dumps({**body, "stream": way != "whole", "return_token_ids": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    started, ids, ended = time.perf_counter(), [], False
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(head.encode() + data)
        right = (await reader.readline()).split()[1] == b"200"
        while await reader.readline() not in (b"\r\n", b""):
            pass
        if way == "whole":
            answer = json.loads(await reader.read())
            ids, ended = answer["choices"][0]["token_ids"] if right else [], right
        async for line in reader:
            if line.startswith(b"data: {"):
                if not ids:
                    found.first.append(time.perf_counter() - started)
                ids += json.loads(line[6:])["choices"][0]["token_ids"]
                if way == "leave" and len(ids) >= 8:
                    found.left += 1
                    found.wrong += ids != expected[: len(ids)]
                    return
            ended |= line.startswith(b"data: [DONE]")
    except (OSError, ValueError, KeyError, IndexError):
        ended = False
    finally:
        writer.close()
    found.answers += 1
    found.lost += not ended
    found.wrong += ended and ids != expected
    found.tokens += len(ids)
    found.seconds.append(time.perf_counter() - started)


async def load_test(
    port: int, clients: int, seconds: float, expected: list[list[int]]
) -> tuple[Found, float]:
    found, started = Found(), time.perf_counter()

    async def client(number: int) -> None:
        turn = number
        while time.perf_counter() - started < seconds:
            kind = turn % KINDS
            await ask(port, asked(kind), WAYS[turn % len(WAYS)], expected[kind], found)
            turn += clients + 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return found, time.perf_counter() - started


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--dry", action="store_true", help="save nothing")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    model, tokenizer = build()
    requests = [request(asked(number)) for number in range(KINDS)]
    alone = Engine(model, tokenizer, slots=1).run(requests)
    expected = [[token.token_id for token in result.choices[0].tokens] for result in alone]
    started = time.perf_counter()
    Engine(model, tokenizer, slots=SLOTS).run(requests)
    engine_rate = sum(map(len, expected)) / (time.perf_counter() - started)
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline().rpartition(":")[2])
            found, took = asyncio.run(load_test(port, arguments.clients, arguments.seconds, expected))
            gauges = asyncio.run(get(port, "/metrics"))
        finally:
            server.terminate()
    busy = [
        line for line in gauges.splitlines() if line.startswith(("scratchlm_running", "scratchlm_in_flight"))
    ]
    quantiles = [statistics.quantiles(values, n=100) for values in (found.seconds, found.first)]
    row = {
        "what": "serve",
        "answers": found.answers,
        "left": found.left,
        "wrong": found.wrong,
        "lost": found.lost,
        "answers_per_second": found.answers / took,
        "tokens_per_second": found.tokens / took,
        "engine_tokens_per_second": engine_rate,
        **{f"answer_seconds_p{p}": quantiles[0][p - 1] for p in (50, 99)},
        **{f"first_token_seconds_p{p}": quantiles[1][p - 1] for p in (50, 99)},
    }
    console = Console()
    for name, value in row.items():
        console.print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value}")
    console.print("still under way afterwards:", ", ".join(line.rpartition(" ")[2] for line in busy))
    setup = {"clients": arguments.clients, "seconds": arguments.seconds, "slots": SLOTS, "threads": 1}
    if not arguments.dry:
        console.print(f"saved to {harness.save('serve', [row], **setup)}")
    if found.wrong or found.lost:
        sys.exit(f"{found.wrong} wrong answers, {found.lost} lost")


if __name__ == "__main__":
    main()
