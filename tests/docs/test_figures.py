"""The course's figures are those that their script draws."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_parallel", ROOT / "benchmarks" / "draw_parallel.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_that_the_script_draws(script):
    for name, figure in script.FIGURES.items():
        drawn = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        assert drawn == figure(), f"{name}: run python benchmarks/draw_parallel.py"


def test_time_lost_in_the_figure_is_that_of_the_formulas(script):
    s, o, n, b = script.TRAFFIC, script.CALL, script.PARAMETERS, script.BUCKETS
    formulas = {
        (n, False): s + n * o,
        (1, False): s + o,
        (n, True): n * o + s / n,
        (b, True): b * o + s / b,
    }
    for (messages, overlaps), lost in formulas.items():
        begins = script.data_parallel(messages, overlaps=overlaps)[-1].start
        assert begins - script.FORWARD - script.BACKWARD == pytest.approx(lost), (messages, overlaps)


def test_fetching_two_layers_ahead_keeps_three_whole(script):
    for prefetch, most in ((0, 1), (2, 3)):
        bars = script.Sharded(prefetch).step()
        assert max(int(bar.label) for bar in bars if bar.kind == "whole") == most
