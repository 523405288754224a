"""Blocks of memory: their kinds by address and phase, histories of CPU and GPU, the page."""

from types import SimpleNamespace

import pytest
import torch

from scratchlm.bench import memory
from scratchlm.bench.cases import StepCase, Workbench, size_of
from scratchlm.bench.memory import Block, Note, Phase, Recording, assemble, cpu_blocks, record, trace_blocks
from scratchlm.bench.memory_page import columns, peak, write_memory_page

CPU = torch.device("cpu")
SMALL = {"d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 2, "context_length": 32, "vocab_size": 64}


@pytest.fixture(scope="module")
def bench():
    return Workbench(StepCase(model="tiny", settings=size_of("tiny", SMALL), batch=2), CPU)


@pytest.fixture(scope="module")
def recording(bench):
    torch.set_num_threads(1)
    return record(bench, steps=2)


def total(recording, kind):
    return sum(block.num_bytes for block in recording.blocks if block.kind == kind)


def test_weights_states_and_gradients_are_found_in_full(bench, recording):
    weights = 4 * sum(parameter.numel() for parameter in bench.model.parameters())
    tables = sum(buffer.untyped_storage().nbytes() for buffer in bench.model.buffers())
    assert total(recording, "weights") == weights + tables
    assert 2 * weights <= total(recording, "gradients") < 3 * weights  # of two steps; some blocks are padded
    assert total(recording, "optimizer") >= 2 * weights  # AdamW: a mean and a square


def test_a_gradient_is_called_by_its_parameters_and_lives_until_the_next_step(bench, recording):
    found = [block for block in recording.blocks if block.kind == "gradients"]
    named = {name for block in found for name in block.made_by.split(", ")}
    assert named == {name for name, _ in bench.model.named_parameters()}
    forwards = [phase for phase in recording.phases if phase.name == "forward"]
    first = [block for block in found if block.begin < forwards[1].begin]
    assert all(block.end < forwards[1].end for block in first)


def test_activations_say_which_part_made_them(recording):
    found = {block.within for block in recording.blocks if block.kind == "activations"}
    assert {"layers.0.attn", "layers.1.ffn", "layers.2.ln1"} <= found


def test_phases_of_every_step_come_in_order(recording):
    assert [phase.name for phase in recording.phases] == ["forward", "backward", "optimizer"] * 2
    edges = [edge for phase in recording.phases for edge in (phase.begin, phase.end)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= recording.nanoseconds


def test_nothing_but_states_is_alive_after_a_forward_pass_alone():
    alone = Workbench(StepCase(model="tiny", settings=size_of("tiny", SMALL), scope="forward"), CPU)
    found = record(alone, steps=1)
    assert {block.kind for block in found.blocks} <= {"weights", "batch", "temporary", "activations"}
    assert total(found, "activations") < 1000  # the loss


def test_checkpointing_keeps_less_for_the_backward_pass():
    def kept(checkpointing):
        case = StepCase(model="tiny", settings=size_of("tiny", SMALL), checkpointing=checkpointing)
        return total(record(Workbench(case, CPU), steps=1), "activations")

    assert kept(checkpointing=True) < 0.4 * kept(checkpointing=False)


def test_hooks_are_gone_after_recording(bench, recording):
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bench.model.modules())


def test_a_device_that_tells_nothing_is_refused():
    elsewhere = SimpleNamespace(device=torch.device("meta"))
    with pytest.raises(ValueError, match=r"device=meta: its memory cannot be recorded; take cpu or cuda"):
        record(elsewhere)


def event(moment, address, num_bytes, parent=None):
    fields = SimpleNamespace(ptr=address, alloc_size=num_bytes)
    return SimpleNamespace(name="[memory]", start_time_ns=moment, extra_fields=fields, parent=parent)


def operation(name, scope="FUNCTION", parent=None):
    return SimpleNamespace(
        name=name, parent=parent, extra_fields=SimpleNamespace(scope=f"RecordScope.{scope}")
    )


def test_events_become_blocks_with_operation_and_part():
    part = operation("layers.0.ffn", "USER_SCOPE")
    product = operation("aten::mm", parent=operation("aten::matmul", parent=part))
    events = [event(30, 1, -8), event(10, 1, 8, product), event(20, 2, 16), event(5, 9, -4)]
    assert list(cpu_blocks(events)) == [
        Block(8, 10, 30, 1, "aten::matmul", "layers.0.ffn"),
        Block(16, 20, 0, 2, "", ""),
    ]


def test_a_gpus_history_becomes_blocks_with_the_line_of_code():
    ours = {"filename": "/site/scratchlm/model/linear.py", "line": 30, "name": "linear"}
    torchs = {"filename": "/site/torch/functional.py", "line": 1, "name": "einsum"}
    measuring = {"filename": "/site/scratchlm/bench/cases.py", "line": 2, "name": "run"}
    trace = [
        {"action": "segment_alloc", "addr": 7, "size": 4096, "time_us": 1},
        {"action": "alloc", "addr": 7, "size": 512, "time_us": 2, "frames": [torchs, ours, measuring]},
        {"action": "alloc", "addr": 8, "size": 256, "time_us": 3, "frames": []},
        {"action": "free_requested", "addr": 7, "size": 512, "time_us": 4},
        {"action": "free_completed", "addr": 7, "size": 512, "time_us": 5},
        {"action": "free_requested", "addr": 99, "size": 1, "time_us": 6},
    ]
    assert list(trace_blocks(trace)) == [
        Block(512, 2000, 4000, 7, "model/linear.py:30 linear"),
        Block(256, 3000, 0, 8, "autograd"),
    ]


def test_kinds_follow_from_phases_and_addresses():
    blocks = [
        Block(1, 0, 0, 50, "w", "", "weights"),
        Block(2, 110, 150, 51, "kept"),
        Block(3, 111, 112, 52, "short"),
        Block(4, 150, 0, 53, "grad"),
        Block(5, 90, 95, 54, "before the recording"),
    ]
    notes = [Note(160, "gradients", {53: "w"})]
    found = assemble(blocks, [Phase("forward", 105, 120)], notes, started=100, ended=200)
    assert [(block.made_by, block.kind) for block in found.blocks] == [
        ("w", "weights"),
        ("kept", "activations"),
        ("short", "temporary"),
        ("w", "gradients"),
    ]
    assert found.blocks[1].begin == 10
    assert found.blocks[3].end == found.nanoseconds == 100


def test_no_peak_is_lost_however_short():
    blocks = [
        Block(10, 0, 1000, 1, "w", "", "weights"),
        Block(90, 501, 502, 2, "x"),
        Block(20, 600, 800, 3, "y"),
    ]
    short = Recording(blocks, [], 1000)
    found = columns(short, 10)
    assert [column.total for column in found] == [10, 10, 10, 10, 10, 100, 30, 30, 30, 10]
    assert peak(short).column.nanoseconds == 501
    assert [block.num_bytes for block in peak(short).blocks] == [90, 10]


def test_a_release_and_an_allocation_at_one_moment_are_not_alive_together():
    blocks = [Block(10, 0, 50, 1, "a"), Block(10, 50, 100, 1, "b")]
    assert peak(Recording(blocks, [], 100)).column.total == 10


def test_the_peak_is_that_of_the_blocks(recording):
    found = peak(recording)
    assert found.column.total == sum(block.num_bytes for block in found.blocks)
    assert found.column.total == max(column.total for column in columns(recording, 200))


def test_the_page_needs_nothing_else_and_escapes_what_it_is_told(recording, tmp_path):
    path = tmp_path / "memory.html"
    write_memory_page(path, recording, title="<tiny>", description="2 x 32 & more", machine="here")
    text = path.read_text(encoding="utf-8")
    assert "<h1>&lt;tiny&gt;</h1>" in text
    assert "2 x 32 &amp; more" in text
    for kind in memory.KINDS:
        assert f'class="{kind}"' in text
    assert not any(word in text for word in ("http://", "https://", "<script", "<link", "@import", "url("))
    assert text.count("<svg") == 2
    assert "layers.*.attn" in text


def test_a_page_of_nothing_is_a_page(tmp_path):
    write_memory_page(tmp_path / "a.html", Recording([], [], 0), title="", description="", machine="")
    assert "</html>" in (tmp_path / "a.html").read_text(encoding="utf-8")
