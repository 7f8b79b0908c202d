"""Metrics: what they weigh, against dense matrices, and that equal metrics lead to equal results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq

D = 12
RNG = np.random.default_rng(0)
WEIGHTS = np.exp(RNG.standard_normal(D)).astype(np.float32)
FACTOR = RNG.standard_normal((D, 3)).astype(np.float32)
INPUTS = RNG.standard_normal((30, D)).astype(np.float32)
GRAM = (INPUTS.T @ INPUTS).astype(np.float32)

#: Each metric with the dense matrix that it stands for.
METRICS = {
    "identity": (mcq.Identity(), np.eye(D)),
    "diagonal": (mcq.Diagonal(WEIGHTS), np.diag(WEIGHTS)),
    "gram": (mcq.Gram(GRAM), GRAM),
    "lowrank": (mcq.LowRank(WEIGHTS, FACTOR), np.diag(WEIGHTS) + FACTOR @ FACTOR.T),
}


@pytest.fixture(params=METRICS.values(), ids=METRICS)
def metric_and_dense(request):
    return request.param


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((7, D)).astype(np.float32)


@pytest.mark.parametrize("columns", [slice(0, D), slice(0, 1), slice(3, 8), slice(D - 1, D)], ids=str)
def test_apply_block_and_diagonal_are_those_of_the_matrix(metric_and_dense, x, columns):
    metric, dense = metric_and_dense
    np.testing.assert_allclose(metric.apply(x, columns), x @ dense[:, columns], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metric.block(columns), dense[columns, columns], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metric.diagonal(D), np.diagonal(dense), rtol=1e-5)
    assert metric.apply(x, columns).dtype == metric.block(columns).dtype == np.float32


def test_arranged_reorders_and_pads(metric_and_dense):
    metric, dense = metric_and_dense
    order = np.array([5, 2, 11, D, 0, D + 1, 7])
    found = metric.arranged(order, D).block(slice(0, len(order)))
    real = order < D
    expected = np.where(np.outer(real, real), dense[np.ix_(order % D, order % D)], 0)
    if not isinstance(metric, mcq.Identity):  # which has no say in the padding, where the data are zero
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[np.ix_(real, real)], expected[np.ix_(real, real)], rtol=1e-5, atol=1e-5)


def test_couples_tells_whether_the_matrix_is_diagonal(metric_and_dense):
    metric, dense = metric_and_dense
    assert metric.couples == bool(np.any(dense != np.diag(np.diagonal(dense))))


def test_distortion_is_the_quadratic_form(metric_and_dense, x):
    metric, dense = metric_and_dense
    x_hat = x + np.float32(0.1) * x[::-1]
    error = (x - x_hat).astype(np.float64)
    assert metric.distortion(x, x_hat) == pytest.approx(np.einsum("nd,de,ne->", error, dense, error), rel=1e-5)
    assert metric.distortion(x, x) == 0
    assert metric.relative_error(x, np.zeros_like(x)) == 1
    assert metric.relative_error(np.zeros_like(x), np.zeros_like(x)) == 0


@pytest.mark.parametrize("factor", [2.0**66, 2.0**-66])
def test_distortion_of_huge_and_tiny_values(metric_and_dense, x, factor):
    metric, _ = metric_and_dense
    scaled = x * np.float32(factor)
    assert metric.distortion(scaled, np.zeros_like(x)) == metric.distortion(x, np.zeros_like(x)) * factor**2
    assert metric.relative_error(scaled, scaled / 2) == pytest.approx(0.25)


def test_for_search_is_the_metric_times_a_power_of_two(metric_and_dense):
    metric, dense = metric_and_dense
    scaled = metric.for_search().block(slice(0, D))
    factor = scaled[0, 0] / np.float32(dense[0, 0])
    assert np.log2(factor) == pytest.approx(np.round(np.log2(factor)), abs=1e-5)
    np.testing.assert_allclose(scaled, factor * dense, rtol=1e-4, atol=1e-5)
    assert 0.5 < np.diagonal(scaled).mean() < 2


def test_damping_adds_to_the_diagonal_in_the_search_only(x):
    plain, damped = mcq.Gram(GRAM), mcq.Gram(GRAM, damping=0.5)
    change = damped.for_search().matrix - plain.for_search().matrix
    mean = np.diagonal(plain.for_search().matrix).mean()
    np.testing.assert_allclose(change, 0.5 * mean * np.eye(D), atol=1e-5)
    assert damped.distortion(x, 0 * x) == plain.distortion(x, 0 * x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcq.Diagonal([1, -1]), "must not be negative.*entry 1"),
        (lambda: mcq.Diagonal([0, 0]), "all are zero"),
        (lambda: mcq.Diagonal([1, np.nan]), "finite"),
        (lambda: mcq.Diagonal([[1.0]]), "1-D"),
        (lambda: mcq.LowRank([1, 1], np.ones((3, 1))), "3 columns.*size 2"),
        (lambda: mcq.LowRank([1, -1], np.ones((2, 1))), "negative"),
        (lambda: mcq.LowRank([1, 1], [[np.inf], [0]]), "factor must be finite"),
        (lambda: mcq.Gram(np.eye(2), damping=-1), "damping must be"),
        (lambda: mcq.Gram(np.zeros((2, 2))), "all zero"),
    ],
)
def test_bad_metrics_are_refused(make, message):
    with pytest.raises(mcq.McqError, match=message):
        make()


def test_distortion_of_another_width_is_refused(x):
    with pytest.raises(mcq.InputError, match="weighs 11 columns, but the data have 12"):
        mcq.Diagonal(np.ones(11)).distortion(x, x)


#: Four ways to say the same.
EQUAL = {
    "identity": mcq.Identity(),
    "diagonal": mcq.Diagonal(np.ones(D)),
    "gram": mcq.Gram(np.eye(D)),
    "lowrank": mcq.LowRank(np.ones(D), np.zeros((D, 1))),
}


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3]), st.sampled_from(["none", "row", "group"]))
def test_equal_metrics_choose_equally_good_codes(seed, num_codebooks, scale):
    x = np.random.default_rng(seed).standard_normal((40, D)).astype(np.float32)
    q = mcq.AdditiveQuantizer(num_codebooks, 4, 4, scale, rounds=2).fit(x, seed=seed)
    errors = {name: mcq.Identity().relative_error(x, q.decode(q.encode(x, m))) for name, m in EQUAL.items()}
    assert max(errors.values()) <= min(errors.values()) * 1.02, errors


@pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer])
def test_equal_metrics_fit_equally_well(quantizer):
    x = np.random.default_rng(3).standard_normal((200, D)).astype(np.float32)
    errors = {}
    for name, metric in EQUAL.items():
        q = quantizer(2, 5, 4, rounds=6)
        errors[name] = mcq.Identity().relative_error(x, q.decode(q.fit_encode(x, metric)))
    if quantizer is mcq.ResidualQuantizer:  # a beam where nothing is coupled, one codebook at a time where it is
        assert errors["gram"] == pytest.approx(errors["lowrank"], rel=0.02)
        assert errors["identity"] == pytest.approx(errors["diagonal"], rel=0.02)
    assert max(errors.values()) <= min(errors.values()) * 1.1, errors
