"""Rotations of rows before they are cut into slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq.kmeans import KMEANS_ITERATIONS, kmeans, nearest, sampled
from mcq_ext import cpu

Floats = NDArray[np.float32]

#: Of rotation and codes.
ALTERNATIONS = 20


def random_rotation(x: Floats, num_splits: int, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return an orthogonal matrix (d, d), uniformly distributed; of `x` only the width counts."""
    q, r = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def learned_rotation(x: Floats, num_splits: int, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return a rotation (d, d) after which a product quantizer with K entries a slice loses little.

    Alternates between the codes of the rotated rows and the rotation that brings the rows nearest to what the codes
    stand for (Procrustes; OPQ, Ge et al., CVPR 2013). The start decides: rows as they are, and principal axes dealt
    out so that the slices carry equal products of variances, are both tried.

    Parameters
    ----------
    x : array of shape (n, d)
        At most 256 rows per entry are looked at.
    num_splits, num_entries : int
    rng : Generator

    Notes
    -----
    Costs O(n d (K + d)) an alternation.
    """
    x = sampled(x, num_entries, rng)
    starts = [np.eye(x.shape[1], dtype=np.float32), _balanced_axes(x, num_splits)]
    found = [_alternate(x, start, num_splits, num_entries, rng) for start in starts]
    return min(found, key=lambda pair: pair[0])[1]


def _alternate(
    x: Floats, rotation: Floats, num_splits: int, num_entries: int, rng: np.random.Generator
) -> tuple[float, Floats]:
    """Return the squared error that the alternation ends at, and its rotation."""
    width = -(-x.shape[1] // num_splits)
    bounds = [slice(start, start + width) for start in range(0, x.shape[1], width)]
    ones = np.ones(len(x), np.float32)
    rotated = cpu.matmul(x, rotation)
    centres = [kmeans(_part(rotated, part), ones, num_entries, KMEANS_ITERATIONS, rng) for part in bounds]
    for _ in range(ALTERNATIONS):
        decoded = np.concatenate(
            [c[nearest(_part(rotated, p), c)] for p, c in zip(bounds, centres, strict=True)], axis=1
        )
        u, _, vt = np.linalg.svd(x.T.astype(np.float64) @ decoded)
        rotation = (u @ vt).astype(np.float32)
        rotated = cpu.matmul(x, rotation)
        centres = [_recentred(_part(rotated, p), c) for p, c in zip(bounds, centres, strict=True)]
    parts = [c[nearest(_part(rotated, p), c)] for p, c in zip(bounds, centres, strict=True)]
    decoded = np.concatenate(parts, axis=1)
    return float(np.square(rotated - decoded, dtype=np.float64).sum()), rotation


def _part(x: Floats, columns: slice) -> Floats:
    return np.ascontiguousarray(x[:, columns])


def _recentred(x: Floats, centres: Floats) -> Floats:
    """Return the means of the rows nearest to each centre; a centre without rows stays."""
    codes = nearest(x, centres)
    sums = cpu.scatter_add(codes.reshape(-1, 1, 1), x, np.ones((len(x), 1), np.float32), len(centres))[0]
    uses = np.bincount(codes, minlength=len(centres))[:, None]
    return np.where(uses > 0, sums / np.maximum(uses, 1), centres).astype(np.float32)


def _balanced_axes(x: Floats, num_splits: int) -> Floats:
    """Return the principal axes (d, d) in an order in which all slices have about the same product of variances."""
    d = x.shape[1]
    centred = x - x.mean(0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    width = -(-d // num_splits)
    sizes = [len(range(start, min(start + width, d))) for start in range(0, d, width)]
    dealt: list[list[int]] = [[] for _ in sizes]
    logs = np.log(np.maximum(variance, 1e-12 * variance.max() + np.finfo(np.float64).tiny))
    for axis in np.argsort(-variance, kind="stable"):
        open_slices = [s for s, size in enumerate(sizes) if len(dealt[s]) < size]
        dealt[min(open_slices, key=lambda s: logs[dealt[s]].sum())].append(int(axis))
    return np.ascontiguousarray(axes[:, [axis for part in dealt for axis in part]], np.float32)
