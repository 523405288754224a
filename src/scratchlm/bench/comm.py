r"""Collective calls, sizes and numbers of processes come in; times, bandwidths and their line go out.

                     each process has     has afterwards         bus bytes a process, S bytes in all
    all_reduce       S bytes              the sum of all         2 (N - 1) / N * S
    all_gather       its piece, S / N     all N pieces           (N - 1) / N * S
    reduce_scatter   S bytes              its piece of the sum   (N - 1) / N * S
    all_to_all       S bytes              a piece of each        (N - 1) / N * S

    algorithm bandwidth = S / t        bus bandwidth = bus bytes / t        line: t = latency + bus bytes / w

Algorithm bandwidth says how long a gradient of S bytes takes; bus bandwidth says what the wire carries if the
messages go around a ring, which is the least that any algorithm can send, so it may be compared between calls
and numbers of processes. A time is that of the slowest process, from a common start; of several calls the
median counts. All processes are on this machine: gloo's bytes go over the loopback interface, nccl's between
GPUs.

Source: NVIDIA, https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md (both bandwidths); the
grid is that of Stanford CS336, assignment 2, distributed_communication_single_node.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, distributed

from scratchlm.bench.group import Report, read_group
from scratchlm.bench.overhead import Cost, fit
from scratchlm.bench.parallel import device_of
from scratchlm.bench.tables import Status, Table, milliseconds, size
from scratchlm.config import Config
from scratchlm.distributed.collectives import all_gather, backend_reduce_scatter
from scratchlm.distributed.process import ProcessError, Processes
from scratchlm.hardware import synchronize
from scratchlm.train.plan import free_memory

Call = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
CALLS: tuple[Call, ...] = get_args(Call)
SIZES_MB = (0.01, 1.0, 10.0, 100.0, 1000.0)
"""Of the handout, in 10^6 bytes, and a small one: most of its time is the latency."""
COPIES = 4
"""Times S that a process needs at most: the tensor, the pieces, and what gloo keeps while it works (measured
up to 2 S for reduce_scatter among 4 processes)."""
FLOAT32 = 4
"""Bytes of a number."""


class CommCase(Config):
    """One row of the table."""

    backend: str = "gloo"
    """gloo or nccl."""
    world_size: int = Field(2, ge=1)
    """Processes."""
    call: Call = "all_reduce"
    """What is measured."""
    num_bytes: int = Field(1_000_000, ge=FLOAT32)
    """S above, float32; rounded up to a number that all processes can share."""

    def __str__(self) -> str:
        """A few words, for somebody who waits."""
        words = self.call.replace("_", "-")
        return f"{words}, {size(self.num_bytes)}, {self.world_size} processes, {self.backend}"

    @property
    def bus_share(self) -> float:
        """Bus bytes a process for each byte of S."""
        share = (self.world_size - 1) / self.world_size
        return 2 * share if self.call == "all_reduce" else share


class CommGroup(Config):
    """All that one group of processes measures."""

    cases: tuple[CommCase, ...]
    warmup: int
    steps: int
    limit: float


class CommResult(Config):
    """One measured case."""

    case: CommCase
    status: Status = "measured"
    note: str = ""
    """Why nothing was measured."""
    calls: int = 0
    """Calls that count."""
    median_ms: float | None = None
    """Of the slowest process."""
    std_ms: float | None = None
    algorithm_bytes_per_second: float | None = None
    bus_bytes_per_second: float | None = None


CASE = CommGroup


def cases(
    calls: Iterable[Call], *, world_sizes: Iterable[int], sizes_mb: Iterable[float], backends: Iterable[str]
) -> list[CommCase]:
    """Return every combination, those of one group of processes together."""
    calls, sizes = list(calls), sorted(sizes_mb)
    return [
        CommCase(backend=backend, world_size=number, call=call, num_bytes=round(1e6 * megabytes))
        for backend in backends
        for number in world_sizes
        for call in calls
        for megabytes in sizes
    ]


def run_cases(
    chosen: Iterable[CommCase],
    *,
    warmup: int = 5,
    steps: int = 20,
    limit: float = 5.0,
    starting: Callable[[CommCase], None] = lambda case: None,
) -> Iterator[CommResult]:
    """Measure the cases, one group of processes after the other.

    Args:
        chosen: What to measure.
        warmup: Calls before the first that counts.
        steps: Calls that count.
        limit: Seconds for each case, after which fewer calls have to do.
        starting: Called before each measurement.
    """
    groups: dict[tuple[str, int], list[CommCase]] = {}
    for case in chosen:
        groups.setdefault((case.backend, case.world_size), []).append(case)
    for (backend, world_size), members in groups.items():
        there = [case for case in members if not _obstacle(case)]
        waiting = iter(members)
        group = CommGroup(cases=tuple(there), warmup=warmup, steps=steps, limit=limit)
        found = read_group("comm", group, world_size=world_size, backend=backend) if there else iter(())
        for case in waiting:
            starting(case)
            status, note = _obstacle(case) or ("measured", "")
            if status != "measured":
                yield CommResult(case=case, status=status, note=note)
                continue
            try:
                yield CommResult.model_validate(next(found))
            except ProcessError as error:  # this group is lost, the others are not
                yield from (
                    CommResult(case=lost, status="failed", note=str(error)) for lost in [case, *waiting]
                )


def _obstacle(case: CommCase) -> tuple[Status, str] | None:
    """Why a case cannot run here, if so."""
    if case.backend == "nccl":
        there = torch.cuda.device_count()
        if there < case.world_size:
            return "not here", f"nccl: {case.world_size} processes need {case.world_size} GPUs, {there} found"
        return None
    needed, free = COPIES * case.num_bytes * case.world_size, free_memory(torch.device("cpu"))
    if needed > free:
        return "out of memory", f"needs about {size(needed)}, {size(free)} are free"
    return None


def work(group: CommGroup, processes: Processes, report: Report) -> None:
    """Measure all cases; on every process."""
    device = device_of(processes)
    for case in group.cases:
        seconds = time_call(case, device, warmup=group.warmup, steps=group.steps, limit=group.limit)
        median = statistics.median(seconds)
        total = _numel(case) * FLOAT32
        found = CommResult(
            case=case,
            calls=len(seconds),
            median_ms=1e3 * median,
            std_ms=1e3 * statistics.stdev(seconds) if len(seconds) > 1 else 0.0,
            algorithm_bytes_per_second=total / median,
            bus_bytes_per_second=case.bus_share * total / median,
        )
        report(found.model_dump(mode="json"))


def time_call(case: CommCase, device: torch.device, *, warmup: int, steps: int, limit: float) -> list[float]:
    """Return the seconds that each of several calls took on the slowest process; all processes call it."""
    call = _prepared(case, device)
    for _ in range(warmup):
        longest = _slowest([_time_once(call, device)], device)[0]
        if warmup * longest > limit:
            break
    longest = _slowest([_time_once(call, device)], device)[0]
    return _slowest(
        [_time_once(call, device) for _ in range(max(1, min(steps, int(limit / longest))))], device
    )


def _prepared(case: CommCase, device: torch.device) -> Callable[[], Any]:
    """The call, on zeros: their sum never overflows, however often it is called.

    All are the backend's own; distributed/collectives.py makes a faster reduce-scatter of gloo's all-to-all.
    """
    everything = torch.zeros(_numel(case), device=device)
    if case.call == "all_reduce":
        return lambda: distributed.all_reduce(everything, async_op=True)
    if case.call == "all_to_all":
        received = torch.zeros_like(everything)
        return lambda: distributed.all_to_all_single(received, everything, async_op=True)
    piece = torch.zeros(len(everything) // case.world_size, device=device)
    if case.call == "all_gather":
        return lambda: all_gather(everything, piece)
    return lambda: backend_reduce_scatter(piece, everything)


def _numel(case: CommCase) -> int:
    return -(-case.num_bytes // FLOAT32 // case.world_size) * case.world_size


def _time_once(call: Callable[[], Any], device: torch.device) -> float:
    distributed.barrier()
    synchronize(device)
    started = time.perf_counter()
    call().wait()
    synchronize(device)
    return time.perf_counter() - started


def _slowest(seconds: list[float], device: torch.device) -> list[float]:
    worst: Tensor = torch.tensor(seconds, dtype=torch.float64, device=device)
    distributed.all_reduce(worst, distributed.ReduceOp.MAX)
    return worst.tolist()


def costs(results: Iterable[CommResult]) -> dict[tuple[str, int, str], Cost]:
    """Return the fitted line over bus bytes for each (backend, processes, call) with two sizes or more."""
    points: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for result in results:
        if result.median_ms is not None and result.case.world_size > 1:
            case, total = result.case, _numel(result.case) * FLOAT32
            key = case.backend, case.world_size, case.call
            points.setdefault(key, []).append((case.bus_share * total, result.median_ms / 1e3))
    fitted = {key: fit(found) for key, found in points.items()}
    return {key: cost for key, cost in fitted.items() if cost is not None}


def tables(results: list[CommResult]) -> list[Table]:
    """Return a table of the cases and one of the fitted lines."""
    if not results:
        return []
    lines = costs(results)
    header = ["call", "processes", "backend", "size", "time", "algorithm", "bus", "line foretells"]
    rows = [[*_labels(result), *_figures(result, lines)] for result in results]
    backends = " and ".join(dict.fromkeys(result.case.backend for result in results))
    made = [Table(f"Collective calls over {backends}", header, rows, 3)]
    if lines:
        fitted = [
            [
                call.replace("_", "-"), str(world_size), backend,
                f"{milliseconds(1e3 * cost.per_call)} ms", f"{size(cost.bytes_per_second)}/s",
            ]
            for (backend, world_size, call), cost in lines.items()
        ]  # fmt: skip
        title = "time = latency + bus bytes / bandwidth, fitted"
        made.append(Table(title, ["call", "processes", "backend", "latency", "bandwidth"], fitted, 3))
    return made


def _labels(result: CommResult) -> list[str]:
    case = result.case
    return [case.call.replace("_", "-"), str(case.world_size), case.backend, size(case.num_bytes)]


def _figures(result: CommResult, lines: dict[tuple[str, int, str], Cost]) -> list[str]:
    if result.median_ms is None:
        return [
            result.status if result.status != "out of memory" else f"out of memory: {result.note}",
            "",
            "",
            "",
        ]
    case = result.case
    cost = lines.get((case.backend, case.world_size, case.call))
    foretold = cost.seconds(case.bus_share * case.num_bytes) if cost else None
    return [
        f"{milliseconds(result.median_ms)} ms",
        f"{size(result.algorithm_bytes_per_second or 0)}/s",
        f"{size(result.bus_bytes_per_second or 0)}/s",
        "" if foretold is None else f"{milliseconds(1e3 * foretold)} ms",
    ]
