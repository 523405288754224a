"""What each process holds in every stage of sharding, by formula and weighed in two processes."""

import pytest

from scratchlm.bench import shards
from scratchlm.bench.cases import size_of
from scratchlm.bench.parallel import SHARDED_WAYS, ParallelCase, run_group
from scratchlm.bench.shards import Held, ShardsResult, formula

SMALL = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "context_length": 16, "vocab_size": 64}
CASE = ParallelCase(model="tiny", settings=size_of("tiny", SMALL), batch=2)


def test_each_stage_shares_one_more_of_the_16_bytes_of_a_parameter():
    held = {way: formula(way, 1_000, 4) for way in SHARDED_WAYS}
    assert {way: (h.parameters, h.gradients, h.states) for way, h in held.items()} == {
        "bucketed": (4_000, 4_000, 8_000),
        "zero1": (4_000, 4_000, 2_000),
        "zero2": (4_000, 1_000, 2_000),
        "fsdp": (1_000, 1_000, 2_000),
        "fsdp2": (1_000, 1_000, 2_000),
    }
    assert held["fsdp"].all == 16 * 1_000 / 4


def test_tables_show_bytes_beside_the_formula_and_the_ratio_to_torchs():
    bytes_ = Held(parameters=5e5, gradients=5e5, states=1e6)
    case = CASE.model_copy(update={"way": "fsdp"})
    found = ShardsResult(
        case=case, num_parameters=250_000, held=bytes_, foretold=formula("fsdp", 250_000, 2),
        peak_bytes=3_000_000, rounds=3, step_ms=20.0, ratio=1.0, ratio_to_fsdp2=0.8,
    )  # fmt: skip
    weights, times = shards.tables([found])
    assert weights.rows == [
        ["fsdp", "500 kB / 500 kB", "500 kB / 500 kB", "1.00 MB / 1.00 MB", "2.00 MB / 2.00 MB", "3.00 MB"]
    ]
    assert times.rows == [["fsdp", "20.0 ms", "1.00x", "0.80x"]]
    assert shards.tables([]) == []


@pytest.mark.distributed
def test_two_processes_hold_what_the_formula_says():
    group = shards.candidates(CASE, SHARDED_WAYS).model_copy(update={"rounds": 2, "steps": 1})
    found = {one.case.way: one for one in run_group("shards", group)}
    assert list(found) == list(SHARDED_WAYS)
    largest = 4 * 64 * 32  # dealt out whole, the shares differ by at most the largest parameter
    for way, one in found.items():
        held, foretold = one.held, one.foretold
        assert held.parameters == foretold.parameters, way
        assert foretold.states <= held.states <= foretold.states + 2 * largest * (way[:4] == "zero"), way
        # some gradients are parts of a larger tensor that stays alive with them
        slack = 0 if "fsdp" in way else 0.2 * foretold.gradients + largest * (way == "zero2")
        assert foretold.gradients <= held.gradients <= foretold.gradients + slack, way
        assert one.peak_bytes > held.all
    assert found["fsdp2"].ratio_to_fsdp2 == 1
    assert found["bucketed"].ratio == 1
