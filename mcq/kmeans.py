"""Centres of points, and codebooks from them: one after another, each of what those before it leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcq.quantizer import Progress, ignore_progress
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Points per entry that k-means looks at; more hardly move the centres.
SAMPLES_PER_ENTRY = 256
KMEANS_ITERATIONS = 10
#: Steps in which progressive k-means comes to all coordinates.
GROWTH_STEPS = 10


def nearest(x: Floats, centres: Floats) -> Words:
    """Return for each point (n, g) the nearest of the centres (K, g), the first one on a tie."""
    return cpu.assign(x, centres, np.einsum("kg,kg->k", centres, centres))[0]


def sampled(x: NDArray[Any], num_entries: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return as many of the points as `num_entries` centres need."""
    most = SAMPLES_PER_ENTRY * num_entries
    return x[rng.choice(len(x), most, replace=False)] if len(x) > most else x


def kmeans(x: Floats, weight: Floats, num_entries: int, iterations: int, rng: np.random.Generator) -> Floats:
    """Return centres (K, g) that lower the sum over points of weight * |x - centre|^2 (Lloyd).

    Parameters
    ----------
    x : array of shape (n, g)
    weight : array of shape (n,)
    num_entries : int
        K; may exceed n.
    iterations : int
    rng : Generator

    Notes
    -----
    Costs O(n K g) an iteration. Seeds are points drawn at random; a centre that loses all its points moves to a
    random one.
    """
    rows = sampled(np.arange(len(x)), num_entries, rng)
    x, weight = x[rows], weight[rows]
    return _lloyd(x, weight, _seeds(x, num_entries, rng), iterations, rng)


def progressive_kmeans(x: Floats, num_entries: int, iterations: int, rng: np.random.Generator) -> Floats:
    """Return centres (K, g) as `kmeans`, from centres of the leading principal coordinates, then of more and more.

    Random seeds leave high-dimensional centres in poor local minima; in few dimensions there are hardly any, and those
    of more start there (Liu, Shao and Lu, Generalized residual vector quantization, 2015).

    Parameters
    ----------
    x : array of shape (n, g)
    num_entries : int
    iterations : int
        In each of `GROWTH_STEPS` steps.
    rng : Generator
    """
    x = sampled(x, num_entries, rng)
    mean = x.mean(0)
    x = x - mean
    # float64 eigenvectors, rounded: their last bits may depend on the BLAS.
    axes = np.linalg.eigh(cpu.matmul(np.ascontiguousarray(x.T), x).astype(np.float64))[1][:, ::-1]
    axes = np.ascontiguousarray(axes, np.float32)
    x = cpu.matmul(x, axes)
    g = x.shape[1]
    widths = sorted({round(g ** (step / GROWTH_STEPS)) for step in range(1, GROWTH_STEPS + 1)})
    centres, ones = np.zeros((num_entries, g), np.float32), np.ones(len(x), np.float32)
    centres[:, : widths[0]] = _seeds(x[:, : widths[0]], num_entries, rng)
    for width in widths:
        part, start = (np.ascontiguousarray(a[:, :width]) for a in (x, centres))
        centres[:, :width] = _lloyd(part, ones, start, iterations, rng)
    return cpu.matmul(centres, np.ascontiguousarray(axes.T)) + mean


def _seeds(x: Floats, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return points drawn at random (K, g), each as often as any other if there are too few."""
    return x[rng.permutation(np.resize(rng.permutation(len(x)), max(num_entries, len(x))))[:num_entries]].copy()


def _lloyd(x: Floats, weight: Floats, centres: Floats, iterations: int, rng: np.random.Generator) -> Floats:
    """Move centres (K, g), in place, to the means of the points that are nearest to them, so many times."""
    ones, weighted, k = np.ones((len(x), 1), np.float32), x * weight[:, None], len(centres)
    for _ in range(iterations):
        codes = nearest(x, centres)
        sums = cpu.scatter_add(codes.reshape(-1, 1, 1), weighted, ones, k)[0]
        total = np.bincount(codes, weights=weight, minlength=k)
        live = total > 0
        centres[live] = sums[live] / total[live, None]
        centres[~live] = x[rng.integers(len(x), size=int((~live).sum()))]
    return centres


def residual_kmeans(
    x: Floats, weight: Floats, num_codebooks: int, num_entries: int, iterations: int, rng: np.random.Generator
) -> Floats:
    """Return codebooks (M, K, g), each the k-means centres of what those before it leave of the points (n, g)."""
    return _in_turn(x, num_codebooks, lambda rest: kmeans(rest, weight, num_entries, iterations, rng))


def progressive_residual_kmeans(
    x: Floats,
    num_codebooks: int,
    num_entries: int,
    iterations: int,
    rng: np.random.Generator,
    done: Progress = ignore_progress,
) -> Floats:
    """Return codebooks (M, K, g) as `residual_kmeans` for points of equal weight, from `progressive_kmeans`.

    Calls ``done(m, M)`` after the m-th codebook.
    """
    points = sampled(x, num_entries, rng)
    return _in_turn(points, num_codebooks, lambda rest: progressive_kmeans(rest, num_entries, iterations, rng), done)


def _in_turn(
    x: Floats, num_codebooks: int, centres_of: Callable[[Floats], Floats], done: Progress = ignore_progress
) -> Floats:
    """Return codebooks (M, K, g), each the centres of what those before it leave."""
    residual, codebooks = x.copy(), []
    for m in range(num_codebooks):
        centres = centres_of(residual)
        residual -= centres[nearest(residual, centres)]
        codebooks.append(centres)
        done(m + 1, num_codebooks)
    return np.stack(codebooks)
