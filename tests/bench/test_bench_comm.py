"""Collective calls measured by processes that the measurement starts itself."""

import pytest
import torch

from scratchlm.bench import comm, group
from scratchlm.bench.comm import CommCase, CommResult


def result(call="all_reduce", world_size=2, num_bytes=1_000_000, milliseconds=2.0):
    case = CommCase(call=call, world_size=world_size, num_bytes=num_bytes)
    rate = num_bytes / milliseconds * 1e3
    return CommResult(
        case=case, calls=5, median_ms=milliseconds, std_ms=0.1,
        algorithm_bytes_per_second=rate, bus_bytes_per_second=case.bus_share * rate,
    )  # fmt: skip


def test_a_ring_sends_each_byte_of_an_all_reduce_twice():
    assert [CommCase(call=call, world_size=4).bus_share for call in comm.CALLS] == [1.5, 0.75, 0.75, 0.75]
    assert CommCase(world_size=2).bus_share == 1


def test_the_grid_keeps_the_cases_of_one_group_together():
    made = comm.cases(["all_gather"], world_sizes=[2, 4], sizes_mb=[10, 0.01], backends=["gloo"])
    assert [(case.world_size, case.num_bytes) for case in made] == [
        (2, 10_000), (2, 10_000_000), (4, 10_000), (4, 10_000_000),
    ]  # fmt: skip


def test_a_table_shows_both_bandwidths_and_what_the_line_foretells():
    found = [result(num_bytes=1_000_000, milliseconds=1.5), result(num_bytes=10_000_000, milliseconds=10.5)]
    calls, lines = comm.tables(found)
    assert calls.rows[0] == [
        "all-reduce",
        "2",
        "gloo",
        "1.00 MB",
        "1.50 ms",
        "667 MB/s",
        "667 MB/s",
        "1.50 ms",
    ]
    assert lines.rows == [["all-reduce", "2", "gloo", "0.500 ms", "1.00 GB/s"]]
    assert comm.tables([]) == []


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are several GPUs")
def test_what_cannot_run_here_is_a_row_that_says_why(monkeypatch):
    monkeypatch.setattr(comm, "read_group", None)
    monkeypatch.setattr(comm, "free_memory", lambda device: 10**9)
    chosen = [CommCase(backend="nccl"), CommCase(num_bytes=10**9)]
    found = list(comm.run_cases(chosen))
    assert [one.status for one in found] == ["not here", "out of memory"]
    assert found[0].note.startswith("nccl: 2 processes need 2 GPUs")
    assert found[1].note == "needs about 8.00 GB, 1.00 GB are free"
    assert comm.tables(found)[0].rows[0][4] == "not here"


@pytest.mark.distributed
def test_two_processes_measure_every_call_and_a_group_that_fails_is_rows(monkeypatch):
    """The group of one process is killed at once; the other one does not notice."""
    chosen = comm.cases(comm.CALLS, world_sizes=[2], sizes_mb=[0.01], backends=["gloo"])
    lost = CommCase(world_size=1, call="all_reduce", num_bytes=8)
    real = group.subprocess.Popen

    def one_is_ended(words, **settings):
        child = real(words, **settings)
        if settings["env"]["WORLD_SIZE"] == "1":
            child.kill()
        return child

    monkeypatch.setattr(group.subprocess, "Popen", one_is_ended)
    said = []
    found = list(comm.run_cases([lost, *chosen], warmup=1, steps=3, starting=lambda case: said.append(case)))
    assert said == [lost, *chosen]
    assert found[0].status == "failed"
    assert found[0].note == "process 0 of 1 was ended by signal 9: it said nothing"
    assert [(one.case, one.status, one.calls) for one in found[1:]] == [(c, "measured", 3) for c in chosen]
    for one in found[1:]:
        assert one.algorithm_bytes_per_second == pytest.approx(10_000 / one.median_ms * 1e3)
        assert one.bus_bytes_per_second == pytest.approx(one.case.bus_share * one.algorithm_bytes_per_second)
