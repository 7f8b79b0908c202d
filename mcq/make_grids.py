"""Makes the file of grids that `mcq.grids` reads: ``python -m mcq.make_grids grids.npz``, ten minutes on one core.

One dimension is exact (Lloyd and Max: levels are the means of their cells, cells end half-way between levels). More
dimensions are Lloyd's algorithm on samples of the Gaussian, from points drawn with the density of optimal quantizers
for many points, that of a Gaussian of variance (p + 2) / p.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from mcq.grids import GRID_BITS
from mcq.io import replacing
from mcq.kmeans import nearest
from mcq_ext import cpu

Floats = NDArray[np.float32]

#: Samples a point: fresh ones in each step of the first stage, the same ones in the second.
SAMPLES = 1 << 11
FRESH_STEPS, STEPS = 60, 60


def line_grid(points: int) -> NDArray[np.float64]:
    """Return the levels (points, 1) of the scalar quantizer of least squared error for N(0, 1)."""
    levels = np.sqrt(3.0) * ndtri((np.arange(points) + 0.5) / points)
    for _ in range(400 * points):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        means = -np.diff(density) / np.diff(ndtr(edges))
        moved = np.abs(means - levels).max()
        levels = (means - means[::-1]) / 2
        if moved < 1e-12:
            break
    return levels[:, None]


def space_grid(dimension: int, points: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return points (points, dimension) of low squared error for N(0, I)."""
    start = rng.standard_normal((points, dimension)) * np.sqrt((dimension + 2) / dimension)
    grid = start.astype(np.float32)
    count = min(SAMPLES * points, 1 << 21)
    for step in range(FRESH_STEPS + STEPS):
        if step <= FRESH_STEPS:
            half = rng.standard_normal((count // 2, dimension), dtype=np.float32)
            samples = np.concatenate([half, -half])
        grid = _means(samples, grid)
    return grid[np.lexsort(grid.T)].astype(np.float64)


def _means(samples: Floats, grid: Floats) -> Floats:
    """Return the means of the samples nearest to each point; a point without samples stays."""
    codes = nearest(samples, grid)
    ones = np.ones((len(samples), 1), np.float32)
    sums = cpu.scatter_add(codes.reshape(-1, 1, 1), samples, ones, len(grid))[0]
    uses = np.bincount(codes, minlength=len(grid))[:, None]
    return np.where(uses > 0, sums / np.maximum(uses, 1), grid).astype(np.float32)


def main(path: str) -> None:
    """Make all grids and write them to `path`."""
    grids: dict[str, Any] = {}
    for dimension, sizes in GRID_BITS.items():
        for bits in sizes:
            points, rng = 1 << bits, np.random.default_rng([dimension, bits])
            grid = line_grid(points) if dimension == 1 else space_grid(dimension, points, rng)
            grids[f"{dimension}x{points}"] = grid.astype(np.float32 if dimension == 1 else np.float16)
            print(f"{dimension} x {points}", flush=True)
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.savez_compressed(file, **grids)


if __name__ == "__main__":
    main(sys.argv[1])
