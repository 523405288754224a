r"""Ways of data parallelism come in; their step times go out, split in computing and waiting for others.

    alone        | forward | backward       | optimizer |            nobody communicates: computing
    flat         | forward | backward       |~~~ all-reduce ~~~| optimizer |
    bucketed     | forward | backward       |~~| optimizer |         the last bucket is seen, the rest hidden
                               ~~~~ ~~~~ ~~~

    not hidden = step - computing, both of the slowest process in the same round

All ways take turns in one group of processes, so a noisy machine disturbs them alike, and each round gives
one ratio to torch's own; medians are reported. The same processes then time all-reduces of several sizes, and
from the line through them (overhead.py) the bucket sizes of the sweep are foretold: for buckets that hide
behind backward, and for none that do. Every process has `batch` rows, whatever their number.

Source: Stanford CS336 (2025), assignment 2, ddp_bucketed_benchmarking and the problems before it.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence

import torch

from scratchlm.bench import comm
from scratchlm.bench.group import Report
from scratchlm.bench.overhead import Cost, fit
from scratchlm.bench.parallel import (
    Parallel,
    ParallelCase,
    ParallelGroup,
    build,
    device_of,
    make_objective,
    random_batch,
    slowest_seconds,
    title,
)
from scratchlm.bench.tables import Table, milliseconds, size
from scratchlm.config import Config
from scratchlm.distributed.buckets import BucketSize
from scratchlm.distributed.ddp import Bucketed
from scratchlm.distributed.process import Processes

ALONE, TORCH = "alone", "torch"
"""What all are compared with: no communication, and torch's DDP as it comes."""
SWEEP_MB = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Sizes of buckets that are tried, as far as there are gradients to fill them."""
MESSAGE_SHARES = (1e-3, 1e-2, 1e-1, 1.0)
"""All-reduces that are timed for the line, as shares of all gradients."""
MESSAGE_CALLS, MESSAGE_SECONDS = 20, 2.0
"""How often each of them counts, and for how long."""


class DdpResult(Config):
    """One way, measured beside the others."""

    case: ParallelCase
    gradient_bytes: int
    """s: what travels once a step."""
    buckets: int | None = None
    """b: messages a step; None where torch does not tell."""
    rounds: int
    """Measurements of which these are the medians."""
    step_ms: float
    """A whole step of the slowest process."""
    computing_ms: float
    """The same without any communication."""
    waiting_ms: float
    """The difference: communication that is not hidden."""
    ratio: float | None = None
    """To torch's step, round by round."""
    per_call_ms: float | None = None
    """o: what one all-reduce costs whatever its size."""
    bytes_per_second: float | None = None
    """w: gradients that are reduced in a second beyond that."""

    @property
    def cost(self) -> Cost | None:
        """The line through the all-reduces of the same processes."""
        if self.per_call_ms is None or self.bytes_per_second is None:
            return None
        return Cost(self.per_call_ms / 1e3, self.bytes_per_second)


CASE, RESULT = ParallelGroup, DdpResult
"""What `run_group` sends to the processes of this file's `work`, and what comes back."""


def candidates(case: ParallelCase, ways: Iterable[str], sweep_mb: Iterable[BucketSize]) -> ParallelGroup:
    """Return what takes turns: `alone`, the ways, and `bucketed` with every size of the sweep."""
    named = [case.model_copy(update={"way": way}) for way in dict.fromkeys([ALONE, *ways])]
    swept = [case.model_copy(update={"way": "bucketed", "bucket_mb": limit}) for limit in sweep_mb]
    return ParallelGroup(cases=tuple(dict.fromkeys([*named, *swept])))


def usual_sweep(gradient_bytes: int) -> list[BucketSize]:
    """Return the sizes worth trying: those below all gradients, and one bucket for all.

    Example: 22 MB of gradients -> 0.1, 0.3, 1, 3, 10, None.
    """
    return [*(limit for limit in SWEEP_MB if limit * 1e6 < gradient_bytes), None]


def work(group: ParallelGroup, processes: Processes, report: Report) -> None:
    """Let all candidates take turns; on every process."""
    device = device_of(processes)
    batch = random_batch(group.cases[0], device, processes.rank)
    built = [build(case.way, make_objective(case, device), bucket_mb=case.bucket_mb) for case in group.cases]
    report({"next": "warming up"})
    for way, _ in itertools.product(built, range(group.warmup)):
        way.step(batch)
    seconds = take_turns([lambda way=way: way.step(batch) for way in built], group, device, report)
    gradient_bytes = sum(p.nbytes for p in built[0].parameters() if p.requires_grad)
    report({"next": "all-reduces alone"})
    cost = _all_reduces(group.cases[0], gradient_bytes, device)
    for case, way, times in zip(group.cases, built, seconds, strict=True):
        found = DdpResult(
            case=case,
            gradient_bytes=gradient_bytes,
            buckets=_messages(case, way),
            rounds=group.rounds,
            per_call_ms=1e3 * cost.per_call if cost else None,
            bytes_per_second=cost.bytes_per_second if cost else None,
            **_compared(group.cases, seconds, times),
        )
        report(found.model_dump(mode="json"))


