"""Depths that follow size and weight, grids, and a rate that is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq import levels
from mcq.levels import GRIDS, Groups, allocate_depths, gaussian_distortion

RNG = np.random.default_rng(0)
SIZES = np.exp(RNG.standard_normal(80))
X = (RNG.standard_normal((700, 80)) * SIZES).astype(np.float32)
INPUTS = RNG.standard_normal((300, 80)) @ (RNG.standard_normal((80, 80)) * np.exp(RNG.standard_normal(80)))
GRAM = mcq.Gram(INPUTS.T @ INPUTS)


def error(quantizer, x=X, metric=None):
    return (metric or mcq.Identity()).relative_error(x, quantizer.decode(quantizer.fit_encode(x, metric)))


@pytest.mark.parametrize("bits", [0.4, 1.0, 2.0, 2.3, 3.0, 4.7, 8.0])
@pytest.mark.parametrize("group_size", [200, 700])
@pytest.mark.parametrize("metric", [None, GRAM], ids=["identity", "gram"])
def test_rate_is_kept_all_in_and_used(bits, group_size, metric):
    quantizer = mcq.CompandedQuantizer(bits, group_size)
    counted = quantizer.bits(quantizer.fit_encode(X, metric))
    assert counted.all_in <= bits
    assert counted.all_in > min(bits, 8) - 0.25  # a byte of a row of 80 entries is 0.1 bits


def test_more_bits_lower_the_error():
    errors = [error(mcq.CompandedQuantizer(bits), metric=GRAM) for bits in (1, 2, 3, 4, 5, 6)]
    assert all(later < 0.5 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


def test_depths_follow_size_and_weight():
    depths = mcq.CompandedQuantizer(3.0).fit(X).depths[0].astype(int)
    by_size = depths[np.argsort(SIZES)]
    assert by_size[:20].mean() + 2 < by_size[-20:].mean()
    even = (X / SIZES).astype(np.float32)
    weighted = mcq.CompandedQuantizer(3.0).fit(even, mcq.Diagonal(SIZES**2)).depths[0].astype(int)
    assert np.abs(weighted - depths).max() <= 1


def test_allocation_beats_one_depth_for_all():
    quantizer = mcq.CompandedQuantizer(3.0)
    codes = quantizer.fit_encode(X)
    depths = np.full((1, 80), int(quantizer.bits(codes).payload) + 1, np.uint8)  # even with more bits
    groups = Groups.fit([X], depths, GRIDS)
    columns = np.arange(80)
    rebuilt = np.zeros_like(X)
    for cluster, columns, grid, depth in groups.alike():
        rebuilt[:, columns] = groups.rebuild(
            groups.round(X[:, columns], cluster, columns, grid, depth), cluster, columns, grid, depth
        )
    assert mcq.Identity().relative_error(X, quantizer.decode(codes)) < mcq.Identity().relative_error(X, rebuilt)


def test_rows_of_different_size_are_separated():
    x = X * np.exp(2 * RNG.standard_normal((700, 1))).astype(np.float32)
    assert error(mcq.CompandedQuantizer(3.5, 100), x) < 0.6 * error(mcq.CompandedQuantizer(3.5, 700), x)


@pytest.mark.parametrize(
    ("draw", "best"),
    [(RNG.standard_normal, "lloyd"), (RNG.random, "uniform"), (lambda size: RNG.laplace(size=size), "companded")],
    ids=["gaussian", "uniform", "laplacian"],
)
def test_each_grid_is_best_where_it_should_be(draw, best):
    x = draw((4000, 8))
    errors = {grid: error(mcq.CompandedQuantizer(5.2, 4000, grid), x) for grid in (*GRIDS, "best")}
    assert min(GRIDS, key=errors.get) == best
    assert errors["best"] <= min(errors.values()) * 1.001


@pytest.mark.parametrize("depth", range(1, 9))
def test_gaussian_error_is_that_of_lloyd_and_max(depth):
    x = np.random.default_rng(1).standard_normal((50_000, 1)).astype(np.float32)
    groups = Groups.fit([x], np.array([[depth]], np.uint8), ("lloyd",))
    rebuilt = groups.rebuild(groups.round(x, 0, [0], "lloyd", depth), 0, [0], "lloyd", depth)
    assert np.mean((x - rebuilt) ** 2) == pytest.approx(gaussian_distortion()[depth], rel=0.05)


def test_known_distortions():
    np.testing.assert_allclose(gaussian_distortion()[:5], [1, 0.36338, 0.11748, 0.03455, 0.00950], atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("depth", range(9))
def test_levels_are_ascending_and_even(grid, depth):
    values = levels.levels(grid, depth)
    assert values.shape == (1 << depth,)
    assert (np.diff(values) > 0).all()
    np.testing.assert_allclose(values, -values[::-1], atol=1e-6)
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    nearest = np.abs(x[:, None] - values).min(1)
    np.testing.assert_allclose(np.abs(x - values[levels.nearest_level(x, grid, depth)]), nearest, atol=1e-6)


@pytest.mark.parametrize("depth", range(9))
def test_many_entries_get_the_levels_that_few_get(depth):
    """Comparison with all edges and binary search agree, on the edges too."""
    values = levels.levels("lloyd", depth)
    edges = (values[1:] + values[:-1]) * np.float32(0.5)
    x = np.concatenate([np.linspace(-6, 6, levels.MANY_ENTRIES, dtype=np.float32), edges])
    found = levels.nearest_level(x, "lloyd", depth)
    few = [levels.nearest_level(part, "lloyd", depth) for part in np.array_split(x, 7)]
    np.testing.assert_array_equal(found, np.concatenate(few))


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 9))
def test_allocation_keeps_its_budget_and_prefers_power(seed, groups, budget):
    power = np.exp(3 * np.random.default_rng(seed).standard_normal(groups))
    depths = allocate_depths(power, lambda depths: depths.mean(), budget)
    assert depths.mean() <= budget
    assert depths.min() >= 0
    assert depths.max() <= 8
    assert (np.diff(depths[np.argsort(power)]) >= 0).all()
    assert depths.mean() >= min(8, budget - 1 / groups - 1e-9)


def test_no_allocation_below_the_cost_of_nothing():
    assert allocate_depths(np.ones(3), lambda depths: 5 + depths.sum(), 4.9) is None
    with pytest.raises(mcq.InputError, match=r"bits must exceed 3\.\d+.*larger group_size"):
        mcq.CompandedQuantizer(3.0).fit(X[:12])


def test_new_rows_get_the_cluster_of_their_size():
    x = X * np.exp(2 * RNG.standard_normal((700, 1))).astype(np.float32)
    quantizer = mcq.CompandedQuantizer(4.0, 100)
    of_fit = quantizer.fit_encode(x)
    assert quantizer.encode(x[100:200]) == of_fit[100:200]
    assert quantizer.encode(x[::-1])[:1] == of_fit[699:]
    assert sorted(set(of_fit.side["layouts"].tolist())) == list(range(7))


def test_feedback_lowers_the_error():
    quantizer = mcq.CompandedQuantizer(3.0)
    plain = mcq.Diagonal(np.diagonal(GRAM.matrix))
    without = GRAM.relative_error(X, quantizer.decode(quantizer.fit_encode(X, plain)))
    assert error(quantizer, metric=GRAM) < 0.75 * without


def test_codes_of_another_fit_are_refused():
    quantizer = mcq.CompandedQuantizer(3.0).fit(X)
    with pytest.raises(mcq.InputError, match="same options and fit"):
        quantizer.decode(mcq.CompandedQuantizer(4.0).fit_encode(X))
    with pytest.raises(mcq.InputError, match="ScalarCodes, got Codes"):
        quantizer.decode(mcq.AdditiveQuantizer(1, 4).fit_encode(X))
    with pytest.raises(mcq.InputError, match="as wide as those of the fit, 80 columns, got 79"):
        quantizer.encode(X[:, 1:])


@pytest.mark.parametrize(
    "options", [{"bits": -1}, {"bits": "3"}, {"group_size": 0}, {"grid": "lattice"}], ids=lambda o: next(iter(o))
)
def test_bad_options_are_refused(options):
    ((name, _),) = options.items()
    with pytest.raises(mcq.ConfigError, match=f"{name} must be"):
        mcq.CompandedQuantizer(**options)
