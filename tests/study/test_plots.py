"""Claims about the curves of the report."""

import numpy as np
import pytest

from scratchlm.study import plots


def test_smoothing_keeps_a_constant_and_does_not_lag_behind_a_line():
    assert plots.smooth(np.full(300, 2.5)) == pytest.approx(np.full(300, 2.5))
    line = np.linspace(0.0, 1.0, 1000)
    assert plots.smooth(line)[100:-100] == pytest.approx(line[100:-100], abs=1e-4)


def test_smoothing_removes_most_of_the_noise():
    noise = np.random.default_rng(0).normal(size=2000)
    assert plots.smooth(noise)[50:-50].std() < 0.25


@pytest.mark.parametrize("num_points", [0, 1, 499, 500, 501, 12_345])
def test_thinned_curve_is_short_and_covers_all_points(num_points):
    curve = plots.Curve(np.arange(num_points, dtype=float), np.ones(num_points))
    thinned = curve.thinned()
    assert len(thinned.tokens) == len(thinned.values) <= plots.MAX_POINTS
    assert np.all(thinned.values == 1)
    if num_points:
        group = -(-num_points // plots.MAX_POINTS)
        assert thinned.tokens[0] == (min(group, num_points) - 1) / 2


@pytest.mark.parametrize(
    ("values", "top"),
    [([1.0] * 99 + [1000.0], 4.32), ([-3.0, -1.0], 0.0), ([-1.0, -1.0, 0.5], 0.54), ([0.0], 1.0)],
)
def test_a_small_plot_ends_above_nearly_all_values(values, top):
    assert plots._robust_top(np.array(values)) == pytest.approx(top)


def test_colours_are_variables_of_the_page():
    curve = plots.Curve(np.arange(10.0), np.linspace(5.0, 1.0, 10))
    for shape in ("wide", "narrow"):
        svg = plots.learning_curves(curve, curve, 0.9, shape)
        assert "#0a0a0" not in svg
        assert {"var(--accent)", "var(--muted)", "var(--ink)"} <= set(
            svg.replace(";", " ").replace('"', " ").split()
        )
        assert f'class="plot {shape}"' in svg


def test_ticks_are_short():
    assert [plots._short(value) for value in (-0.5, 0, 0.5, 2000, 1_500_000)] == [
        "\N{MINUS SIGN}0.5",
        "0",
        "0.5",
        "2 k",
        "1.5 M",
    ]
