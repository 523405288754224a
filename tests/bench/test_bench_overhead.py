"""The line through times of messages, and what it foretells for buckets."""

import pytest

from scratchlm.bench.overhead import Cost, fit


def test_points_on_a_line_give_the_line():
    cost = fit((size, 2e-4 + size / 1.5e9) for size in (1e4, 1e6, 1e7, 1e9))
    assert cost.per_call == pytest.approx(2e-4)
    assert cost.bytes_per_second == pytest.approx(1.5e9)
    assert cost.seconds(3e6) == pytest.approx(2.2e-3)


def test_small_messages_decide_the_price_of_a_call_although_large_ones_are_off():
    points = [(1e3, 1e-3), (2e3, 1e-3), (1e9, 1.3), (1e9, 0.7)]
    assert fit(points).per_call == pytest.approx(1e-3, rel=0.1)


def test_a_price_below_zero_is_zero():
    cost = fit([(1e6, 1e-3), (1e7, 2e-2)])
    assert cost.per_call == 0
    assert 1e6 / 1e-3 > cost.bytes_per_second > 1e7 / 2e-2


@pytest.mark.parametrize("points", [[], [(1e6, 1.0)], [(1e6, 1.0), (1e6, 2.0)], [(1e3, 5.0), (1e9, 1.0)]])
def test_too_few_sizes_or_messages_that_cost_nothing_give_no_line(points):
    cost = fit(points)
    assert cost is None or cost.bytes_per_second > 0
    assert cost is None or len({size for size, _ in points}) > 1


def test_the_best_number_of_buckets_is_the_one_with_the_least_overhead():
    cost, num_bytes = Cost(5e-4, 1e9), 100e6
    best = num_bytes / cost.best_bucket_bytes(num_bytes)
    assert best == pytest.approx((num_bytes / (1e9 * 5e-4)) ** 0.5)
    least = cost.last_bucket(num_bytes, best)
    assert all(cost.last_bucket(num_bytes, count) >= least for count in range(1, 200))
    assert cost.last_bucket(num_bytes, 1) == pytest.approx(cost.nothing_hidden(num_bytes, 1))
    assert cost.nothing_hidden(num_bytes, 4) == pytest.approx(0.1 + 4 * 5e-4)


def test_few_bytes_travel_in_one_bucket():
    assert Cost(1e-3, 1e9).best_bucket_bytes(1e4) == 1e4
