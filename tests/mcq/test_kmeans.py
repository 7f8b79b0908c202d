"""Centres of points, and codebooks fitted to what those before them leave."""

import numpy as np
import pytest

from mcq import kmeans as module
from mcq.kmeans import kmeans, nearest, progressive_kmeans, progressive_residual_kmeans, residual_kmeans
from mcq_ext import cpu


def rng_of(seed):
    return np.random.default_rng(seed)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def weighted_error(x, weight, centres):
    return (weight * np.square(x[:, None] - centres).sum(2).min(1)).sum(dtype=np.float64)


def test_kmeans_lowers_the_error_each_iteration():
    x, weight = normal(rng_of(0), 300, 3), np.exp(normal(rng_of(1), 300))
    errors = [weighted_error(x, weight, kmeans(x, weight, 16, i, rng_of(2))) for i in range(8)]
    assert (np.diff(errors) <= 1e-4).all()
    assert errors[-1] < 0.8 * errors[0]


def test_kmeans_finds_separate_clusters():
    corners = np.array([[0, 0], [0, 9], [9, 0], [9, 9]], np.float32)
    x = np.repeat(corners, 50, axis=0) + normal(rng_of(0), 200, 2) / 100
    errors = [weighted_error(x, 1, kmeans(x, np.ones(200, np.float32), 4, 10, rng_of(seed))) for seed in range(10)]
    assert min(errors) < 0.1


def test_kmeans_centres_are_weighted_means():
    """One centre: the mean, in which a point of weight zero has no part."""
    x, weight = normal(rng_of(0), 20, 2), np.exp(normal(rng_of(1), 20))
    weight[3], x[3] = 0, 1e6
    centre = kmeans(x, weight, 1, 2, rng_of(2))
    np.testing.assert_allclose(centre[0], np.average(x, axis=0, weights=weight), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_entries", [5, 6, 16])
def test_kmeans_with_an_entry_for_every_point(num_entries):
    x = normal(rng_of(0), 5, 2)
    centres = kmeans(x, np.ones(5, np.float32), num_entries, 3, rng_of(1))
    assert centres.shape == (num_entries, 2)
    assert weighted_error(x, 1, centres) < 1e-9


def test_kmeans_of_equal_points():
    centres = kmeans(np.ones((40, 2), np.float32), np.ones(40, np.float32), 8, 5, rng_of(0))
    np.testing.assert_array_equal(centres, 1)


def test_kmeans_of_points_without_weight_stays_finite():
    x = normal(rng_of(0), 40, 2)
    assert np.isfinite(kmeans(x, np.zeros(40, np.float32), 8, 5, rng_of(1))).all()


def test_kmeans_looks_at_a_sample_of_many_points(monkeypatch):
    monkeypatch.setattr(module, "SAMPLES_PER_ENTRY", 10)
    x = normal(rng_of(0), 5000, 2)
    few = kmeans(x, np.ones(5000, np.float32), 8, 10, rng_of(1))
    assert weighted_error(x, 1, few) < 0.5 * np.square(x).sum()


def test_residual_kmeans_lowers_the_error_with_each_codebook():
    x, ones = normal(rng_of(0), 500, 4), np.ones(500, np.float32)
    codebooks = residual_kmeans(x, ones, 3, 16, 5, rng_of(1))
    residual, errors = x.copy(), []
    for centres in codebooks:
        codes, _ = cpu.assign(residual, centres, np.square(centres).sum(1))
        residual -= centres[codes]
        errors.append(np.square(residual).sum())
    assert codebooks.shape == (3, 16, 4)
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def clustered(n, d=24):
    """Points of clusters along a few directions, with a little noise in all."""
    centres = normal(rng_of(1), 40, 6) @ normal(rng_of(2), 6, d)
    return centres[rng_of(3).integers(40, size=n)] + normal(rng_of(4), n, d) / 10


def test_progressive_kmeans_ends_lower_than_random_seeds():
    x = clustered(1200)
    ones = np.ones(len(x), np.float32)
    for seed in range(3):
        plain, grown = kmeans(x, ones, 40, 50, rng_of(seed)), progressive_kmeans(x, 40, 5, rng_of(seed))
        assert weighted_error(x, 1, grown) < 0.9 * weighted_error(x, 1, plain)


def test_progressive_kmeans_moves_with_the_points():
    x = clustered(300)
    here, there = (progressive_kmeans(points, 8, 4, rng_of(0)) for points in (x, x + 64))
    np.testing.assert_allclose(there - 64, here, atol=0.05)


@pytest.mark.parametrize("x", [np.ones((40, 3)), np.zeros((1, 5)), np.eye(4)[:, :1], normal(rng_of(0), 3, 7)], ids=str)
def test_progressive_kmeans_of_few_or_equal_points(x):
    x = np.ascontiguousarray(x, np.float32)
    centres = progressive_kmeans(x, 8, 4, rng_of(0))
    assert centres.shape == (8, x.shape[1])
    assert weighted_error(x, 1, centres) < 1e-6


def test_progressive_codebooks_lower_the_error_one_after_another():
    x = clustered(2000)
    codebooks, errors = progressive_residual_kmeans(x, 4, 16, 5, rng_of(0)), [np.square(x).sum()]
    for codebook in codebooks:
        x = x - codebook[nearest(x, codebook)]
        errors.append(np.square(x).sum())
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < 0.02 * errors[0]


def test_progressive_residual_kmeans_reports_each_codebook():
    seen = []
    codebooks = progressive_residual_kmeans(
        clustered(50), 3, 4, 2, rng_of(0), lambda done, total: seen.append((done, total))
    )
    assert codebooks.shape == (3, 4, 24)
    assert seen == [(1, 3), (2, 3), (3, 3)]
