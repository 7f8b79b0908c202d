"""Choosing gains and lattice points for every group of every row.

Where no column is coupled to another, each group has its exact optimum. Under a Gram, error feedback comes first and
then sweeps, as in `local_search`: each group is searched at the target that the errors of all others leave it. The
diagonal of its block of the metric tells the likely gain, for which a search over budgets finds a point under the whole
block. Of this point and the one that was there, each with the gain that the block prefers, the cheaper stays: the
distortion never rises. A row that a sweep leaves as it was is at rest, and later sweeps pass it over: gains that are
refitted meanwhile change too little to move it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq.encoders.feedback import Triangular
from mcq.encoders.local_search import Weighting
from mcq.lattices import Lattice, best_gains
from mcq.metric import Identity
from mcq.problem import Problem
from mcq.scales import reciprocal
from mcq_ext import cpu

Floats = NDArray[np.float32]
Points = NDArray[np.int16]
Gains = NDArray[np.uint8]

#: Weights below this fraction of the largest of a group count as that much.
LEAST_WEIGHT = np.float32(1e-6)
#: Fraction of the mean of the diagonal that makes a block of the metric invertible.
DAMPING = 1e-4


class LatticeSearch:
    """The gains and points of one problem, chosen for given gain tables and scales.

    Parameters
    ----------
    problem : Problem
    lattice : Lattice

    Attributes
    ----------
    points : array of shape (n, G, N)
    gains : array of shape (n, G)
        Numbers in the gain table.
    """

    def __init__(self, problem: Problem, lattice: Lattice) -> None:
        shape = len(problem.x), problem.num_groups
        self.problem, self.lattice = problem, lattice
        self.points: Points = np.zeros((*shape, problem.group_size), np.int16)
        self.gains: Gains = np.zeros(shape, np.uint8)
        self._moving = np.arange(len(problem.x))
        self._start: Weighting = problem.metric
        if problem.metric.couples and problem.num_groups > 1:
            self._start = Triangular(problem.metric, problem.x.shape[1], problem.group_size)

    def improve(self, table: Floats, scale: Floats, fresh: bool = False) -> None:
        """Visit every group once, under a Gram those of moving rows, for a gain table (S,) and scales (n, 1).

        A fresh start feeds errors forward.
        """
        problem, inverse = self.problem, reciprocal(scale)
        if problem.metric.couples:
            self._sweep(table, scale, inverse[:, 0], fresh)
        elif isinstance(problem.metric, Identity):
            n, groups, size = self.points.shape
            rows = np.repeat(inverse[:, 0], groups)
            points, gains = self.lattice.nearest(problem.x.reshape(n * groups, size), rows, table)
            self.points, self.gains = points.reshape(n, groups, size), gains.reshape(n, groups)
        else:
            diagonal = problem.metric.diagonal(problem.x.shape[1])
            for j, own in enumerate(self._slices()):
                target = np.ascontiguousarray(problem.x[:, own])
                found = self.lattice.nearest(target, inverse[:, 0], table, _weights(diagonal[own]))
                self.points[:, j], self.gains[:, j] = found

    def decode(self, table: Floats, scale: Floats) -> Floats:
        """Return the reconstruction (n, G * N)."""
        return _decode(self.points, self.gains, table, scale)

    def _slices(self) -> list[slice]:
        size = self.problem.group_size
        return [slice(start, start + size) for start in range(0, self.problem.x.shape[1], size)]

    def _sweep(self, table: Floats, scale: Floats, inverse: Floats, fresh: bool) -> None:
        rows, metric = self._moving, self._start if fresh else self.problem.metric
        x, scale, inverse = self.problem.x[rows], scale[rows], inverse[rows]
        old_points, old_gains = self.points[rows], self.gains[rows]
        x_hat = np.zeros_like(x) if fresh else _decode(old_points, old_gains, table, scale)
        points, gains = np.empty_like(old_points), np.empty_like(old_gains)
        for j, own in enumerate(self._slices()):
            block, old = metric.block(own), x_hat[:, own]
            gradient = np.ascontiguousarray(metric.apply(x - x_hat, own))
            factor, inverse_block = _factor(block)
            target = old + cpu.matmul(gradient, inverse_block)
            slope = cpu.matmul(np.ascontiguousarray(old), block, out=gradient, accumulate=True)
            likely = self.lattice.likely_gains(target, inverse, table, _weights(np.diagonal(block)))
            found = self.lattice.nearest_under(target, inverse * reciprocal(table)[likely], factor)
            which, cost = _gains_under(block, slope, found, table, scale)
            if not fresh:
                known, known_cost = _gains_under(block, slope, old_points[:, j], table, scale)
                keep = known_cost <= cost
                found, which = np.where(keep[:, None], old_points[:, j], found), np.where(keep, known, which)
            points[:, j], gains[:, j] = found, which
            x_hat[:, own] = _decode(found[:, None], which[:, None], table, scale)
        self.points[rows], self.gains[rows] = points, gains
        moved = (points != old_points).any((1, 2)) | (gains != old_gains).any(1)
        self._moving = rows[fresh | moved]


def _decode(points: Points, gains: Gains, table: Floats, scale: Floats) -> Floats:
    """Return the reconstruction (n, G * N) of points (n, G, N) and gains (n, G)."""
    factor = scale * table[gains]
    return (factor[:, :, None] * points).reshape(len(points), points.shape[1] * points.shape[2])


def _gains_under(block: Floats, slope: Floats, points: Points, table: Floats, scale: Floats) -> tuple[Gains, Floats]:
    """Return the gains (n,) of least cost s^2 y^T B y - 2 s y.slope, and these costs, for points (n, N)."""
    y = points.astype(np.float32) * scale
    product = np.einsum("ng,ng->n", y, slope)
    square = np.einsum("ng,ng->n", y, cpu.matmul(y, block))
    gains = best_gains(product, square, table)
    return gains, table[gains] * (table[gains] * square - 2 * product)


def _weights(diagonal: Floats) -> Floats:
    """Return positive weights of a group."""
    largest = diagonal.max()
    return np.maximum(diagonal / largest, LEAST_WEIGHT) if largest > 0 else np.ones_like(diagonal)


def _factor(block: Floats) -> tuple[Floats, Floats]:
    """Return U, upper triangular, with U U^T = B up to a factor that makes it near 1, and the inverse of B, damped."""
    damped = block.astype(np.float64)
    damped[np.diag_indices(len(block))] += DAMPING * (np.trace(damped) / len(block) or 1.0)
    inverse = cpu.cholesky_solve(cpu.cholesky(damped), np.eye(len(block)))
    damped /= np.trace(damped) / len(block)
    factor = cpu.cholesky(damped[::-1, ::-1]).T[::-1, ::-1]
    return np.ascontiguousarray(factor, np.float32), inverse.astype(np.float32)
