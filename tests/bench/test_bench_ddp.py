"""Ways of data parallelism measured in turns by two processes, and how the figures are shown."""

import pytest

from scratchlm.bench import ddp, parallel
from scratchlm.bench.cases import size_of
from scratchlm.bench.ddp import DdpResult
from scratchlm.bench.parallel import DATA_PARALLEL_WAYS, ParallelCase

SMALL = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "context_length": 16, "vocab_size": 64}
CASE = ParallelCase(model="tiny", settings=size_of("tiny", SMALL), batch=2)


def result(way, step_ms, waiting_ms, *, buckets=None, bucket_mb="auto", ratio=None):
    return DdpResult(
        case=CASE.model_copy(update={"way": way, "bucket_mb": bucket_mb}), gradient_bytes=20_000_000,
        buckets=buckets, rounds=3, step_ms=step_ms, computing_ms=50.0, waiting_ms=waiting_ms, ratio=ratio,
        per_call_ms=0.5, bytes_per_second=1e9,
    )  # fmt: skip


def test_everything_takes_turns_with_a_step_that_does_not_communicate():
    group = ddp.candidates(CASE, ["torch", "bucketed"], [0.1, None])
    assert [(case.way, case.bucket_mb) for case in group.cases] == [
        ("alone", "auto"), ("torch", "auto"), ("bucketed", "auto"), ("bucketed", 0.1), ("bucketed", None),
    ]  # fmt: skip


def test_the_sweep_goes_up_to_one_bucket_for_all():
    assert ddp.usual_sweep(22_000_000) == [0.1, 0.3, 1.0, 3.0, 10.0, None]


def test_the_table_shows_what_is_not_hidden_and_the_sweep_what_was_foretold():
    found = [
        result("alone", 50.0, 0.0, buckets=0),
        result("bucketed", 60.0, 10.0, buckets=1, ratio=0.96),
        result("torch", 62.0, 12.0, ratio=1.0),
        result("bucketed", 57.0, 7.0, buckets=4, bucket_mb=5.0, ratio=0.9),
    ]
    ways, sweep = ddp.tables(found)
    assert ways.title.startswith("tiny (0.0247 M), 2 x 16 for each of 2 processes, float32, gloo")
    assert ways.rows == [
        ["alone", "0", "50.0 ms", "", ""],
        ["bucketed", "1", "60.0 ms", "10.0 ms", "0.96x"],
        ["torch", "", "62.0 ms", "12.0 ms", "1.00x"],
    ]
    # s / (b w) + b o with s = 20 MB, w = 1 GB/s, o = 0.5 ms
    assert sweep.rows == [
        ["5.00 MB", "4", "57.0 ms", "7.00 ms", "7.00 ms", "22.0 ms"],
        ["auto", "1", "60.0 ms", "10.0 ms", "20.5 ms", "20.5 ms"],
    ]
    assert "least by the formula: 3.16 MB" in sweep.title
    assert ddp.tables([]) == []


def test_a_group_that_does_not_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(parallel, "free_memory", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"3 models of tiny in 2 processes need about .*, 1.00 MB are free"):
        parallel.check(ddp.candidates(CASE, ["flat", "torch"], []))


@pytest.mark.distributed
def test_two_processes_train_in_every_way():
    group = ddp.candidates(CASE, DATA_PARALLEL_WAYS, [0.01]).model_copy(update={"rounds": 2, "steps": 1})
    said = []
    found = list(parallel.run_group("ddp", group, starting=said.append))
    assert said == ["warming up", "round 1 of 2", "round 2 of 2", "all-reduces alone"]
    assert [one.case for one in found] == list(group.cases)
    counts = {(one.case.way, one.case.bucket_mb): one.buckets for one in found}
    num_parameters = counts["per_parameter", "auto"]
    assert num_parameters > 10
    assert counts == {
        ("alone", "auto"): 0, ("per_parameter", "auto"): num_parameters, ("flat", "auto"): 1,
        ("overlapped", "auto"): num_parameters, ("bucketed", "auto"): 1, ("torch", "auto"): None,
        ("torch_views", "auto"): None, ("bucketed", 0.01): counts["bucketed", 0.01],
    }  # fmt: skip
    assert 1 < counts["bucketed", 0.01] < num_parameters
    alone, torchs = found[0], next(one for one in found if one.case.way == "torch")
    assert (alone.waiting_ms, torchs.ratio) == (0, 1)
    assert all(one.gradient_bytes == 98_944 and one.computing_ms == alone.step_ms > 0 for one in found)
