"""Several processes on this machine: collective calls, data parallelism, sharding, in paired rounds.

The same measurements as `scratchlm bench comm`, `ddp` and `shards` (src/scratchlm/bench), with fixed shapes.
All ways of a table take turns in one group of processes, each round gives one ratio, medians are kept. Two
shapes: "usual" computes enough to hide messages behind (1,024 tokens for each process and step), "short" does
not (64 tokens).

    python benchmarks/bench_distributed.py [comm] [ddp] [shards] [--rounds 15]       all three by default

All three take about fifteen minutes on two cores that have nothing else to do; with 5 rounds, seven.
"""

import argparse
from collections.abc import Iterable
from typing import Any

import harness
from rich.console import Console

from scratchlm import runtime
from scratchlm.bench import comm, ddp, shards
from scratchlm.bench.cases import size_of
from scratchlm.bench.parallel import DATA_PARALLEL_WAYS, SHARDED_WAYS, ParallelCase, run_group
from scratchlm.bench.tables import Table, markdown
from scratchlm.config import Config
from scratchlm.model import accounting

MODEL = {"d_model": 256, "num_layers": 4, "num_heads": 8, "d_ff": 768, "vocab_size": 4096}
SHAPES = {"usual": {"context_length": 256, "batch": 4}, "short": {"context_length": 64, "batch": 1}}
WORLD_SIZES = (2, 4)
ROUNDS = {"usual": 1, "short": 2}
"""Times the rounds asked for: short steps are noisier and cost less."""


def shape(name: str, world_size: int) -> ParallelCase:
    settings = size_of("tiny", MODEL | {"context_length": SHAPES[name]["context_length"]})
    batch = SHAPES[name]["batch"]
    return ParallelCase(model=name, settings=settings, batch=batch, world_size=world_size)


def bench_comm(rounds: int) -> None:
    cases = comm.cases(comm.CALLS, world_sizes=WORLD_SIZES, sizes_mb=comm.SIZES_MB, backends=["gloo"])
    results = list(comm.run_cases(cases, steps=rounds, starting=say))
    keep("comm", results, comm.tables(results))
    rows = [
        {"part": "comm line", "backend": backend, "world_size": world_size, "call": call, **cost._asdict()}
        for (backend, world_size, call), cost in comm.costs(results).items()
    ]
    harness.save("distributed", rows)


def bench_ddp(rounds: int) -> None:
    for name in SHAPES:
        case = shape(name, 2)
        sweep = ddp.usual_sweep(4 * num_parameters(case))
        group = ddp.candidates(case, DATA_PARALLEL_WAYS, sweep)
        group = group.model_copy(update={"rounds": rounds * ROUNDS[name], "steps": 1})
        results = list(run_group("ddp", group, starting=say))
        keep("ddp", results, ddp.tables(results))


def bench_shards(rounds: int) -> None:
    for name in SHAPES:
        for world_size in WORLD_SIZES:
            group = shards.candidates(shape(name, world_size), SHARDED_WAYS)
            group = group.model_copy(update={"rounds": rounds * ROUNDS[name], "steps": 1})
            results = list(run_group("shards", group, starting=say))
            keep("shards", results, shards.tables(results))


def num_parameters(case: ParallelCase) -> int:
    return accounting.num_parameters(case.settings)


def say(what: object) -> None:
    Console(stderr=True).print(f"  {what}", style="dim", highlight=False)


def keep(part: str, results: Iterable[Config], tables: list[Table]) -> None:
    rows: list[dict[str, Any]] = []
    for result in results:
        found = result.model_dump(mode="json")
        rows.append({"part": part} | found.pop("case") | found)
    harness.save("distributed", rows)
    Console().print(markdown(tables), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    benches = {"comm": bench_comm, "ddp": bench_ddp, "shards": bench_shards}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(benches))
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(benches):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(benches)}.")
    runtime.set_threads()
    for name in asked.parts or benches:
        benches[name](asked.rounds)


if __name__ == "__main__":
    main()
