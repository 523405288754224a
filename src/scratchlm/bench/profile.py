r"""A case comes in; where its time goes, by operation and by part of the model, and a trace, go out.

    steps, not profiled      -> how long a step takes
    steps under the profiler -> table of operations, table of named ranges, trace.json
    steps, memory recorded   -> memory.html                                     memory.py, memory_page.py

"self" is the time in an operation without the operations that it calls; on a GPU the time of its kernels
there. The profiler makes steps slower, small operations most: shares tell more than milliseconds. The trace
opens in https://ui.perfetto.dev or chrome://tracing. NVIDIA's nsys brings a profiler of its own, for which
`run_ranges` runs the steps with NVTX ranges alone.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scratchlm.bench.cases import StepCase, Workbench
from scratchlm.bench.clock import Timing, measure
from scratchlm.bench.ranges import module_ranges, named_range
from scratchlm.bench.tables import Table, milliseconds
from scratchlm.runtime import keeping_freed_memory, replace_atomically

SHOWN = 15
"""Rows of the table of operations."""


class Operation(NamedTuple):
    """An operation, or a named range, of one step."""

    name: str
    calls: float
    """Per step."""
    self_ms: float
    """Per step, without what it calls."""
    total_ms: float
    """Per step, with what it calls."""
    device_ms: float
    """Per step, its kernels on a GPU; 0 on a CPU."""


class Profile(NamedTuple):
    """Where the time of a step goes."""

    timing: Timing
    """Steps without the profiler."""
    operations: list[Operation]
    """By self time, or by time on the GPU where there is one; the slowest first."""
    ranges: list[Operation]
    """Phases and parts of the model, layers together, in the order of the total time."""


@keeping_freed_memory()
def profile_steps(bench: Workbench, trace: Path, *, steps: int = 3) -> Profile:
    """Time some steps, then profile as many.

    Args:
        bench: What to run.
        trace: File for the timeline, in Chrome's format.
        steps: How many.
    """
    from torch.profiler import ProfilerActivity, profile

    timing = measure(bench.run, bench.device, warmup=2, steps=steps)
    activities = [ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _ranges(bench), profile(activities=activities, acc_events=True) as profiler:
        for number in range(steps):
            with named_range(f"step {number}", bench.device):
                bench.run(lambda name: named_range(name, bench.device))
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
    with replace_atomically(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    averages = [event for event in profiler.key_averages() if "CPU" in str(event.device_type)]
    operations = [_operation(event, steps) for event in averages if not event.is_user_annotation]
    ranges = [_operation(event, steps) for event in averages if event.is_user_annotation]
    weight = _weight(operations)
    return Profile(timing, sorted(operations, key=weight, reverse=True), _together(ranges))


def run_ranges(bench: Workbench, *, steps: int = 3) -> None:
    """Run steps with NVTX ranges between cudaProfilerStart and cudaProfilerStop, for nsys.

    Raises:
        ValueError: There is no GPU to profile.
    """
    if bench.device.type != "cuda":
        raise ValueError(f"device={bench.device}: nsys and NVTX ranges need a GPU; leave out --ranges-only.")
    measure(bench.run, bench.device, warmup=2, steps=1)
    torch.cuda.profiler.start()
    with _ranges(bench):
        for number in range(steps):
            with named_range(f"step {number}", bench.device):
                bench.run(lambda name: named_range(name, bench.device))
    torch.cuda.synchronize(bench.device)
    torch.cuda.profiler.stop()


def tables(case: StepCase, found: Profile, *, shown: int = SHOWN) -> list[Table]:
    """Return the table of operations, of which `shown` and the rest as one row, and that of the ranges."""
    weight = _weight(found.operations)
    gpu = weight is _on_device
    head, rest = found.operations[:shown], found.operations[shown:]
    total = sum(map(weight, found.operations)) or 1.0
    rows = [
        [
            operation.name,
            f"{operation.calls:,.4g}",
            f"{milliseconds(weight(operation))} ms",
            f"{weight(operation) / total:.1%}",
            f"{milliseconds(operation.total_ms)} ms",
        ]
        for operation in head
    ]
    if rest:
        left = sum(map(weight, rest))
        rows.append([f"{len(rest)} others", "", f"{milliseconds(left)} ms", f"{left / total:.1%}", ""])
    ranges = [
        [part.name, f"{part.calls:,.4g}", f"{milliseconds(part.total_ms)} ms"]
        + ([f"{milliseconds(part.device_ms)} ms"] if gpu else [])
        for part in found.ranges
    ]
    header = ["operation", "calls", "on the GPU" if gpu else "self", "share", "with callees"]
    parts = ["part", "calls", "time", *(["on the GPU"] if gpu else [])]
    return [
        Table(f"{case}: operations, per step", header, rows, 1),
        Table("parts, per step", parts, ranges, 1),
    ]


def _ranges(bench: Workbench) -> contextlib.AbstractContextManager[None]:
    if bench.case.compiled:
        return contextlib.nullcontext()  # hooks would be compiled too
    return module_ranges(bench.model, bench.device)


def _operation(event: Any, steps: int) -> Operation:
    return Operation(
        event.key.removeprefix("autograd::engine::evaluate_function: "),
        event.count / steps,
        event.self_cpu_time_total / 1e3 / steps,
        event.cpu_time_total / 1e3 / steps,
        event.self_device_time_total / 1e3 / steps
        if not event.is_user_annotation
        else event.device_time_total / 1e3 / steps,
    )


def _weight(operations: list[Operation]) -> Callable[[Operation], float]:
    """What operations are sorted by: their time on the GPU where there is one, else their own on the CPU."""
    return _on_device if any(operation.device_ms for operation in operations) else _on_cpu


def _on_device(operation: Operation) -> float:
    return operation.device_ms


def _on_cpu(operation: Operation) -> float:
    return operation.self_ms


def _together(ranges: list[Operation]) -> list[Operation]:
    """Layers as one: layers.0.attn and layers.1.attn become layers.*.attn; steps are left out."""
    found: dict[str, Operation] = {}
    for part in ranges:
        if re.fullmatch(r"step \d+|.*#.*", part.name):  # torch names its optimizers with a "#"
            continue
        name = re.sub(r"\.\d+", ".*", part.name)
        old = found.get(name, Operation(name, 0.0, 0.0, 0.0, 0.0))
        sums = (a + b for a, b in zip(old[1:], part[1:], strict=True))
        found[name] = Operation(name, *sums)
    return sorted(found.values(), key=lambda part: -part.total_ms)
