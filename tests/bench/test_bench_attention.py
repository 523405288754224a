"""Attention measured: the convention of FLOPs, every way by name, what does not fit foretold."""

import pytest
import torch

from scratchlm.bench import attention
from scratchlm.bench.attention import AttentionCase, AttentionResult, Settings, grid, run_case, run_grid
from scratchlm.bench.attention_tables import tables
from scratchlm.kernels import KERNELS

CPU = torch.device("cpu")
QUICK = Settings(warmup=1, steps=2, limit=0.2)


def case(way="reference", tokens=64, scope="both", **changes):
    settings = {"d_head": 8, "precision": "float32", "heads": 2, **changes}
    return AttentionCase(way=way, tokens=tokens, scope=scope, **settings)


def test_flops_follow_the_usual_convention():
    full = case(scope="forward", batch=3, causal=False)
    assert full.flops == 4 * 3 * 2 * 64**2 * 8
    assert case(scope="forward", batch=3).flops == full.flops / 2
    assert case(scope="backward", batch=3, causal=False).flops == 2.5 * full.flops
    assert case(scope="both", batch=3, causal=False).flops == 3.5 * full.flops


@pytest.mark.parametrize("scope", attention.SCOPES)
@pytest.mark.parametrize("way", ["reference", "blocks", "sdpa-flash", "sdpa-math"])
def test_every_way_that_runs_here_is_measured(way, scope):
    found = run_case(case(way, scope=scope), CPU, QUICK)
    assert found.status == "measured", found.note
    assert found.median_ms is not None
    assert found.flops_per_second == pytest.approx(found.case.flops / (found.median_ms / 1e3))
    assert (found.kept_bytes is not None) == (scope == "forward")


def test_the_reference_keeps_scores_and_sdpa_keeps_none():
    kept = {
        way: [
            run_case(case(way, tokens=tokens, scope="forward"), CPU, QUICK).kept_bytes
            for tokens in (128, 256)
        ]
        for way in ("reference", "sdpa-flash")
    }
    assert kept["reference"][1] > 3 * kept["reference"][0]
    assert kept["sdpa-flash"][1] == 2 * kept["sdpa-flash"][0]


@pytest.mark.parametrize("way", ["triton", "sdpa-cudnn", "sdpa-efficient"])
def test_a_way_that_a_cpu_lacks_is_not_here(way):
    if way not in attention.ways():
        pytest.skip("not registered")
    found = run_case(case(way), CPU, QUICK)
    assert found.status == "not here"
    assert found.note


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match=r"unknown attention 'flash'\. .*Known: .*sdpa-flash"):
        grid(["flash"], lengths=[8], widths=[8], precisions=["float32"], scopes=["both"])


def test_nobody_compares_ways_that_this_machine_lacks():
    usual = attention.usual_ways(CPU)
    assert "reference" in usual
    assert "sdpa-flash" in usual
    assert not {"triton", "sdpa-cudnn", "sdpa-efficient", attention.COMPILED} & set(usual)
    assert len(set(attention.ways())) == len(attention.ways())


def test_nobody_waits_for_tuning_who_did_not_ask_for_it(monkeypatch):
    monkeypatch.setattr(attention, "_runnable", lambda device: set(KERNELS["attention"]))
    usual = attention.usual_ways(torch.device("cuda"))
    assert {"triton", "triton_one_pass"} <= set(usual)
    assert "triton_tuned" not in usual
    assert "triton_tuned" in attention.ways()


def test_the_memory_of_a_large_case_is_foretold_from_small_ones():
    foretold = attention.foretold_bytes(case(tokens=2560, scope="forward"), CPU)
    real = run_case(case(tokens=2560, scope="forward"), CPU, QUICK).peak_bytes
    assert foretold == pytest.approx(real, rel=0.01)


def test_what_grows_with_the_length_is_not_foretold_to_grow_with_its_square():
    foretold = attention.foretold_bytes(case("sdpa-flash", tokens=65_536, heads=6), CPU)
    vectors = 4 * 6 * 65_536 * 8  # of queries, keys, values, output, and the gradients of these
    assert foretold == pytest.approx(8 * vectors, rel=0.25)


def test_what_does_not_fit_is_a_row_and_is_not_tried(monkeypatch):
    monkeypatch.setattr(attention, "free_memory", lambda device: 1_000_000_000)
    (found,) = run_grid([case(tokens=65_536)], CPU, QUICK)
    assert found.status == "out of memory"
    assert found.note.startswith("needs about ")
    # scores, weights and their gradients: several tables of 2 x 65,536^2 x 4 bytes = 34 GB
    assert 3 * 34 < float(found.note.split()[2].replace(",", "")) < 8 * 34


def test_what_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(attention, "SMALL_BYTES", 2**60)
    impatient = QUICK._replace(patience=0.0)
    first, second = run_grid([case(tokens=32), case(tokens=64)], CPU, impatient)
    assert first.status == "measured"
    assert second.status == "too slow"
    assert second.note.endswith("s a call")


def test_running_out_of_memory_is_recorded_as_such(monkeypatch):
    def fail(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention.clock, "measure", fail)
    assert run_case(case(), CPU, QUICK).status == "out of memory"


def test_backends_are_pinned_only_inside():
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    run_case(case("sdpa-math"), CPU, QUICK)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()) == before


def test_a_table_has_lengths_down_ways_across_and_marks_the_fastest():
    def result(way, tokens, milliseconds):
        if milliseconds is None:
            return AttentionResult(case=case(way, tokens), status="out of memory", note="needs about 34 GB")
        rate = case(way, tokens).flops / (milliseconds / 1e3)
        return AttentionResult(case=case(way, tokens), median_ms=milliseconds, flops_per_second=rate)

    found = [result("reference", 64, 2.0), result("tiled", 64, 1.0), result("reference", 1024, None)]
    (table,) = tables(found)
    assert table.title == (
        "Attention forward + backward, causal, float32, d_head 8, batch 1, 2 heads: median ms (GFLOP/s)"
    )
    assert table.header == ["tokens", "reference", "tiled"]
    assert table.rows == [["64", "2.00 (0.229)", "1.00 (0.459)"], ["1,024", "out of memory: 34 GB", ""]]
    assert table.best == {(0, 2)}


@pytest.mark.compile
@pytest.mark.slow
def test_the_compiled_reference_is_measured_at_several_shapes():
    cells = grid(
        [attention.COMPILED],
        lengths=[32, 48],
        widths=[8],
        precisions=["float32"],
        scopes=["forward", "both"],
        heads=1,
    )
    found = list(run_grid(cells, CPU, QUICK))
    assert [result.status for result in found] == ["measured"] * 4, [result.note for result in found]
