"""Codebooks: starts and least-squares refits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq.codebooks import refit, start_codebooks
from mcq.problem import Problem
from mcq.scales import refit_scale, start_scale
from mcq_ext import cpu


def rng_of(seed):
    return np.random.default_rng(seed)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def weighted_error(x, weight, centres):
    return (weight * np.square(x[:, None] - centres).sum(2).min(1)).sum(dtype=np.float64)


def metric_named(name, d, seed=1):
    rng = rng_of(seed)
    weights, inputs = np.exp(rng.standard_normal(d)), rng.standard_normal((2 * d, d))
    return {
        "identity": mcq.Identity(),
        "diagonal": mcq.Diagonal(weights),
        "gram": mcq.Gram(inputs.T @ inputs),
        "singular": mcq.Gram(inputs[:3].T @ inputs[:3]),
        "lowrank": mcq.LowRank(weights, inputs[:2].T),
    }[name]


METRICS = ["identity", "diagonal", "gram", "singular", "lowrank"]


class Fitting:
    """A problem with codebooks and codes somewhere on the way through a fit."""

    def __init__(self, seed, metric="gram", kind="row", num_codebooks=2, k=8, n=60, d=12, g=4):
        rng = rng_of(seed)
        self.problem = Problem.arrange(normal(rng, n, d), metric_named(metric, d), g)
        self.kind = kind
        self.scale = start_scale(self.problem, kind)
        self.codebooks = start_codebooks(self.problem, self.scale, num_codebooks, k, rng)
        self.codes = rng.integers(k, size=(n, self.problem.num_groups, num_codebooks)).astype(np.uint16)

    @property
    def spread(self):
        return np.broadcast_to(self.scale, self.codes.shape[:2])

    def refit(self, iterations=8):
        return refit(self.problem, self.codes, self.codebooks, self.spread, iterations)

    def distortion(self, codebooks=None, scale=None):
        spread = self.spread if scale is None else np.broadcast_to(scale, self.codes.shape[:2])
        codebooks = self.codebooks if codebooks is None else codebooks
        return self.problem.metric.distortion(self.problem.x, cpu.decode(self.codes, codebooks, spread))


@given(
    st.integers(0, 2**32),
    st.sampled_from(METRICS),
    st.sampled_from(["none", "row", "group"]),
    st.sampled_from([(1, 2, 1), (2, 2, 1), (1, 16, 4), (2, 8, 4), (4, 4, 3)]),
)
def test_refit_never_raises_the_distortion(seed, metric, kind, sizes):
    num_codebooks, k, g = sizes
    case = Fitting(seed, metric, kind, num_codebooks, k, g=g)
    before = case.distortion()
    for _ in range(3):
        case.codebooks = case.refit()
        after = case.distortion()
        assert after <= before * (1 + 1e-5)
        before = after


@pytest.mark.parametrize("metric", ["diagonal", "gram"])
@pytest.mark.parametrize("num_codebooks", [1, 2, 4])
def test_refit_again_and_again_stays_put(metric, num_codebooks):
    """Sums do not change if one codebook moves one way and another the other way: nothing may drift off there."""
    case = Fitting(0, metric, num_codebooks=num_codebooks, k=2, g=1)
    for _ in range(30):
        case.codebooks = case.refit(20)
    best = case.distortion()
    assert np.abs(case.codebooks).max() < 10
    case.codebooks = case.refit(20)
    assert case.distortion() == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_cholesky_and_conjugate_gradients_agree(num_codebooks):
    by_cholesky = Fitting(0, "identity", num_codebooks=num_codebooks)
    by_gradients = Fitting(0, "identity", num_codebooks=num_codebooks)
    by_gradients.problem = Problem.arrange(
        by_cholesky.problem.x * np.float32(by_cholesky.problem.gain), mcq.Diagonal(np.ones(12)), 4
    )
    one, other = by_cholesky.refit(), by_gradients.refit(200)
    distortions = by_cholesky.distortion(one), by_gradients.distortion(other)
    assert distortions[0] == pytest.approx(distortions[1], rel=1e-3)
    if num_codebooks == 1:  # else the codebooks are free to shift against each other
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_refit_of_one_codebook_reaches_the_least_squares_solution(metric):
    """Against a dense solver over all entries at once."""
    case = Fitting(0, metric, num_codebooks=1, k=4)
    n, groups, _ = case.codes.shape
    k, g = case.codebooks.shape[1:]
    design = np.zeros((n, groups * g, k * g))
    for i, j in np.ndindex(n, groups):
        code = case.codes[i, j, 0]
        design[i, j * g : (j + 1) * g, code * g : (code + 1) * g] = case.spread[i, j] * np.eye(g)
    values, vectors = np.linalg.eigh(case.problem.metric.block(slice(0, groups * g)).astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))
    weighted = np.einsum("de,ndk->nek", root, design).reshape(-1, k * g)
    solution, *_ = np.linalg.lstsq(weighted, (case.problem.x @ root).ravel(), rcond=None)
    best = case.distortion(solution.reshape(1, k, g).astype(np.float32))
    assert case.distortion(case.refit(200)) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("metric", ["identity", "gram"])
def test_entries_without_use_keep_their_value(metric):
    case = Fitting(0, metric)
    case.codes[case.codes >= 6] = 0
    np.testing.assert_allclose(case.refit()[:, 6:], case.codebooks[:, 6:], atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_refit_where_all_scales_are_zero(metric):
    case = Fitting(0, metric)
    case.scale = np.zeros_like(case.scale)
    np.testing.assert_array_equal(case.refit(), case.codebooks)


@given(st.integers(0, 2**32), st.sampled_from(METRICS), st.sampled_from(["row", "group"]))
def test_refit_of_scales_never_raises_the_distortion(seed, metric, kind):
    case = Fitting(seed, metric, kind)
    before = case.distortion()
    scale = refit_scale(case.problem, case.codes, case.codebooks, case.scale, kind)
    assert scale.shape == case.scale.shape
    best = case.distortion(scale=scale)
    assert best <= before * (1 + 1e-5)
    if kind == "row":
        for factor in (0.99, 1.01):
            assert best <= case.distortion(scale=scale * np.float32(factor)) * (1 + 1e-5)


def test_refit_without_scales_leaves_the_ones():
    case = Fitting(0, kind="none")
    assert refit_scale(case.problem, case.codes, case.codebooks, case.scale, "none") is case.scale


def test_an_entry_that_hardly_counts_stays_near_its_place():
    """Least squares alone would move the entry of a tiny scale by 1e4 times the size of the data."""
    rng = rng_of(0)
    factor = normal(rng, 16, 16)
    problem = Problem.arrange(normal(rng, 64, 16), mcq.Gram(factor @ factor.T), 8)
    codes, scale = np.zeros((64, 2, 1), np.uint16), np.ones((64, 2), np.float32)
    codes[0], scale[0] = 1, 1e-4
    start = normal(rng, 1, 2, 8)
    moved = np.abs(refit(problem, codes, start, scale, 8) - start)[0].max(1)
    assert moved[0] > 0.1
    assert moved[1] < 0.1