def take_turns(
    steps: Sequence[Callable[[], object]], group: ParallelGroup, device: torch.device, report: Report
) -> list[list[float]]:
    """Return each candidate's seconds a step, one for each round; every other round runs backwards.

    A machine that warms up or is disturbed for a while would otherwise always favour the same neighbours.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(group.rounds):
        report({"next": f"round {number + 1} of {group.rounds}"})
        order = list(enumerate(steps))
        for place, step in order if number % 2 == 0 else order[::-1]:
            several = slowest_seconds(lambda step=step: [step() for _ in range(group.steps)], device)
            seconds[place].append(several / group.steps)
    return seconds


def _compared(
    cases: Sequence[ParallelCase], seconds: list[list[float]], times: list[float]
) -> dict[str, float | None]:
    ways = [case.way for case in cases]
    alone = seconds[ways.index(ALONE)]
    torchs = seconds[ways.index(TORCH)] if TORCH in ways else None
    return {
        "step_ms": 1e3 * statistics.median(times),
        "computing_ms": 1e3 * statistics.median(alone),
        "waiting_ms": 1e3 * statistics.median(a - b for a, b in zip(times, alone, strict=True)),
        "ratio": torchs and statistics.median(a / b for a, b in zip(times, torchs, strict=True)),
    }


def _all_reduces(case: ParallelCase, num_bytes: int, device: torch.device) -> Cost | None:
    """The line through all-reduces of these processes, over the bytes of the gradients in them."""
    points = []
    for share in MESSAGE_SHARES:
        message = comm.CommCase(
            backend=case.backend, world_size=case.world_size, num_bytes=max(4, round(share * num_bytes))
        )
        times = comm.time_call(message, device, warmup=2, steps=MESSAGE_CALLS, limit=MESSAGE_SECONDS)
        points.append((float(message.num_bytes), statistics.median(times)))
    return fit(points)


def _messages(case: ParallelCase, way: Parallel) -> int | None:
    if isinstance(way.module, Bucketed):
        return len(way.module.buckets)
    if case.way == "per_parameter":
        return sum(parameter.requires_grad for parameter in way.parameters())
    return {ALONE: 0, "flat": 1}.get(case.way)


def tables(results: list[DdpResult]) -> list[Table]:
    """Return a table of the ways and, where several sizes of buckets were tried, one of the sweep."""
    if not results:
        return []
    first = results[0]
    named = {result.case.way: result for result in reversed(results)}  # of several, the first
    ways = [result for result in results if named[result.case.way] is result]
    swept = [result for result in results if result.case.way == "bucketed"]
    rows = [
        [
            result.case.way, _count(result.buckets), f"{milliseconds(result.step_ms)} ms",
            "" if result.case.way == ALONE else f"{milliseconds(result.waiting_ms)} ms",
            "" if result.ratio is None else f"{result.ratio:.2f}x",
        ]
        for result in ways
    ]  # fmt: skip
    about = f"{title(first.case)}; gradients {size(first.gradient_bytes)}"
    header = ["way", "messages", "step", "not hidden", "to torch"]
    made = [Table(about, header, rows, 1)]
    if len(swept) > 1 and first.cost is not None:
        made.append(_sweep(sorted(swept, key=lambda result: -(result.buckets or 0)), first.cost))
    return made


def _sweep(results: list[DdpResult], cost: Cost) -> Table:
    num_bytes = results[0].gradient_bytes
    rows = []
    for result in results:
        limit, count = result.case.bucket_mb, result.buckets or 1
        rows.append(
            [
                {None: "no limit", "auto": "auto"}.get(limit) or size(1e6 * limit), str(count),
                f"{milliseconds(result.step_ms)} ms", f"{milliseconds(result.waiting_ms)} ms",
                f"{milliseconds(1e3 * cost.last_bucket(num_bytes, count))} ms",
                f"{milliseconds(1e3 * cost.nothing_hidden(num_bytes, count))} ms",
            ]
        )  # fmt: skip
    about = (
        f"Buckets: s = {size(num_bytes)}, w = {size(cost.bytes_per_second)}/s, "
        f"o = {milliseconds(1e3 * cost.per_call)} ms; least by the formula: "
        f"{size(cost.best_bucket_bytes(num_bytes))}"
    )
    header = ["bucket", "messages b", "step", "not hidden", "s / (b w) + b o", "s / w + b o"]
    best = min(range(len(rows)), key=lambda row: results[row].step_ms)
    return Table(about, header, rows, 1, frozenset({(best, 2)}))


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
