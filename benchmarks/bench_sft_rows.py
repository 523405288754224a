"""Training tokens per second of SFT with conversations packed into rows, and with one padded row each.

The same conversations, the same model, the same step (16 conversations, AdamW); the two take turns in one
process. Lengths are spread as those of an instruction set: exponentially with the mean given here, cut off at
the row's length. What counts is a conversation's own tokens: padding is work, not speed.

    mean 60, rows of 256     Alpaca's and Dolly's questions with short answers, in our tokens
    mean 150, rows of 256    longer answers: a third of the conversations is more than half a row

    python benchmarks/bench_sft_rows.py [--threads N] [--rounds N]
"""

import argparse
import time
from collections.abc import Callable

import harness
import numpy as np
import torch
from rich.console import Console

from scratchlm.distributed.engine import OneProcess, Work
from scratchlm.distributed.process import Processes
from scratchlm.model import MODELS, ModelConfig
from scratchlm.optim.adamw import AdamW
from scratchlm.posttrain.config import SftConfig
from scratchlm.posttrain.packing import Arrangement, ConversationLoader, ConversationSet, Written
from scratchlm.posttrain.sft import SftObjective
from scratchlm.train.guard import Guard, GuardConfig
from scratchlm.train.trainer import Execution, Trainer

PER_STEP, ROOM, STEPS, VOCABULARY = 16, 256, 2, 2048
MEANS = (60, 150)


def conversations(mean: int, number: int = 512) -> ConversationSet:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.exponential(mean, number).astype(int), 12, ROOM)
    written = []
    for length in lengths:
        mask = np.arange(length + 1) > length // 2
        written.append(Written(draw.integers(0, VOCABULARY, length + 1), mask, 0))
    return ConversationSet(written)


def trainer_of(data: ConversationSet, arrangement: Arrangement) -> Trainer:
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "d_model": 192,
        "num_layers": 3,
        "num_heads": 4,
        "context_length": ROOM,
    }
    model = MODELS.build("transformer", ModelConfig(**settings))
    how = Execution(torch.device("cpu"), "float32", False, PER_STEP)
    config = SftConfig(
        name="bench", base=".", train={"steps": 1}, data={"name": "alpaca", "paths": [__file__]}
    )
    engine = OneProcess()
    objective = SftObjective(model, how, config, micro_tokens=PER_STEP * ROOM)
    engine.wrap(Work(model, objective), Processes())
    loader = ConversationLoader(
        data, PER_STEP, max_tokens=ROOM, arrangement=arrangement, padding_id=0, seed=0
    )
    optimizer = AdamW(model.parameters(), lr=1e-4)
    guard = Guard(GuardConfig())
    return Trainer(
        engine,
        optimizer,
        lambda step: 1.0,
        loader,
        rows_per_step=PER_STEP,
        grad_clip=1.0,
        execution=how,
        guard=guard,
    )


def rate(trainer: Trainer) -> Callable[[], float]:
    step = 0

    def measure() -> float:
        nonlocal step
        objective = trainer.engine.loss
        before, start = objective.num_tokens, time.perf_counter()
        for _ in range(STEPS):
            trainer.step(step)
            step += 1
        return (objective.num_tokens - before) / (time.perf_counter() - start)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    for mean in MEANS:
        data = conversations(mean)
        sides = {}
        for name in ("padded", "packed"):
            trainer = trainer_of(data, name)
            batch = trainer.batches.loader.rows(0, 0, PER_STEP)
            filled = float((batch.documents < 2**30).float().mean())
            console.print(
                f"mean {mean}, {name}: {tuple(batch.inputs.shape)} ids in a step, {filled:.0%} filled"
            )
            sides[name] = rate(trainer)
            sides[name]()  # warm
        rates = harness.alternate(sides, rounds=arguments.rounds)
        setup = {"mean": mean, "room": ROOM, "per_step": PER_STEP, "threads": torch.get_num_threads()}
        harness.report("sft_rows", "tokens/s", rates, **setup)


if __name__ == "__main__":
    main()
