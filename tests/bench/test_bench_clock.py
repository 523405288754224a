"""The clock: only the work is timed, limits hold, memory is that of the tensors."""

import time

import pytest
import torch

from scratchlm.bench import clock
from scratchlm.bench.clock import Timing, measure, weigh

CPU = torch.device("cpu")


def test_mean_median_and_sample_deviation():
    timing = Timing((1.0, 2.0, 6.0))
    assert timing.mean == 3.0
    assert timing.median == 2.0
    assert timing.std == pytest.approx(7**0.5)  # ((1-3)^2 + (2-3)^2 + (6-3)^2) / (3-1) = 7


def test_one_call_has_no_deviation():
    assert Timing((2.0,)).std == 0.0


def test_warm_up_and_preparation_are_not_timed():
    calls = []

    def prepare():
        time.sleep(0.02)
        return (len(calls),)

    timing = measure(calls.append, CPU, warmup=3, steps=4, prepare=prepare)
    assert calls == list(range(7))
    assert len(timing.seconds) == 4
    assert max(timing.seconds) < 0.02


def test_the_limit_leaves_one_warm_up_and_one_call():
    calls = []

    def work():
        calls.append(1)
        time.sleep(0.01)

    assert len(measure(work, CPU, warmup=5, steps=10, limit=0.0).seconds) == 1
    assert len(calls) == 2


def test_a_slow_first_call_leaves_the_others_their_time():
    calls = []

    def work():
        calls.append(1)
        time.sleep(0.2 if len(calls) == 1 else 0.0)

    assert len(measure(work, CPU, warmup=1, steps=10, limit=0.15).seconds) == 10


def test_a_gpu_sleeps_until_python_has_handed_over_the_work(monkeypatch):
    """The cache is emptied, the GPU sleeps, then the time begins."""
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1.0

    def work():
        told.append("work")
        time.sleep(0.004)

    monkeypatch.setattr(clock, "_is_cuda", lambda device: True)
    monkeypatch.setattr(clock, "CACHE_BYTES", 8)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append(cycles / clock.CYCLES_PER_SECOND))
    measure(work, CPU, warmup=2, steps=1, cold=True)
    assert told[:2] == ["work", "work"]
    assert told[3:] == ["event", "work", "event"]
    assert 0.008 <= told[2] <= clock.LONGEST_SLEEP


def test_peak_counts_what_was_there_and_what_is_alive_together():
    held = torch.zeros(1000)
    found = weigh(lambda: (held + held) * held, CPU, held=(held, held.view(10, 100)))
    # held, the sum and the product: 4,000 bytes each; the sum is gone at the end
    assert found is not None
    assert found.peak == 12_000
    assert found.kept == 4_000


def test_nothing_kept_by_a_call_that_returns_nothing():
    def work():
        torch.zeros(500).sum()

    found = weigh(work, CPU)
    assert found is not None
    assert found.kept == 0
    assert found.peak >= 2000


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory of patience"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, short):
    assert clock.is_out_of_memory(error) is short
    assert isinstance(error, clock.failures())


def test_a_cell_shows_the_first_line_of_an_error():
    assert clock.reason(RuntimeError("\n  first\nsecond")) == "first"
    assert clock.reason(MemoryError()) == "MemoryError"
