"""Steps of real processes take about what the formulas of `scratchlm plan --gpus` foretell of them."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_step_of_each_layout_takes_about_what_is_foretold(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_cluster", BENCHMARKS / "bench_cluster.py")
    bench = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, bench)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "SIZES_MB", (1.0, 4.0))
    steps = bench.compare("short", 2, 5, bench.call_costs(2, 5))
    assert [step.way for step in steps] == list(bench.LAYOUTS)
    for step in steps:
        assert step.alone_ms < step.best_ms <= step.nothing_hidden_ms
        # 0.97 to 1.43 were measured while six other programs wanted each core
        assert 0.4 < step.measured_ms / step.nothing_hidden_ms < 2.5, step
