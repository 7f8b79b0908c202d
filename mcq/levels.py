"""Levels of scalar codes: three kinds of grids, fitted to groups of entries, and the depth that each group gets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcq.grids import gaussian_grid
from mcq.scales import reciprocal, stored_scale

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bytes = NDArray[np.uint8]

MAX_DEPTH = 8
#: In the order of their numbers in files.
GRIDS = ("companded", "lloyd", "uniform")
#: Scales that are tried, in units of the deviation of a group and with the outermost levels where Lloyd's are.
SCALES = 2.0 ** np.arange(-0.75, 1.75, 0.25)
#: Groups that are tried for what an allocation leaves.
FILLS = 256
#: Levels up to which comparing with every edge is faster than a binary search, and entries from which on.
FEW_LEVELS, MANY_ENTRIES = 32, 1 << 12
#: Least-squares fits of scale and offset after the best of these.
FITS = 3


@functools.cache
def levels(grid: str, depth: int) -> Floats:
    """Return the 2**depth levels of a grid, ascending, with the outermost one where Lloyd's is for a standard Gaussian.

    "lloyd" is optimal for a Gaussian; "uniform" has equal steps; "companded" has its levels at equal steps of the
    Laplace distribution function of three times the deviation, which is optimal for a Laplacian and many levels.

    Examples
    --------
    >>> [levels(grid, 2).astype(float).round(2).tolist() for grid in GRIDS]
    [[-1.51, -0.31, 0.31, 1.51], [-1.51, -0.45, 0.45, 1.51], [-1.51, -0.5, 0.5, 1.51]]
    """
    if depth == 0:
        return np.zeros(1, np.float32)
    best = gaussian_grid(1, 1 << depth)[:, 0].astype(np.float64)
    steps = (2 * np.arange(1 << depth) + 1) / (1 << depth) - 1
    if grid == "companded":
        steps = -np.sign(steps) * np.log1p(-np.abs(steps))
    shape: Doubles = best if grid == "lloyd" else steps * (best[-1] / steps[-1])
    return shape.astype(np.float32)


def nearest_level(x: Floats, grid: str, depth: int) -> Bytes:
    """Return the number of the level nearest to each entry, the lower one half-way between two."""
    edges = _edges(grid, depth)
    if len(edges) >= FEW_LEVELS or x.size < MANY_ENTRIES:
        return np.searchsorted(edges, x).astype(np.uint8)
    found = np.zeros(x.shape, np.uint8)
    for edge in edges:
        found += x > edge
    return found


@functools.cache
def _edges(grid: str, depth: int) -> Floats:
    values = levels(grid, depth)
    return (values[1:] + values[:-1]) * np.float32(0.5)


@functools.cache
def gaussian_distortion() -> Doubles:
    """Return the squared error of 0 to 8 bits for a standard Gaussian: one minus what the levels carry."""
    carried = [0.0]
    for depth in range(1, MAX_DEPTH + 1):
        values = gaussian_grid(1, 1 << depth)[:, 0].astype(np.float64)
        edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        carried.append(float(np.sum(values * -np.diff(density))))
    return 1 - np.array(carried)


def allocate_depths(
    power: Doubles, cost: Callable[[NDArray[np.int64]], float], budget: float
) -> NDArray[np.int64] | None:
    """Return depths, 0 to 8, that cost at most `budget` and leave little of the power of all groups together.

    Minimises sum over groups of power * D(depth) + (2 ** m) * depth, D the squared error of a standard Gaussian; the
    logarithm m of the multiplier is found by bisection. What is left of the budget goes to the groups that come next.

    Parameters
    ----------
    power : array of any shape
        Of each group: mean weighted squared deviation.
    cost : callable
        Of an array of depths; must not fall when depths rise.
    budget : float

    Returns
    -------
    array of the shape of `power`, int64, or None
        None if even depths of zero cost more than `budget`.
    """
    saved = -np.diff(gaussian_distortion()) * power[..., None]

    def depths(multiplier: float) -> NDArray[np.int64]:
        # D is convex: a group takes a bit as long as the bit saves more than it costs
        return (saved > 2.0**multiplier).sum(-1)

    low, high = -160.0, 160.0
    if cost(depths(high)) > budget:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(depths(middle)) <= budget else (middle, high)
    found = depths(high)
    following = np.take_along_axis(saved, np.minimum(found, MAX_DEPTH - 1)[..., None], -1)[..., 0] * (found < MAX_DEPTH)
    for place in np.argsort(-following, axis=None)[:FILLS]:
        found.flat[place] += following.flat[place] > 0
        found.flat[place] -= cost(found) > budget
    return found


@dataclass(frozen=True)
class Groups:
    """Grids of groups, each a column of a cluster of rows: an entry is rebuilt as offset + scale * level.

    Attributes
    ----------
    grids, depths : arrays of shape (clusters, d)
        Numbers in `GRIDS`, and bits.
    scales, offsets : arrays of shape (clusters, d), float32
        As float16 holds them.
    """

    grids: Bytes
    depths: Bytes
    scales: Floats
    offsets: Floats

    @classmethod
    def fit(cls, parts: list[Floats], depths: Bytes, allowed: tuple[str, ...]) -> Groups:
        """Return the grids of least squared error for the columns of clusters (rows, d), among the kinds allowed."""
        found = cls(np.zeros_like(depths), depths, *(np.zeros(depths.shape, np.float32) for _ in range(2)))
        for cluster, x in enumerate(parts):
            for depth in np.unique(depths[cluster]).tolist():
                columns = np.flatnonzero(depths[cluster] == depth)
                entries = np.ascontiguousarray(x[:, columns])
                tried = [_fit_grid(entries, grid, depth) for grid in allowed]
                best = np.argmin([error for _, _, error in tried], axis=0)
                place = np.arange(len(columns))
                found.grids[cluster, columns] = np.array([GRIDS.index(grid) for grid in allowed])[best]
                found.scales[cluster, columns] = np.stack([scale for scale, _, _ in tried])[best, place]
                found.offsets[cluster, columns] = np.stack([offset for _, offset, _ in tried])[best, place]
        return found

    def refit(self, parts: list[Floats]) -> Groups:
        """Return the same grids with scales and offsets fitted to other entries."""
        scales, offsets = self.scales.copy(), self.offsets.copy()
        for cluster, columns, grid, depth in self.alike():
            x = np.ascontiguousarray(parts[cluster][:, columns])
            scale, offset = self.scales[cluster, columns], self.offsets[cluster, columns]
            scale, offset = _refine(x, grid, depth, scale, offset)
            scales[cluster, columns], offsets[cluster, columns] = stored_scale(scale), stored_scale(offset)
        return Groups(self.grids, self.depths, scales, offsets)

    def alike(self) -> list[tuple[int, NDArray[np.intp], str, int]]:
        """Return cluster, columns, grid and depth of all groups that share these."""
        found = []
        for cluster, (grids, depths) in enumerate(zip(self.grids, self.depths, strict=True)):
            for grid, depth in sorted(set(zip(grids.tolist(), depths.tolist(), strict=True))):
                columns = np.flatnonzero((grids == grid) & (depths == depth))
                found.append((cluster, columns, GRIDS[grid], depth))
        return found

    def round(self, x: Floats, cluster: int, columns: NDArray[np.intp], grid: str, depth: int) -> Bytes:
        """Return the codes of entries (rows, c) of some columns that share grid and depth."""
        return nearest_level(_normalised(x, self.scales[cluster, columns], self.offsets[cluster, columns]), grid, depth)

    def rebuild(self, codes: Bytes, cluster: int, columns: NDArray[np.intp], grid: str, depth: int) -> Floats:
        """Return what these codes stand for."""
        return self.offsets[cluster, columns] + self.scales[cluster, columns] * levels(grid, depth)[codes]


def _normalised(x: Floats, scale: Floats, offset: Floats) -> Floats:
    return (x - offset) * reciprocal(scale)


def _fit_grid(x: Floats, grid: str, depth: int) -> tuple[Floats, Floats, Doubles]:
    """Return scales and offsets of the columns of x (n, c), as stored, and their squared errors."""
    offset = np.median(x, axis=0)
    deviation = np.sqrt(np.mean(np.square(x - offset, dtype=np.float64), axis=0)).astype(np.float32)
    scale, least = deviation, np.full(x.shape[1], np.inf)
    for multiple in SCALES.astype(np.float32) if depth else ():
        error = _error(x, grid, depth, deviation * multiple, offset)
        scale = np.where(error < least, deviation * multiple, scale)
        least = np.minimum(error, least)
    for _ in range(FITS if depth else 1):
        scale, offset = _refine(x, grid, depth, scale, offset)
    scale, offset = stored_scale(scale), stored_scale(offset)
    return scale, offset, _error(x, grid, depth, scale, offset)


def _refine(x: Floats, grid: str, depth: int, scale: Floats, offset: Floats) -> tuple[Floats, Floats]:
    """Return scales and offsets that are optimal for the levels that were nearest before."""
    near = levels(grid, depth)[nearest_level(_normalised(x, scale, offset), grid, depth)]
    mean_x, mean_near = x.mean(0, dtype=np.float64), near.mean(0, dtype=np.float64)
    spread = np.square(near - mean_near).sum(0)
    slope = ((x - mean_x) * (near - mean_near)).sum(0)
    new = np.divide(slope, spread, out=scale.astype(np.float64), where=spread > 0)
    return new.astype(np.float32), (mean_x - new * mean_near).astype(np.float32)


def _error(x: Floats, grid: str, depth: int, scale: Floats, offset: Floats) -> Doubles:
    near = levels(grid, depth)[nearest_level(_normalised(x, scale, offset), grid, depth)]
    return np.square(x - (offset + scale * near), dtype=np.float64).sum(0)
