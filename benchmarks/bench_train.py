"""Training tokens per second on this machine's CPU, ours against a GPT in torch's own layers, in one run.

Two shapes. "cpu": 4 layers, d_model 256, 8 heads, context 256, 16 rows a step, vocabulary 4096. "tiny", which
is nanoGPT's setting for a CPU: 4 layers, d_model 128, 4 heads, context 64, 12 rows, 65 characters. A step is
forward, loss, backward, global clipping and AdamW. Both sides get the same ids from memory; ours computes the
loss that the trainer takes (train/objective.py) and keeps freed memory as the trainer does
(runtime.keeping_freed_memory). The reference has the C library's defaults, as people run it, and once more
our treatment of memory. Each candidate lives in its own process; they take turns.

In the same rounds run matrix products in the best number format, square ones and those of the model. The
fastest is what the machine can do; the model's floating-point operations (model/accounting.py: causal half
counted as half) per second are told as a share of it. The loader reads the rows of the "cpu" shape from
shards on the disk, shuffled, without a thread of its own.

    python benchmarks/bench_train.py [cpu] [tiny] [loader]        all three by default
"""

import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np
import torch
from reference_gpt import ReferenceGPT
from rich.console import Console
from torch.nn import functional

from scratchlm import runtime
from scratchlm.data import LOADERS
from scratchlm.data.shard_writer import ShardWriter
from scratchlm.data.shards import TokenDataset
from scratchlm.model import MODELS, ModelSettings, accounting
from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.clip import clip_gradients_
from scratchlm.optim.groups import decay_groups
from scratchlm.train.config import TrainConfig
from scratchlm.train.objective import Objective

CPU = torch.device("cpu")
ROUNDS = 5
SECONDS = 1.0
"""What one measurement takes at least: short ones see the machine's hiccups, not its speed."""
KEPT = contextlib.ExitStack()
"""What holds to the end of a process."""
SQUARES = (256, 512, 1024, 2048)


class Shape(NamedTuple):
    """A model and a batch."""

    model: dict[str, int]
    vocab_size: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.rows * self.model["context_length"]

    @property
    def config(self):
        return ModelSettings(**self.model, tied=True).with_vocabulary(self.vocab_size)


SHAPES = {
    "cpu": Shape({"context_length": 256, "d_model": 256, "num_layers": 4, "num_heads": 8}, 4096, 16),
    "tiny": Shape({"context_length": 64, "d_model": 128, "num_layers": 4, "num_heads": 4}, 65, 12),
}


def ours(shape: Shape, precision: str, *, compiled: bool) -> Callable[[], None]:
    runtime.set_seed(0)
    model = MODELS.get("transformer")(shape.config)
    optimizer = OPTIMIZERS.build("adamw", decay_groups(model.named_parameters()))
    compute = Objective(
        model,
        TrainConfig(steps=1, batch_tokens=shape.tokens),
        device=CPU,
        precision=precision,
        micro_tokens=shape.tokens,
        compiled=compiled,
        end_of_text_id=0,
    )
    parameters = list(model.parameters())
    compute = torch.compile(compute, **runtime.COMPILING) if compiled else compute
    return stepper(shape, compute, optimizer, lambda: clip_gradients_(parameters, 1.0))


