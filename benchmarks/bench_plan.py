"""The plan against what happened: memory and time of short runs, each planned and trained in fresh processes.

For every shape, in turns: `make_plan(probe=True)` in one process, the run itself (data, training, validation,
checkpoints) in another. Reported are planned / measured: the median of the rounds for time, since machines
are shared, and the worst round for memory. The goal is 0.8 to 1.2.

    memory    the process's high-water mark at the end of the run, against Plan.memory_bytes
    time      the run's training seconds, against Plan.seconds without validations; step: the median step

On a machine that others use, wall seconds of two processes cannot be compared: `--clock cpu` counts processor
seconds instead, on one core (without those of the compiler's own processes).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from rich.console import Console
from rich.table import Table

BASE = ["corpus.num_train=2000", "corpus.num_valid=100", "train.eval_every=1000000", "train.log_every=1"]
BASE += ["train.sample_every=1000000", "train.first_sample=1000000", "train.save_every=100"]
SHAPES = {
    "demo": ["train.steps=50", "train.compile=false"],
    "demo compiled": ["train.steps=300", "train.compile=true"],
    "4 x 256, vocabulary 4096": [
        "model.num_layers=4", "model.d_model=256", "model.num_heads=8", "tokenizer.vocab_size=4096",
        "train.batch_tokens=4096", "train.steps=20", "train.compile=false",
    ],
    "4 x 256 compiled": [
        "model.num_layers=4", "model.d_model=256", "model.num_heads=8", "tokenizer.vocab_size=4096",
        "train.batch_tokens=4096", "train.steps=150", "train.compile=true",
    ],
    "4 x 512, untied, float32": [
        "model.num_layers=4", "model.d_model=512", "model.num_heads=16", "model.d_ff=1344",
        "model.tied=false", "train.batch_tokens=4096", "train.steps=8", "train.compile=false",
        "train.precision=float32",
    ],
    "4 x 128, context 64, 12 rows": [
        "model.num_layers=4", "model.d_model=128", "model.num_heads=4", "model.context_length=64",
        "train.batch_tokens=768", "train.steps=200", "train.compile=false",
    ],
    "8 x 256, 4 micro-batches, Muon": [
        "model.num_layers=8", "model.d_model=256", "model.num_heads=8", "optimizer=muon",
        "train.batch_tokens=8192", "train.micro_batch_tokens=2048", "train.steps=15", "train.compile=false",
    ],
    "12 x 768, checkpointed": [
        "model.num_layers=12", "model.d_model=768", "model.num_heads=12", "train.batch_tokens=1024",
        "train.gradient_checkpointing=true", "train.steps=6", "train.compile=false",
    ],
}  # fmt: skip
"""Name -> settings over the demo recipe."""


def plan(words: list[str], folder: Path) -> dict[str, Any]:
    """Plan a prepared run; called in its own process."""
    from scratchlm import runtime
    from scratchlm.config import load
    from scratchlm.data.shards import Manifest
    from scratchlm.train import recipes
    from scratchlm.train.plan import make_plan

    runtime.set_threads()
    vocab_size = load(Manifest, folder / "data" / "train" / "manifest.json").vocab_size
    config = recipes.read("demo", words)
    made = make_plan(config, vocab_size=vocab_size, probe=True)
    parts = sum(part.num_bytes for part in made.memory)
    estimated = make_plan(config, vocab_size=vocab_size)
    return {
        "seconds": made.seconds,
        "step": made.step_seconds,
        "bytes": made.memory_bytes,
        "bytes_by_parts": parts,
        "bytes_estimated": estimated.memory_bytes,
        "seconds_estimated": estimated.seconds,
    }


def train(words: list[str], folder: Path) -> dict[str, Any]:
    """Train; called in its own process."""
    import torch

    from scratchlm.train import recipes
    from scratchlm.train.probe import peak_bytes
    from scratchlm.train.run import run

    summary = run(recipes.read("demo", words), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [row["seconds"] for row in rows if row["kind"] == "train"]
    steps = [after - before for before, after in itertools.pairwise(seconds)]
    return {
        "seconds": summary["seconds"],
        "step": statistics.median(steps),
        "bytes": peak_bytes(torch.device("cpu")),
    }


def in_own_process(what: str, words: list[str], folder: Path, clock: str = "wall") -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", what, "--clock", clock, "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} {words}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, rounds: int, clock: str) -> dict[str, Any]:
    """Plan and train one shape some times; return the row of results."""
    words, pairs = [*BASE, *SHAPES[name]], []
    with tempfile.TemporaryDirectory() as place:
        if "train.compile=true" in words:  # else the first to compile pays for the other's cache
            in_own_process("train", words, Path(place) / "warm", clock)
        for number in range(rounds):
            folder = Path(place) / str(number)
            happened = in_own_process("train", words, folder, clock)
            pairs.append((in_own_process("plan", words, folder, clock), happened))

    def ratio(planned: str, measured: str) -> list[float]:
        return [plan[planned] / run[measured] for plan, run in pairs]

    worst = max(ratio("bytes", "bytes"), key=lambda value: abs(value - 1))
    return {
        "what": "plan",
        "candidate": name,
        "rounds": rounds,
        "clock": clock,
        "memory_measured": statistics.median(run["bytes"] for _, run in pairs),
        "memory_ratio": worst,
        "memory_ratio_by_parts": statistics.median(ratio("bytes_by_parts", "bytes")),
        "memory_ratio_estimated": statistics.median(ratio("bytes_estimated", "bytes")),
        "seconds_measured": statistics.median(run["seconds"] for _, run in pairs),
        "seconds_ratio": statistics.median(ratio("seconds", "seconds")),
        "seconds_ratios": ratio("seconds", "seconds"),
        "step_measured": statistics.median(run["step"] for _, run in pairs),
        "step_ratio": statistics.median(ratio("step", "step")),
        "seconds_ratio_estimated": statistics.median(ratio("seconds_estimated", "seconds")),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="planned / measured (goal: 0.80 to 1.20)")
    for column in (
        "run",
        "peak memory",
        "planned",
        "by parts",
        "formula",
        "seconds",
        "planned",
        "step",
        "no probe",
    ):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["candidate"],
            f"{row['memory_measured'] / 1e6:,.0f} MB",
            f"{row['memory_ratio']:.2f}",
            f"{row['memory_ratio_by_parts']:.2f}",
            f"{row['memory_ratio_estimated']:.2f}",
            f"{row['seconds_measured']:.1f}",
            f"{row['seconds_ratio']:.2f}",
            f"{row['step_ratio']:.2f}",
            f"{row['seconds_ratio_estimated']:.2f}",
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="Shapes to run; all by default.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: one core, its seconds."
    )
    parser.add_argument("--save", action="store_true", help="Append to benchmarks/results.")
    parser.add_argument("--worker", choices=("plan", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        if given.clock == "cpu":
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            time.perf_counter = time.process_time
        print(json.dumps({"plan": plan, "train": train}[given.worker](given.words, given.folder)))
        return
    rows = []
    for name in given.words or SHAPES:
        rows.append(measure(name, given.rounds, given.clock))
        show(rows)
    if given.save:
        print(harness.save("plan", rows))


if __name__ == "__main__":
    main()
