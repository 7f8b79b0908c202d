"""Kernels of pyramids and shells against their specification, and against trying every point."""

import functools
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcq.lattices import Pyramid, Shell
from mcq_ext import cpu_lattice, reference_lattice

ROWS = st.sampled_from([1, 2, 15, 16, 17, 33, 71])
SIZES = st.sampled_from([1, 2, 3, 5, 8, 16, 24, 33])
BUDGETS = st.integers(1, 24)
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="session")
def same(assert_same):
    return functools.partial(assert_same, kernels=cpu_lattice, specification=reference_lattice)


def public_functions(module):
    members = inspect.getmembers(module, inspect.isfunction)
    return {name for name, f in members if f.__module__ == module.__name__ and not name.startswith("_")}


def test_modules_have_the_same_functions():
    names = public_functions(reference_lattice)
    assert names == public_functions(cpu_lattice)
    for name in names:
        assert inspect.signature(getattr(cpu_lattice, name)) == inspect.signature(getattr(reference_lattice, name))


def make(seed, n, size):
    """Vectors of many kinds: normal, tied, sparse, zero, tiny and huge; with scales, gains and weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, size)) * rng.choice([0, 1e-42, 1e-3, 1, 1, 1, 1e3, 1e12], (n, 1))
    x[rng.random(n) < 0.3] = rng.integers(-2, 3, size)
    x[rng.random(x.shape) < 0.1] = -0.0
    inverse = np.where(rng.random(n) < 0.1, 0, np.exp(rng.standard_normal(n)))
    gains = np.where(rng.random(3) < 0.1, 0, np.exp(rng.standard_normal(3)))
    weights = np.exp(3 * rng.standard_normal(size)) if rng.random() < 0.5 else np.ones(size)
    return [values.astype(np.float32) for values in (x, inverse, gains, weights)]


@given(SEEDS, ROWS, SIZES, BUDGETS)
def test_pyramid_search(same, seed, n, size, pulses):
    y, _ = same(lambda kernels: kernels.pyramid_search(*make(seed, n, size), pulses))
    assert (np.abs(y.astype(int)).sum(1) == pulses).all()


@settings(max_examples=30)
@given(SEEDS, ROWS, SIZES.filter(lambda size: size > 3), BUDGETS)
def test_shell_search(same, seed, n, size, squared_norm):
    y, _ = same(lambda kernels: kernels.shell_search(*make(seed, n, size), squared_norm))
    assert (np.square(y, dtype=int).sum(1) == squared_norm).all()


@given(SEEDS, ROWS, SIZES, st.integers(1, 40))
def test_leader_search(same, seed, n, size, num_leaders):
    rng = np.random.default_rng(seed)
    leaders = -np.sort(-rng.integers(0, 4, (num_leaders, size))).astype(np.float32)
    factor = rng.random(num_leaders, np.float32)
    same(lambda kernels: kernels.leader_search(make(seed, n, size)[0], leaders, factor))


@settings(max_examples=30)
@given(SEEDS, ROWS, SIZES.filter(lambda size: size > 3), BUDGETS, st.booleans())
def test_budget_search(same, seed, n, size, budget, squared):
    x, inverse, *_ = make(seed, n, size)
    rng = np.random.default_rng(seed)
    factor = np.triu(rng.standard_normal((size, size)), 1) / 2 + np.diag(np.exp(rng.standard_normal(size) / 2))
    y = same(lambda kernels: kernels.budget_search(x, inverse, factor.astype(np.float32), budget, squared))
    spent = np.square(y, dtype=int) if squared else np.abs(y.astype(int))
    assert (spent.sum(1) == budget).all()


@pytest.mark.parametrize("kind", [Pyramid, Shell])
def test_budget_search_is_exact_without_coupling_and_near_with(kind):
    rng = np.random.default_rng(0)
    lattice, x, one = kind(5, 6), rng.standard_normal((300, 5)).astype(np.float32), np.ones(300, np.float32)
    every = points(5, 6, kind.squared)
    coupled = np.triu(rng.standard_normal((5, 5)), 1) / 2 + np.diag([1, 2, 0.5, 1, 1.5])
    for factor, slack in ((np.diag(np.diagonal(coupled)), 1e-5), (coupled, 0.2)):
        y = lattice.nearest_under(x, one, factor.astype(np.float32))
        least = np.square((x[:, None] - every) @ factor).sum(2).min(1)
        assert np.square((x - y) @ factor).sum() <= (1 + slack) * least.sum()
    alone, _ = lattice.nearest(x, one, one[:1], np.square(factor).sum(1).astype(np.float32))
    assert np.square((x - y) @ factor).sum() < 0.9 * np.square((x - alone) @ factor).sum()


@pytest.mark.parametrize(("budget", "agreeing"), [(39, 1.0), (78, 0.85), (173, 0.85)])
def test_likely_gains_are_those_of_the_nearest_points(budget, agreeing):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((500, 16)).astype(np.float32), np.exp(rng.standard_normal(16) / 4)
    inverse, gains = np.exp(rng.standard_normal(500) / 8).astype(np.float32), np.linspace(0.6, 1.6, 8) / budget**0.5 * 4
    lattice, args = Shell(16, budget), (x, inverse, gains.astype(np.float32), weights.astype(np.float32))
    found, exact = lattice.likely_gains(*args).astype(int), lattice.nearest(*args)[1].astype(int)
    assert (found == exact).mean() >= agreeing
    assert abs(found - exact).max() <= 1


def points(size, budget, squared):
    """Every point, by trying all vectors of the cube around them."""
    cube = np.array(list(itertools.product(range(-budget, budget + 1), repeat=size)))
    spent = np.square(cube).sum(1) if squared else np.abs(cube).sum(1)
    return cube[spent == budget]


SMALL = [(1, 1), (1, 4), (2, 5), (3, 4), (4, 2), (4, 5), (5, 3)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [Pyramid, Shell])
@pytest.mark.parametrize(("size", "budget"), SMALL)
def test_nothing_is_nearer(kind, size, budget, weighted):
    every = points(size, budget, kind.squared)
    rng = np.random.default_rng(size * budget)
    x = rng.standard_normal((500, size)).astype(np.float32)
    inverse, gains = np.exp(rng.standard_normal(500) / 4).astype(np.float32), np.array([0.1, 0.35, 0.6], np.float32)
    weights = np.exp(2 * rng.standard_normal(size)).astype(np.float32) if weighted else None
    y, gain = kind(size, budget).nearest(x, inverse, gains, weights)
    w, scaled = (np.ones(size) if weights is None else weights), x * inverse[:, None]
    costs = [(w * np.square(scaled[:, None] - s * every)).sum(2).min(1) for s in gains]
    found = (w * np.square(scaled - gains[gain][:, None] * y)).sum(1)
    np.testing.assert_allclose(found, np.min(costs, axis=0), rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(
    SEEDS,
    ROWS,
    st.sampled_from([(Pyramid, 16, 11), (Pyramid, 1, 3), (Shell, 16, 19), (Shell, 5, 60), (Pyramid, 16, 58)]),
)
def test_rank_and_unrank(same, seed, n, case):
    kind, size, budget = case
    lattice = kind(size, budget)
    rng = np.random.default_rng(seed)
    ranks = np.append(rng.integers(lattice.count, size=n, dtype=np.uint64), np.array([0, lattice.count - 1], np.uint64))
    before, squared = lattice._before, kind.squared
    y = same(lambda kernels: kernels.lattice_unrank(ranks, before, budget, squared))
    again = same(lambda kernels: kernels.lattice_rank(y, before, budget, squared))
    np.testing.assert_array_equal(again, ranks)


NO_ROWS = {
    "budget_search": lambda kernels: kernels.budget_search(
        np.empty((0, 4), np.float32), np.empty(0, np.float32), np.eye(4, dtype=np.float32), 3, False
    ),
    "pyramid_search": lambda kernels: kernels.pyramid_search(*make(0, 0, 4), 3),
    "shell_search": lambda kernels: kernels.shell_search(*make(0, 0, 4), 3),
    "leader_search": lambda kernels: kernels.leader_search(
        np.empty((0, 2), np.float32), np.ones((1, 2), np.float32), np.ones(1, np.float32)
    ),
    "lattice_rank": lambda kernels: kernels.lattice_rank(np.empty((0, 4), np.int16), Pyramid(4, 3)._before, 3, False),
    "lattice_unrank": lambda kernels: kernels.lattice_unrank(np.empty(0, np.uint64), Pyramid(4, 3)._before, 3, False),
}


@pytest.mark.parametrize("compute", NO_ROWS.values(), ids=NO_ROWS)
def test_no_rows(same, compute):
    same(compute)
