"""Claims about means and intervals: equal to tables and to numbers worked out by hand."""

import pytest

from scratchlm.lab.statistics import Interval, paired_interval, spread, t_probability, t_quantile


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_table(degrees, table):
    assert t_quantile(0.95, degrees) == pytest.approx(table, abs=5e-4)


def test_with_one_degree_of_freedom_it_is_the_cauchy_distribution():
    assert t_probability(1.0, 1) == pytest.approx(0.5)


def test_a_paired_interval_worked_out_by_hand():
    # mean 0.02, deviation 0.01, 4.3027 * 0.01 / sqrt(3) = 0.02484
    found = paired_interval([0.01, 0.02, 0.03])
    assert found.mean == pytest.approx(0.02)
    assert found.half_width == pytest.approx(0.024841, abs=1e-6)
    assert not found.is_clear


def test_the_same_difference_at_every_seed_is_clear():
    assert paired_interval([-0.5, -0.5, -0.5]).is_clear


def test_one_number_has_no_spread_and_one_pair_no_interval():
    assert spread([2.0]).deviation is None
    assert paired_interval([2.0]) == Interval(2.0, None, 1)
    assert not paired_interval([2.0]).is_clear
