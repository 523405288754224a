r"""A piece of work comes in; how long it takes and how much memory its tensors need go out.

    warm-up calls (not counted) | prepare, work | prepare, work | ...
                                         ^^^^            ^^^^   timed: events on a GPU, the clock on a CPU

A GPU works behind the program's back, so its time is taken between two events that it meets itself. For short
kernels (`cold=True`) a large block is zeroed before each, which empties the L2 cache, as the rest of a model
would. Zeroing takes less than 0.1 ms, and Python may need longer to hand over the work; so the GPU then
sleeps for twice as long as handing over a warm-up call took, before it meets the first event. The median of
the calls is the figure to compare; mean and standard deviation stand beside it because courses ask for them.

Memory is that of tensors alone: torch's own count on a GPU; on a CPU every allocation and every release that
torch's profiler reports during one more call, added up.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from scratchlm.hardware import synchronize
from scratchlm.runtime import keeping_freed_memory

CACHE_BYTES = 2**28
"""What is zeroed between cold calls, 256 MiB: several times the L2 cache of any GPU (60 MB on an H200)."""
CYCLES_PER_SECOND = 2e9
"""A GPU sleeps in cycles of its clock: 1.98 GHz on an H200 under load; a slower one sleeps longer."""
SHORTEST_SLEEP, LONGEST_SLEEP = 2e-4, 5e-2
"""Seconds asleep before a cold call: more than a few launches take, and less than would make a run long."""


class Timing(NamedTuple):
    """How long each of several calls took."""

    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.seconds)

    @property
    def std(self) -> float:
        """Standard deviation of the sample (divided by calls - 1); 0 for a single call."""
        return statistics.stdev(self.seconds) if len(self.seconds) > 1 else 0.0

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


@keeping_freed_memory()
def measure(
    work: Callable[..., object],
    device: torch.device,
    *,
    warmup: int = 5,
    steps: int = 10,
    limit: float = float("inf"),
    prepare: Callable[[], tuple[Any, ...]] = tuple,
    cold: bool = False,
) -> Timing:
    """Time `work(*prepare())`; `prepare` is not timed.

    Args:
        work: What is timed.
        device: Where it runs.
        warmup: Calls before the first that counts: they compile, allocate, fill caches.
        steps: Calls that count.
        limit: Seconds for all calls but the first, of which warming up may take half; one call counts at
            least.
        prepare: Makes the arguments of each call.
        cold: Empty a GPU's L2 cache before each call, and let it sleep until the work is handed over.
    """
    started, seconds, handing_over = time.perf_counter(), [], LONGEST_SLEEP
    flush = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device) if cold and _is_cuda(device) else None
    for number in range(warmup):
        if number > 0 and time.perf_counter() - started > limit / 2:
            break
        arguments = prepare()
        handed = time.perf_counter()
        work(*arguments)
        handing_over = min(handing_over, time.perf_counter() - handed)
        del arguments
        synchronize(device)
        if number == 0:
            started = time.perf_counter()  # compiling is no reason to measure less
    while len(seconds) < steps and (not seconds or time.perf_counter() - started < limit):
        arguments = prepare()
        if flush is not None:
            flush.zero_()
            sleep = min(max(2 * handing_over, SHORTEST_SLEEP), LONGEST_SLEEP)
            torch.cuda._sleep(round(sleep * CYCLES_PER_SECOND))
        seconds.append(_time_once(work, arguments, device))
        del arguments  # what is prepared next may need its memory
    return Timing(tuple(seconds))


class Memory(NamedTuple):
    """Bytes of tensors."""

    peak: int
    """The most alive at once, with what was there before."""
    kept: int
    """What the call's result keeps alive: after a forward pass, everything that the backward pass needs."""


def weigh(
    work: Callable[[], object], device: torch.device, *, held: Iterable[torch.Tensor] = ()
) -> Memory | None:
    """Return the bytes that tensors take during and after one call; None where the device does not tell.

    Args:
        work: What is weighed; its result is kept until the end.
        device: Where it runs.
        held: Tensors that exist before: the CPU's count does not know them, a GPU's does.
    """
    if _is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        kept = torch.cuda.memory_allocated(device) - before
        del result
        return Memory(torch.cuda.max_memory_allocated(device), kept)
    if device.type != "cpu":
        return None
    before, now, peak = storage_bytes(held), 0, 0
    for event in allocations(work):
        now += event.extra_fields.alloc_size
        peak = max(peak, now)
    return Memory(before + peak, now)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return how much memory tensors occupy; views of one storage count once, and as all of it."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def allocations(work: Callable[[], object]) -> list[Any]:
    """Return torch's allocation events on the CPU during one call in order of time; releases are negative."""
    return sorted(
        (event for event in profiled_events(work) if event.name == "[memory]"), key=lambda e: e.start_time_ns
    )


def profiled_events(work: Callable[[], object]) -> Iterable[Any]:
    """Yield every event that torch's profiler sees on the CPU during one call: operations and allocations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    del result  # only now: what it holds counts as kept
    stack = list(profiler.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        yield event
        stack.extend(event.children)


def failures() -> tuple[type[BaseException], ...]:
    """Return what a kernel raises that this machine cannot run: one row of a table, not the end of it.

    ValueError and RuntimeError are ours and torch's (its compiler's too, and "out of memory"); Triton has a
    class of its own, known once a kernel has loaded it.
    """
    triton = sys.modules.get("triton.errors")
    known = (RuntimeError, ValueError, ImportError, MemoryError)
    return known if triton is None else (*known, triton.TritonError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def free(device: torch.device, *, collect: bool) -> None:
    """Give back what is not used any more, so that one case does not pay for another.

    `collect`: Also look for objects that only refer to each other: large models, compiled code, what an error
    held. It takes most of a second once torch is loaded, too long for every small case.
    """
    if collect:
        gc.collect()
    if _is_cuda(device):
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Return the first line of an error that is not empty, for a table's cell."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _time_once(work: Callable[..., object], arguments: tuple[Any, ...], device: torch.device) -> float:
    if _is_cuda(device):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work(*arguments)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3  # the events count milliseconds
    synchronize(device)
    started = time.perf_counter()
    work(*arguments)
    synchronize(device)
    return time.perf_counter() - started


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
