"""Planned steps against real ones on this machine: the formulas of `scratchlm plan --gpus`.

Measured here: what a call costs and a byte (bench/comm.py), and a step in which nobody communicates. Foretold
from these: a step of each layout, by the messages of train/layouts.py. Then the real steps take turns.

    nothing hidden    step = alone + all messages
    best              step = alone + those that no backward pass hides: last bucket, first gather, broadcasts

On a CPU nothing is hidden, since the cores that compute also send: a real step is near the first line.

    python benchmarks/bench_cluster.py [--processes 2] [--rounds 10]      two minutes on two quiet cores
"""

import argparse
from typing import NamedTuple

import harness
from rich.console import Console
from rich.table import Table

from scratchlm.bench import comm, shards
from scratchlm.bench.cases import size_of
from scratchlm.bench.overhead import Cost
from scratchlm.bench.parallel import ParallelCase, run_group
from scratchlm.train.layouts import Layout, Messages, messages_of, sizes_of
from scratchlm.train.messages import Message

MODEL = {"d_model": 256, "num_layers": 4, "num_heads": 8, "d_ff": 768, "vocab_size": 4096}
SHAPES = {"usual": {"context_length": 256, "batch": 4}, "short": {"context_length": 64, "batch": 1}}
"""As bench_distributed.py: computes enough to hide messages behind, or does not."""
LAYOUTS = {"bucketed": "ddp", "zero1": "zero1", "zero2": "zero2", "fsdp2": "fsdp2"}
"""Way of bench/parallel.py -> layout."""
CALLS = {"reduce": "reduce-scatter", "broadcast": "all-gather"}
"""What bench/comm.py does not measure, and what sends as much."""
SIZES_MB = (1.0, 4.0, 16.0)


class Step(NamedTuple):
    """A real step and what was foretold of it, in milliseconds."""

    shape: str
    way: str
    alone_ms: float
    nothing_hidden_ms: float
    best_ms: float
    measured_ms: float


def call_costs(processes: int, rounds: int) -> dict[str, Cost]:
    """What each kind of call costs between so many processes."""
    cases = comm.cases(comm.CALLS, world_sizes=[processes], sizes_mb=SIZES_MB, backends=["gloo"])
    results = list(comm.run_cases(cases, steps=rounds))
    return {call.replace("_", "-"): cost for (_, _, call), cost in comm.costs(results).items()}


def foretell(found: Messages, costs: dict[str, Cost]) -> tuple[float, float]:
    """Seconds of all messages of a step, and of those that nothing could hide."""

    def seconds(message: Message, num_bytes: float, calls: int) -> float:
        cost = costs[CALLS.get(message.kind, message.kind)]
        share = num_bytes / message.num_bytes
        return message.sent_bytes * share / cost.bytes_per_second + calls * cost.per_call

    hidden = (*found.forward, *found.backward, *found.last_backward)
    after = sum(seconds(message, message.num_bytes, message.calls) for message in found.update)
    everything = sum(seconds(message, message.num_bytes, message.calls) for message in hidden)
    return everything + after, after + sum(seconds(message, message.bare_bytes, 1) for message in hidden)


def compare(shape: str, processes: int, rounds: int, costs: dict[str, Cost]) -> list[Step]:
    """Time one shape's layouts in turns and say what was foretold of each."""
    context, batch = SHAPES[shape]["context_length"], SHAPES[shape]["batch"]
    settings = size_of("tiny", MODEL | {"context_length": context})
    case = ParallelCase(model=shape, settings=settings, batch=batch, world_size=processes)
    group = shards.candidates(case, ["alone", *LAYOUTS]).model_copy(update={"rounds": rounds})
    times = {result.case.way: result.step_ms for result in run_group("shards", group)}
    sizes, steps = sizes_of(settings, whole_bytes=4), []
    for way, name in LAYOUTS.items():
        layout = Layout(name, processes, processes if name == "fsdp2" else 1)
        everything, bare = foretell(messages_of(layout, sizes), costs)
        alone = times["alone"]
        steps.append(Step(shape, way, alone, alone + 1e3 * everything, alone + 1e3 * bare, times[way]))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    costs = call_costs(given.processes, given.rounds)
    steps = [step for shape in SHAPES for step in compare(shape, given.processes, given.rounds, costs)]
    table = Table(title=f"Steps of {given.processes} processes (ms, medians of {given.rounds} rounds)")
    for column in (*Step._fields, "measured / nothing hidden"):
        table.add_column(column.replace("_ms", "").replace("_", " "))
    for step in steps:
        figures = [f"{value:.1f}" if isinstance(value, float) else value for value in step]
        table.add_row(*figures, f"{step.measured_ms / step.nothing_hidden_ms:.2f}")
    Console().print(table)
    rows = [step._asdict() | {"ratio": step.measured_ms / step.nothing_hidden_ms} for step in steps]
    harness.save("cluster", rows, processes=given.processes, rounds=given.rounds)


if __name__ == "__main__":
    main()
