"""Codebooks: where they start and how they are refitted to given codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mcq.kmeans import KMEANS_ITERATIONS, residual_kmeans
from mcq.metric import Identity, Metric
from mcq.normal import RIDGE, NormalEquations
from mcq.problem import Problem
from mcq.scales import reciprocal
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Normal matrices with more rows than this are not formed: conjugate gradients take over.
MAX_NORMAL_ROWS = 4096
#: Conjugate gradients stop when a step would lower the distortion by less than about this fraction. Beyond lies
#: rounding, which they would blow up along directions that change nothing: a sum is the same if one codebook moves one
#: way and another the other way.
ENOUGH = 1e-9
#: Floats of the blocks that precondition conjugate gradients.
MAX_BLOCK_FLOATS = 1 << 24
#: Floats of per-group counts that are held at once.
COUNT_FLOATS = 1 << 24


def start_codebooks(
    problem: Problem, scale: Floats, num_codebooks: int, num_entries: int, rng: np.random.Generator
) -> Floats:
    """Return codebooks (M, K, g) to start a fit from: residual k-means of the scaled groups."""
    points, weight = scaled_groups(problem, scale)
    points = points.reshape(-1, problem.group_size)
    return residual_kmeans(points, weight.ravel(), num_codebooks, num_entries, KMEANS_ITERATIONS, rng)


def scaled_groups(problem: Problem, scale: Floats) -> tuple[Floats, Floats]:
    """Return the groups (n, G, g) in units of their scales, and how much each weighs (n, G) in a mean.

    A diagonal metric weighs the groups. A metric that couples groups does not: error feedback moves the errors to
    where they weigh least, and plain centres then end lower.
    """
    g, groups = problem.group_size, problem.num_groups
    inverse = reciprocal(scale)
    points = problem.x.reshape(-1, groups, g) * inverse[:, :, None]
    weight = np.broadcast_to(scale**2, (len(scale), groups)).astype(np.float32)
    if not problem.metric.couples:
        weight = weight * problem.metric.diagonal(groups * g).reshape(groups, g).mean(1)
    return points, weight


def refit(
    problem: Problem, codes: Words, codebooks: Floats, scale: Floats, iterations: int, null: bool = False
) -> Floats:
    """Return the codebooks (M, K, g) that minimise the distortion for given codes and scales, by least squares.

    Under the identity all coordinates share one normal matrix of M * K rows: Cholesky. Otherwise conjugate gradients
    from the old codebooks: decode, multiply by the metric, add up per entry; no matrix is formed.

    Parameters
    ----------
    problem : Problem
    codes : array of shape (n, G, M)
    codebooks : array of shape (M, K, g)
        The old ones; an entry without use keeps its value.
    scale : array of shape (n, G), may be broadcast
    iterations : int
        Of conjugate gradients.
    null : bool
        The last entry of each codebook is zero and stays so: it stands for no entry. By conjugate gradients only.
    """
    num_codebooks, k, _ = codebooks.shape
    if isinstance(problem.metric, Identity) and num_codebooks * k <= MAX_NORMAL_ROWS and not null:
        return codebooks + _solve_shared(problem, codes, codebooks, scale)
    return codebooks + _solve_conjugate(problem, codes, codebooks, scale, iterations, null)


def _solve_shared(problem: Problem, codes: Words, codebooks: Floats, scale: Floats) -> Floats:
    """Return the change of the codebooks from the normal equations that all coordinates share."""
    equations = NormalEquations(*codebooks.shape)
    equations.add(codes, problem.x - cpu.decode(codes, codebooks, scale), scale)
    return equations.solve_change(equations.right).reshape(codebooks.shape).astype(np.float32)


def _solve_conjugate(
    problem: Problem, codes: Words, codebooks: Floats, scale: Floats, iterations: int, null: bool
) -> Floats:
    """Return the change of the codebooks after some steps of preconditioned conjugate gradients."""
    k = codebooks.shape[1]
    precondition = _preconditioner(problem.metric, codes, scale, codebooks.shape)
    ridge = np.float32(RIDGE * _mean_diagonal(problem, scale, k))

    def gather(weighted: Floats) -> Floats:
        sums = cpu.scatter_add(codes, weighted, scale, k).astype(np.float32)
        if null:
            sums[:, -1] = 0
        return sums

    def weigh(x: Floats) -> Floats:
        return np.ascontiguousarray(problem.metric.apply(x))

    error = problem.x - cpu.decode(codes, codebooks, scale)
    weighted = weigh(error)
    enough = ENOUGH * _dot(error, weighted)
    residual = gather(weighted)
    change = np.zeros_like(codebooks)
    direction = preconditioned = precondition(residual)
    power = _dot(residual, preconditioned)
    for _ in range(iterations):
        if power <= enough:
            break
        image = gather(weigh(cpu.decode(codes, direction, scale))) + ridge * direction
        curvature = _dot(direction, image)
        if curvature <= 0:
            break
        step = np.float32(power / curvature)
        change += step * direction
        residual -= step * image
        preconditioned = precondition(residual)
        previous, power = power, _dot(residual, preconditioned)
        direction = preconditioned + np.float32(power / previous) * direction
    return change


def _mean_diagonal(problem: Problem, scale: Floats, num_entries: int) -> float:
    """Return the mean over entries and coordinates of the diagonal of the normal matrix, sum of scale^2 H_jj."""
    groups, g = problem.num_groups, problem.group_size
    weight = np.square(scale, dtype=np.float64).sum(0)
    traces = problem.metric.diagonal(groups * g).reshape(groups, g).sum(1, dtype=np.float64)
    return float(weight @ traces) / (num_entries * g)


def _preconditioner(
    metric: Metric, codes: Words, scale: Floats, shape: tuple[int, int, int]
) -> Callable[[Floats], Floats]:
    """Return a product with the inverse of the diagonal blocks of the normal matrix, sum of scale^2 H_jj over uses.

    With a single group, or where blocks for all entries would be too large, H_jj is replaced by its mean over groups.
    """
    num_codebooks, k, g = shape
    groups = codes.shape[1]
    weight = np.square(np.broadcast_to(scale, codes.shape[:2]), dtype=np.float64)
    if groups == 1 or num_codebooks * k * g * g > MAX_BLOCK_FLOATS:
        shared = sum(metric.block(slice(j * g, (j + 1) * g)).astype(np.float64) for j in range(groups)) / groups
        inverse = _inverse(shared, RIDGE * np.trace(shared) / g)
        uses = np.stack([np.bincount(codes[:, :, m].ravel(), weight.ravel(), k) for m in range(num_codebooks)])
        per_use = (1 / (uses + (RIDGE * uses.mean() or 1.0)))[..., None].astype(np.float32)
        return lambda values: cpu.matmul((values * per_use).reshape(-1, g), inverse).reshape(shape)
    blocks = np.zeros((num_codebooks, k, g * g))
    step = max(1, COUNT_FLOATS // k)
    for start in range(0, groups, step):
        part = range(start, min(start + step, groups))
        h = np.stack([metric.block(slice(j * g, (j + 1) * g)).ravel() for j in part])
        for m in range(num_codebooks):
            cell = codes[:, part.start : part.stop, m].astype(np.intp) + np.arange(len(part)) * k
            uses = np.bincount(cell.ravel(), weight[:, part.start : part.stop].ravel(), len(part) * k)
            blocks[m] += cpu.matmul(uses.reshape(len(part), k).T.astype(np.float32, order="C"), h)
    square = blocks.reshape(num_codebooks, k, g, g)
    inverse = _inverse(square, RIDGE * np.einsum("mkgg->", square) / (num_codebooks * k * g))
    return lambda values: np.matmul(inverse, values[..., None])[..., 0]


def _inverse(blocks: NDArray[np.float64], floor: float) -> Floats:
    """Return the inverses of PSD blocks (..., g, g) with `floor` on their diagonals, or ones if it is zero."""
    inverse: Floats = np.linalg.inv(blocks + (floor or 1.0) * np.eye(blocks.shape[-1])).astype(np.float32)
    return inverse


def _dot(a: Floats, b: Floats) -> float:
    return float(np.sum(a * b, dtype=np.float64))
