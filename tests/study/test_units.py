"""Numbers as people read them."""

import math

import pytest

from scratchlm.study import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1_000, "1.00 k"), (12_345_678, "12.3 M"), (999_600, "1.00 M"),
     (124_439_808, "124 M"), (2.5e9, "2.50 B"), (-1500, "-1.50 k"), (None, "not recorded"),
     (math.nan, "not a number"), (math.inf, "infinite")],
)  # fmt: skip
def test_counts_have_three_digits_and_a_unit(value, text):
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.7, "1 min 0 s"), (161.3, "2 min 41 s"), (7384, "2 h 3 min"),
     (90_000, "1 d 1 h"),
     (None, "not recorded")],
)  # fmt: skip
def test_durations_have_their_two_largest_units(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(12, "12 bytes"), (2048, "2.00 KiB"), (3_145_728, "3.00 MiB"), (8_200_000_000, "7.64 GiB")],
)
def test_sizes_are_in_powers_of_1024(num_bytes, text):
    assert units.size(num_bytes) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.304, "30 %"),
        (0.0123, "1.2 %"),
        (0.996, "99.6 %"),
        (0.0001, "< 0.1 %"),
        (None, "not recorded"),
    ],
)
def test_shares_are_percentages(share, text):
    assert units.percent(share) == text


def test_decimals_keep_their_places():
    assert units.decimal(1.31415) == "1.314"
    assert units.decimal(math.nan) == "not a number"
