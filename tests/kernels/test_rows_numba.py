"""A few rows times a matrix: the product, and bits that depend on the row and the matrix's row alone."""

import numpy as np
import pytest

from scratchlm.kernels.rows_numba import mix, multiply

SIZES = [(1, 16, 8), (3, 40, 9), (4, 32, 4), (5, 7, 3), (8, 64, 35), (13, 48, 70), (33, 33, 33)]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(x, w):
    out = np.full((len(x), len(w)), np.nan, np.float32)
    multiply(x, w, out)
    return out


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_the_product_is_that_of_float64(rows, depth, columns):
    x, w = numbers(rows, depth), numbers(columns, depth, seed=1)
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(w.T).astype(np.float64)
    assert np.all(np.abs(product(x, w) - expected) <= depth * np.finfo(np.float32).eps * size)


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_an_element_has_the_same_bits_whatever_stands_beside_it(rows, depth, columns):
    x, w = numbers(rows, depth), numbers(columns, depth, seed=1)
    together = product(x, w)
    for row in range(rows):
        assert np.array_equal(product(x[row : row + 1], w)[0], together[row])
    for column in range(columns):
        assert np.array_equal(product(x, w[column : column + 1])[:, 0], together[:, column])


def test_whole_numbers_are_exact():
    x, w = np.arange(40, dtype=np.float32).reshape(2, 20), np.eye(20, dtype=np.float32)
    assert np.array_equal(product(x, w), x)


def test_numbers_that_are_none_stay_in_their_row():
    x, w = numbers(8, 32), numbers(16, 32, seed=1)
    x[3, 5] = np.nan
    found = product(x, w)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


@pytest.mark.parametrize("width", [5, 16, 40, 64, 112])
def test_a_mixture_is_the_weighted_sum_of_some_rows(width):
    weights, values, out = numbers(30), numbers(30, width, seed=1), np.full(width, np.nan, np.float32)
    mix(weights, values, out, 4, 27)
    np.testing.assert_allclose(out, weights[4:27] @ values[4:27], rtol=1e-5, atol=1e-5)
