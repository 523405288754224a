"""Profiles: operations and parts per step, a trace that opens, ranges that leave nothing behind."""

import json

import pytest
import torch

from scratchlm.bench import profile
from scratchlm.bench.cases import StepCase, Workbench, size_of
from scratchlm.bench.clock import Timing, profiled_events
from scratchlm.bench.profile import Operation, Profile, profile_steps, run_ranges, tables
from scratchlm.bench.ranges import module_ranges

CPU = torch.device("cpu")
SMALL = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "context_length": 8, "vocab_size": 64}


def bench(**changes):
    return Workbench(StepCase(model="tiny", settings=size_of("tiny", SMALL), batch=2, **changes), CPU)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    trace = tmp_path_factory.mktemp("profile") / "trace.json"
    return profile_steps(bench(), trace, steps=2), trace


def test_calls_are_per_step(found):
    parts = {part.name: part for part in found[0].ranges}
    assert parts["forward"].calls == parts["backward"].calls == parts["optimizer"].calls == 1
    assert parts["layers.*.attn"].calls == SMALL["num_layers"]
    assert not [name for name in parts if name.startswith("step")]


def test_operations_are_sorted_by_their_own_time(found):
    times = [operation.self_ms for operation in found[0].operations]
    assert times == sorted(times, reverse=True)
    assert "aten::mm" in {operation.name for operation in found[0].operations}
    assert "forward" not in {operation.name for operation in found[0].operations}
    assert len(found[0].timing.seconds) == 2


def test_the_trace_holds_the_named_parts(found):
    names = {event.get("name") for event in json.loads(found[1].read_text(encoding="utf-8"))["traceEvents"]}
    assert {"step 0", "step 1", "forward", "layers.1.ffn", "optimizer"} <= names


def test_a_block_that_is_computed_again_is_seen_again(tmp_path):
    again = profile_steps(bench(checkpointing=True), tmp_path / "trace.json", steps=1)
    assert {part.name: part.calls for part in again.ranges}["layers.*"] == 2 * SMALL["num_layers"]


def test_shares_add_up_with_the_rest_in_one_row(found):
    case = bench().case
    operations, parts = tables(case, found[0], shown=4)
    assert len(operations.rows) == 5
    assert operations.rows[-1][0] == f"{len(found[0].operations) - 4} others"
    assert sum(float(row[3].rstrip("%")) for row in operations.rows) == pytest.approx(100, abs=0.5)
    assert [row[0] for row in parts.rows] == [part.name for part in found[0].ranges]


def test_on_a_gpu_the_time_there_counts():
    operations = [
        Operation("mm", 1, 5.0, 5.0, 30.0),
        Operation("copy", 1, 50.0, 50.0, 10.0),
        Operation("py", 1, 9, 9, 0),
    ]
    table, parts = tables(bench().case, Profile(Timing((1.0,)), operations, operations[:1]))
    assert table.header[2] == "on the GPU"
    assert [row[3] for row in table.rows] == ["75.0%", "25.0%", "0.0%"]
    assert parts.rows == [["mm", "1", "5.00 ms", "30.0 ms"]]


def test_ranges_leave_no_hook_behind_even_after_an_error():
    made = bench()
    with module_ranges(made.model, CPU), pytest.raises(ValueError, match="9 tokens are more than"):
        made.model(torch.zeros(1, 9, dtype=torch.long))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.model.modules())


def test_a_range_ends_when_its_module_fails():
    model = bench().model

    def work():
        with module_ranges(model, CPU):
            with pytest.raises((RuntimeError, TypeError, ValueError)):
                model.layers[0](torch.zeros(1, 4, 5), model.position_embeddings)
            with torch.profiler.record_function("afterwards"):
                pass

    events = {event.name: event for event in profiled_events(work)}
    assert "layers.0" in events
    assert events["afterwards"].parent is None


def test_nsys_needs_a_gpu():
    with pytest.raises(ValueError, match=r"device=cpu: nsys and NVTX ranges need a GPU"):
        run_ranges(bench())


@pytest.mark.gpu
def test_a_gpus_kernels_have_times(tmp_path):
    case = StepCase(model="tiny", settings=size_of("tiny", {}), batch=2)
    on_gpu = profile_steps(Workbench(case, torch.device("cuda")), tmp_path / "trace.json", steps=2)
    assert on_gpu.operations[0].device_ms > 0
    assert profile.tables(case, on_gpu)[0].header[2] == "on the GPU"
