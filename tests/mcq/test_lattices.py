"""Pyramids and shells: how many points, their numbers, and the nearest by angle."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq.lattices import Pyramid, Shell, counts_up_to, nearest_direction


@given(st.integers(1, 20), st.integers(1, 20))
def test_points_of_a_pyramid_by_their_non_zero_entries(size, pulses):
    terms = (2**j * math.comb(size, j) * math.comb(pulses - 1, j - 1) for j in range(1, min(size, pulses) + 1))
    assert counts_up_to(size, pulses, squared=False)[pulses] == sum(terms)


@given(st.integers(1, 20), st.integers(1, 40))
def test_points_of_a_shell_by_the_theta_series(size, squared_norm):
    theta = np.zeros(squared_norm + 1, object)
    theta[[m * m for m in range(math.isqrt(squared_norm) + 1)]] = 2
    theta[0] = 1
    series = np.array([1], object)
    for _ in range(size):
        series = np.convolve(series, theta)[: squared_norm + 1]
    assert counts_up_to(size, squared_norm, squared=True)[squared_norm] == series[squared_norm]


@pytest.mark.parametrize(
    ("kind", "size", "budget"),
    [(Pyramid, 1, 4), (Pyramid, 3, 5), (Pyramid, 5, 3), (Pyramid, 8, 4), (Shell, 4, 7), (Shell, 6, 6), (Shell, 1, 9)],
)
def test_every_number_is_a_point_and_every_point_a_number(kind, size, budget):
    lattice = kind(size, budget)
    ranks = np.arange(lattice.count, dtype=np.uint64)
    y = lattice.unrank(ranks)
    assert len(np.unique(y, axis=0)) == lattice.count
    spent = np.square(y).sum(1) if lattice.squared else np.abs(y).sum(1)
    assert (spent == budget).all()
    np.testing.assert_array_equal(lattice.rank(y), ranks)


@pytest.mark.parametrize("lattice", [Pyramid(16, 58), Pyramid(256, 8), Shell(24, 44), Shell(3, 4094)])
def test_largest_numbers(lattice):
    rng = np.random.default_rng(0)
    ranks = rng.integers(lattice.count, size=1000, dtype=np.uint64)
    ranks[0] = lattice.count - 1
    np.testing.assert_array_equal(lattice.rank(lattice.unrank(ranks)), ranks)


def all_points(size, pulses):
    cube = np.array(list(itertools.product(range(-pulses, pulses + 1), repeat=size)))
    return cube[np.abs(cube).sum(1) == pulses]


@pytest.mark.parametrize(("size", "pulses"), list(itertools.product([2, 3, 4], [1, 2, 3, 5, 7])))
def test_no_direction_is_nearer(size, pulses):
    x = np.random.default_rng(size).standard_normal((1000, size)).astype(np.float32)
    every = all_points(size, pulses)
    cosines = x @ (every / np.linalg.norm(every, axis=1, keepdims=True)).T
    y = nearest_direction(x, pulses)
    assert (np.abs(y).sum(1) == pulses).all()
    np.testing.assert_allclose((x * y).sum(1) / np.linalg.norm(y, axis=1), cosines.max(1), rtol=1e-5)


@pytest.mark.parametrize(("size", "most"), [(3, 310), (8, 38), (16, 32), (24, 31)])
def test_too_many_partitions_for_a_search_by_angle(size, most):
    x = np.ones((1, size), np.float32)
    assert np.abs(nearest_direction(x, most)).sum() == most
    with pytest.raises(
        mcq.ConfigError, match=f"at most {most} for a search by angle in groups of {size}.*got {most + 1}"
    ):
        nearest_direction(x, most + 1)
