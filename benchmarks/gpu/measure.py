"""Tensors and functions come in; errors, milliseconds and bytes go out.

A time is the median over repetitions, each between two events of the device, on random numbers, with the
device's cache emptied before. The device sleeps ahead of each repetition, longer than Python needs to queue
it: what is measured is the device, not the launching. In a training step Python runs ahead in the same way.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.gpu.cases import Bench, MissedError, MissingError, Row
from torch import Tensor

CACHE_BYTES = 2**28
"""Written before each repetition: 256 MiB, several times the cache of an H200 (60 MB)."""
CYCLES_PER_SECOND = 2e9
"""An H200's clock under load is 1.98 GHz; it sleeps in cycles."""
SHORTEST_SLEEP, LONGEST_SLEEP = 2e-4, 5e-2
"""Seconds asleep before a repetition; in between it is twice what Python needs to queue the work."""
SECONDS = 0.4
"""What the repetitions of one measurement take together, about."""
FEWEST, MOST = 7, 300
"""Repetitions of one measurement."""
POISON_BYTES = 2**28
"""Freed memory full of NaN, from which the next results are allocated: an element nobody wrote is seen."""

OUTPUT_LIMIT, GRADIENT_LIMIT = 2.0, 3.0
"""How many times the error of plain PyTorch in the same number format is allowed."""
LARGEST_LIMIT = 2.0
"""The single worst element may be this many times further off again: it is one draw, not a mean."""
FLOOR = 0.5
"""Errors of plain PyTorch below this many times the format's epsilon count as that: rounding gives it."""

_flush: dict[torch.device, Tensor] = {}


def milliseconds(
    bench: Bench,
    work: Callable[[], Any],
    prepare: Callable[[], Any] = lambda: None,
    *,
    seconds: float = SECONDS,
) -> Row:
    """Return the median time of `work`, with the lowest, the spread and the number of repetitions.

    Args:
        bench: Where.
        work: What is timed.
        prepare: What comes before each repetition, outside the time.
        seconds: What the repetitions take together, about.
    """
    for _ in range(bench.pick(2, 1)):  # compiles, allocates
        prepare()
        work()
    sleep = _sleep_before(bench, work, prepare)
    first = _one(bench, work, prepare, sleep)
    wanted = bench.pick(round(1e3 * seconds / max(first, 1e-3)), 1)
    times = [_one(bench, work, prepare, sleep) for _ in range(min(max(wanted, bench.pick(FEWEST, 1)), MOST))]
    spread = statistics.quantiles(times, n=10) if len(times) > 1 else [times[0]] * 9
    middle = statistics.median(times)
    rest = {"lowest_ms": min(times), "decile_ms": spread[0], "last_decile_ms": spread[-1]}
    return {"ms": middle} | rest | {"repetitions": len(times)}


def _sleep_before(bench: Bench, work: Callable[[], Any], prepare: Callable[[], Any]) -> float:
    """Twice the seconds that Python needs to queue the work."""
    prepare()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    return min(max(2 * (time.perf_counter() - started), SHORTEST_SLEEP), LONGEST_SLEEP)


def _one(bench: Bench, work: Callable[[], Any], prepare: Callable[[], Any], sleep: float) -> float:
    prepare()
    if bench.device.type != "cuda":
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    if bench.device not in _flush:
        _flush[bench.device] = torch.empty(CACHE_BYTES, dtype=torch.int8, device=bench.device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush[bench.device].zero_()
    torch.cuda._sleep(int(sleep * CYCLES_PER_SECOND))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_bytes(bench: Bench, work: Callable[[], Any]) -> int:
    """Return how much more memory than before `work` needed at its peak; 0 on a CPU, which does not count."""
    if bench.device.type != "cuda":
        work()
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def poison(bench: Bench) -> None:
    """Fill memory with NaN and free it."""
    size = bench.pick(POISON_BYTES, 2**16)
    for _ in range(3):
        torch.full((size // 4,), float("nan"), device=bench.device)
    small = [torch.full((2**10,), float("nan"), device=bench.device) for _ in range(64)]
    del small


def compare(
    ours: Sequence[Tensor | None],
    plain: Sequence[Tensor | None],
    exact: Sequence[Tensor | None],
    names: Sequence[str],
) -> Row:
    """Return each result's error as a multiple of that of plain PyTorch in the same number format.

    The error of a whole tensor is |x - exact| / |exact|; that of its worst element is compared, too. The
    first result is the output, the others are gradients.

    Raises:
        MissedError: One is beyond its limit, or not finite, or of another shape.
    """
    worst, row, missed = 0.0, {}, []
    for place, (name, a, b, truth) in enumerate(zip(names, ours, plain, exact, strict=True)):
        if truth is None:
            continue
        assert a is not None, f"{name}: no result"
        assert b is not None, f"{name}: plain PyTorch has no result"
        assert a.shape == truth.shape, f"{name}: shape {tuple(a.shape)} instead of {tuple(truth.shape)}"
        limit = OUTPUT_LIMIT if place == 0 else GRADIENT_LIMIT
        error, plain_error, largest, plain_largest = _errors(a, b, truth)
        ratio = error / plain_error
        row[name] = {"error": error, "plain": plain_error, "largest": largest, "plain_largest": plain_largest}
        worst = max(worst, ratio / limit)
        # `not <=` is true for NaN, too
        if not ratio <= limit or not largest <= limit * LARGEST_LIMIT * plain_largest:
            missed.append(f"{name} {error:.1e} (plain {plain_error:.1e}), worst {largest:.1e}")
    row = {"errors": row, "share_of_limit": worst}
    if missed:
        raise MissedError("error beyond its limit: " + "; ".join(missed), row)
    return row


def _errors(a: Tensor, b: Tensor, truth: Tensor) -> tuple[float, float, float, float]:
    """Relative error of ours and of plain PyTorch, and of the worst elements; plain's not below rounding."""
    a, b, truth, rounding = a.double(), b.double(), truth.double(), torch.finfo(a.dtype).eps
    size = float(truth.norm()) or 1.0
    typical = size / max(truth.numel(), 1) ** 0.5
    error, plain = float((a - truth).norm()) / size, float((b - truth).norm()) / size
    if not truth.numel():
        return 0.0, 1.0, 0.0, 1.0
    largest, plain_largest = (float((x - truth).abs().max()) / typical for x in (a, b))
    floor = FLOOR * rounding
    # the largest elements of random numbers are about 4 times their typical size
    return error, max(plain, floor), largest, max(plain_largest, 4 * floor)


def kernel(op: str, name: str, bench: Bench) -> Callable[..., Any]:
    """Return an implementation by name.

    Raises:
        MissingError: There is none of that name.
    """
    from scratchlm.kernels import KERNELS, choose

    if name not in KERNELS.get(op, {}):
        raise MissingError(f"there is no {op}={name}")
    return choose(op, name, bench.device).function
