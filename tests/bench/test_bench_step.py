"""Training steps measured: the grid, the figures, and cases that cannot run."""

import pytest
import torch

from scratchlm.bench import cases, clock, step
from scratchlm.bench.cases import HANDOUT, StepCase, Workbench, estimated_bytes, size_of
from scratchlm.model import accounting

CPU = torch.device("cpu")
SMALL = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "context_length": 16, "vocab_size": 64}


def small(**changes):
    return StepCase(model="tiny", settings=size_of("tiny", SMALL), **{"batch": 2, **changes})


@pytest.mark.parametrize(
    ("name", "d_model", "d_ff", "num_layers", "num_heads"),
    [
        ("small", 768, 3072, 12, 12),
        ("medium", 1024, 4096, 24, 16),
        ("large", 1280, 5120, 36, 20),
        ("xl-2025", 1600, 6400, 48, 25),
        ("xl", 2560, 10240, 32, 32),
        ("2.7b", 2560, 10240, 32, 32),
        ("10b", 4608, 12288, 50, 36),
    ],
)
def test_the_handouts_sizes(name, d_model, d_ff, num_layers, num_heads):
    found = size_of(name, {})
    assert (found.d_model, found.d_ff, found.num_layers, found.num_heads) == (
        d_model,
        d_ff,
        num_layers,
        num_heads,
    )
    assert (found.vocab_size, found.context_length) == (10_000, 512)


def test_every_size_is_a_valid_model_and_can_be_changed():
    for name in HANDOUT:
        assert size_of(name, {"num_layers": 1}).num_layers == 1
    assert size_of("gpt2-small", {}).vocab_size == 50_257


def test_unknown_sizes_and_settings_are_named():
    with pytest.raises(ValueError, match=r"unknown model size 'smal'\. Did you mean 'small'\?"):
        size_of("smal", {})
    with pytest.raises(ValueError, match=r"num_layer: unknown key 'num_layer'\. Did you mean 'num_layers'\?"):
        size_of("small", {"num_layer": 1})


def test_the_grid_has_every_combination_but_a_checkpointed_forward_pass():
    made = step.cases(
        ["tiny", "small"], scopes=["forward", "both"], precisions=["float32", "bfloat16"],
        checkpointing=[False, True], batches=[1, 2], contexts=[8, 16], changes={"num_layers": 1},
    )  # fmt: skip
    assert len(made) == 2 * 2 * 2 * 2 * (2 * 2 - 1)
    assert {case.settings.context_length for case in made} == {8, 16}
    assert not [case for case in made if case.checkpointing and case.scope == "forward"]
    assert len(set(made)) == len(made)


def test_a_backward_pass_counts_twice_the_forward_pass():
    forward = sum(accounting.forward_flops(small().settings, 16).values())
    assert small(scope="forward").flops == 2 * forward
    assert small(scope="both").flops == small(scope="step").flops == 6 * forward


def test_each_scope_does_what_it_says():
    for scope in cases.SCOPES:
        bench = Workbench(small(scope=scope), CPU)
        before = bench.model.head_weight.detach().clone()
        bench.run()
        assert (bench.model.head_weight.grad is not None) == (scope != "forward")
        assert torch.equal(bench.model.head_weight, before) == (scope != "step")


def test_phases_come_in_order():
    import contextlib

    names = []
    Workbench(small(), CPU).run(lambda name: contextlib.nullcontext(names.append(name)))
    assert names == ["forward", "backward", "optimizer"]


def test_a_measured_case_has_all_figures():
    found = step.run_case(small(), CPU, warmup=1, steps=3)
    assert (found.status, found.calls, found.warmup) == ("measured", 3, 1)
    assert found.median_ms is not None
    assert found.tokens_per_second == pytest.approx(32 / (found.median_ms / 1e3))
    assert found.parameters == accounting.num_parameters(small().settings)
    # weights, gradients and AdamW's two states at the least
    assert found.peak_bytes is not None
    assert found.peak_bytes > 4 * 4 * found.parameters


def test_checkpointing_needs_less_memory():
    deep = {"num_layers": 8, "context_length": 64}
    plain, again = (
        StepCase(
            model="tiny", settings=size_of("tiny", SMALL | deep), batch=4, scope="both", checkpointing=way
        )
        for way in (False, True)
    )
    kept, computed = (step.run_case(case, CPU, warmup=1, steps=1).peak_bytes for case in (plain, again))
    assert kept is not None
    assert computed is not None
    assert computed < 0.6 * kept
    assert estimated_bytes(again) < estimated_bytes(plain)


def test_what_does_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(step, "free_memory", lambda device: 10_000_000_000)
    monkeypatch.setattr(step, "Workbench", None)
    case = StepCase(model="10b", settings=size_of("10b", {}))
    found = step.run_case(case, CPU)
    assert found.status == "out of memory"
    assert found.note.endswith("10.0 GB are free")
    assert found.parameters == 12_832_823_808
    assert found.median_ms is None


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", ""),
        (RuntimeError("kernel is broken\nsecond line"), "failed", "kernel is broken"),
    ],
)
def test_an_error_while_measuring_is_a_row(monkeypatch, error, status, note):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(clock, "measure", fail)
    found = step.run_case(small(), CPU)
    assert (found.status, found.note) == (status, note)


def test_several_warm_ups_are_several_rows():
    found = list(step.run_cases([small(scope="forward")], CPU, warmups=(0, 1, 2), steps=1))
    assert [result.warmup for result in found] == [0, 1, 2]


def test_a_table_shows_what_differs_and_says_the_rest_once():
    measured = {
        "parameters": 1_000_000,
        "median_ms": 12.34,
        "mean_ms": 12.5,
        "std_ms": 0.25,
        "tokens_per_second": 2593.2,
    }
    found = [
        step.StepResult(case=small(scope="forward"), peak_bytes=5_000_000, **measured),
        step.StepResult(
            case=small(scope="step"), status="out of memory", note="needs about 5 GB", parameters=1_000_000
        ),
    ]
    (table,) = step.tables(found)
    assert table.title == "tiny (1 M), 2 x 16, float32, eager, all kept"
    assert table.header == ["pass", "median", "mean +- std", "tokens/s", "peak memory"]
    assert table.rows[0] == ["forward", "12.3 ms", "12.5 +- 0.2 ms", "2,593", "5.00 MB"]
    assert table.rows[1] == ["full step", "out of memory: needs about 5 GB", "", "", ""]


def test_no_results_make_no_table():
    assert step.tables([]) == []


@pytest.mark.compile
@pytest.mark.slow
def test_a_compiled_case_is_measured():
    found = step.run_case(small(compiled=True, scope="both"), CPU, warmup=1, steps=2)
    assert found.status == "measured", found.note