def reference(shape: Shape, precision: str, *, compiled: bool) -> Callable[[], None]:
    runtime.set_seed(0)
    model = ReferenceGPT(shape.vocab_size, **shape.model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def compute(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with runtime.autocast(CPU, precision):
            logits = model(inputs)
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    compute = torch.compile(compute, dynamic=False) if compiled else compute
    parameters = list(model.parameters())
    return stepper(shape, compute, optimizer, lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0))


def prepare(side: str, shape: Shape, precision: str, compiled: bool, kept: bool) -> Callable[[], float]:
    """Tokens per second of one side; `kept`: freed memory stays with the process."""
    runtime.set_seed(0)
    runtime.set_threads()
    build = {"scratchlm": ours, "reference": reference}[side]
    if kept:
        KEPT.enter_context(runtime.keeping_freed_memory())
    return rate(build(shape, precision, compiled=compiled), shape.tokens)


def stepper(
    shape: Shape,
    compute: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    clip: Callable[[], object],
) -> Callable[[], None]:
    ids = torch.randint(0, shape.vocab_size, (shape.rows, shape.model["context_length"] + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = compute(inputs, targets)
        loss.backward()
        norm = clip()
        assert all(torch.stack([loss.detach(), norm]).isfinite().tolist())  # the trainer looks, too
        optimizer.step()

    return step


def rate(work: Callable[[], object], amount: float) -> Callable[[], float]:
    """A measurement of `amount` per second of `work`, which is called for SECONDS or longer."""
    for _ in range(2):  # compiles, allocates
        work()

    def measure() -> float:
        started = time.perf_counter()
        for count in itertools.count(1):
            work()
            if (seconds := time.perf_counter() - started) >= SECONDS:
                return count * amount / seconds
        raise AssertionError

    return measure


def products(shape: Shape, precision: str) -> dict[str, Callable[[], float]]:
    """Rates of matrix products in FLOP/s: square ones, and the largest ones of the model."""
    config = shape.config
    sizes = [(n, n, n) for n in SQUARES]
    sizes += [(shape.tokens, config.d_model, n) for n in (3 * config.d_model, 2 * config.inner_width)]
    sizes += [(shape.tokens, config.d_model, config.vocab_size)]
    measures = {}
    for m, k, n in sizes:
        a = torch.randn(m, k).to(getattr(torch, precision))
        b, out = torch.randn(n, k).to(a.dtype).T, torch.empty(m, n, dtype=a.dtype)
        multiply = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        measures[f"{m} x {k} x {n}"] = rate(multiply, 2 * m * k * n)
    return measures


def bench_shape(name: str, best: str) -> None:
    shape = SHAPES[name]
    candidates = {
        "reference float32 eager": ("reference", "float32", False, False),
        f"reference {best} compiled": ("reference", best, True, False),
        f"reference {best} compiled, memory kept": ("reference", best, True, True),
        "scratchlm float32 eager": ("scratchlm", "float32", False, True),
        f"scratchlm {best} eager": ("scratchlm", best, False, True),
        f"scratchlm {best} compiled": ("scratchlm", best, True, True),
    }
    matrices = products(shape, best)
    with contextlib.ExitStack() as processes:
        measures = {
            title: processes.enter_context(harness.own_process(prepare, side, shape, *how))
            for title, (side, *how) in candidates.items()
        }
        results = harness.alternate(measures | matrices, rounds=ROUNDS)
    rates = {title: results[title] for title in candidates}
    setup = {"shape": name, **shape.model, "vocab_size": shape.vocab_size, "rows_per_step": shape.rows}
    harness.report("train", "tokens/s", rates, **setup)
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))  # noqa: E731
    middle = {title: statistics.median(results[title]) for title in matrices}
    fastest = max(middle, key=middle.__getitem__)
    flops = accounting.flops_per_token(shape.config, shape.model["context_length"])
    reached = statistics.median(rates[f"scratchlm {best} compiled"]) * flops
    rows = {
        f"scratchlm {best} compiled / reference {best} compiled": ratio(
            f"scratchlm {best} compiled", f"reference {best} compiled"
        ),
        f"scratchlm {best} compiled / reference {best} compiled, memory kept": ratio(
            f"scratchlm {best} compiled", f"reference {best} compiled, memory kept"
        ),
        f"scratchlm {best} compiled / reference float32 eager": ratio(
            f"scratchlm {best} compiled", "reference float32 eager"
        ),
        f"scratchlm {best} eager / reference float32 eager": ratio(
            f"scratchlm {best} eager", "reference float32 eager"
        ),
        f"model GFLOP/s, scratchlm {best} compiled": reached / 1e9,
        f"GFLOP/s of the fastest {best} product ({fastest})": middle[fastest] / 1e9,
        "model FLOPs as a share of that": reached / middle[fastest],
        f"milliseconds a step, scratchlm {best} compiled": 1e3
        * shape.tokens
        / statistics.median(rates[f"scratchlm {best} compiled"]),
        f"milliseconds a step, scratchlm {best} eager": 1e3
        * shape.tokens
        / statistics.median(rates[f"scratchlm {best} eager"]),
    }
    conclude(rows, **setup)


def bench_loader(best: str) -> None:
    """Rows read per second from the disk against tokens trained per second."""
    shape = SHAPES["cpu"]
    context = shape.model["context_length"]
    train = rate(ours(shape, best, compiled=True), shape.tokens)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_shards(Path(folder) / "shards", shape.vocab_size)
        measures = {f"scratchlm {best} compiled": train}
        for name in ("windows", "epochs", "documents"):
            loader, steps = LOADERS.build(name, dataset, shape.rows, context, 0), itertools.count()
            read = lambda loader=loader, steps=steps: loader.rows(next(steps), 0, shape.rows)  # noqa: E731
            measures[f"loader {name}"] = rate(read, shape.tokens)
        rates = harness.alternate(measures, rounds=ROUNDS)
    harness.report(
        "train", "tokens/s", rates, shape="loader", rows_per_step=shape.rows, context_length=context
    )


def make_shards(folder: Path, vocab_size: int, num_documents: int = 20_000) -> TokenDataset:
    """About 4 million random ids in documents of 200."""
    generator = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size=vocab_size, tokenizer_fingerprint="0" * 64) as writer:
        for _ in range(num_documents):
            ids = generator.integers(1, vocab_size, 200)
            ids[-1] = 0
            writer.add(ids, ends_document=True, num_bytes=800)
        writer.close({"end_of_text_id": 0})
    return TokenDataset.open(folder)


def conclude(figures: dict[str, float], **setup: object) -> None:
    console = Console()
    for name, value in figures.items():
        console.print(f"{name:72s} {value:10.3f}" if value < 100 else f"{name:72s} {value:10,.0f}")
    rows = ({"what": "train", "figure": name, "value": value} for name, value in figures.items())
    harness.save("train", rows, **setup)


def main(parts: list[str]) -> None:
    runtime.set_seed(0)
    runtime.set_threads()
    best = runtime.choose_precision("auto", CPU).name
    for name in SHAPES:
        if name in parts:
            bench_shape(name, best)
    if "loader" in parts:
        bench_loader(best)


if __name__ == "__main__":
    main(sys.argv[1:] or [*SHAPES, "loader"])
