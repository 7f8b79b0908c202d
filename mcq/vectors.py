"""Codebooks for whole vectors: a row is one group, many codebooks add up to it.

The start decides: a fit from the codes of a product quantizer and one from residual k-means end up to a third apart,
and neither wins everywhere. Both are tried for a few rounds, and the error on rows that were held out chooses.

Codes are then searched against codebooks with added noise that fades (SR-D, Martinez et al., LSQ++, ECCV 2018), which
leads past poor local minima. In each round every codebook is shrunk, coordinate by coordinate, as much as its spread
there and the residual variance call for (empirical Bayes): most coordinates of an entry hold little but noise of the
sample, to which the next codes would be fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mcq.codebooks import refit
from mcq.encoders.tables import TableSearch, plan
from mcq.kmeans import KMEANS_ITERATIONS, kmeans, progressive_residual_kmeans
from mcq.problem import Problem
from mcq.quantizer import Progress
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Start = Callable[[Floats, int, int, np.random.Generator], Floats]

#: Rounds that a start is tried for, on so many rows per entry; the rows that judge it: a tenth, and how many at most.
TRIAL_ROUNDS = 3
TRIAL_ROWS = 64
HELD_OUT = 0.1
MOST_HELD_OUT = 5000
#: Rows per entry from which on starts are compared; with fewer, held-out rows tell little.
ROWS_TO_COMPARE = 8
#: Standard deviation of the noise of all codebooks together at its beginning, relative to that of the residual.
NOISE = 0.6
#: Rounds at the end without noise.
QUIET_ROUNDS = 4
#: Strength of the shrinkage; 1 would be right if codes were given and not chosen.
SHRINKAGE = 2
#: Steps of conjugate gradients in a refit that shrinks.
SHRINKING_STEPS = 12
#: Of k-means in each of the growing dimensions of a residual start.
GROWTH_ITERATIONS = 4
#: Of the beam that codes rows.
BEAM_WIDTH = 16
#: Least variance that a shrinkage refers to, as a fraction of the mean one.
LEAST_SPREAD = 1e-6


def learn(
    problem: Problem,
    num_codebooks: int,
    num_entries: int,
    rounds: int,
    rng: np.random.Generator,
    done: Progress,
) -> tuple[Floats, Words]:
    """Return codebooks (M, K, d) for the rows of a problem of one group under the identity, and codes (n, M).

    Parameters
    ----------
    problem : Problem
    num_codebooks, num_entries, rounds : int
    rng : Generator
    done : callable
        Told the progress after each round.
    """
    mean = problem.x.mean(0)  # noise and shrinkage refer to what varies
    problem = replace(problem, x=problem.x - mean)
    start, codebooks, codes = _best_start(problem, num_codebooks, num_entries, rng)
    noisy = rounds - min(QUIET_ROUNDS, rounds // 2)
    for i in range(rounds):
        codebooks = shrunk(problem.x, codes, _refit(problem, codes, codebooks))
        heat = NOISE * np.sqrt(max(0.0, 1 - (i + 1) / noisy) / num_codebooks)
        size = np.float32(heat) * np.sqrt(np.square(_residual(problem.x, codes, codebooks)).mean(0))
        noise = rng.standard_normal(codebooks.shape, np.float32) * size
        tables, steps = TableSearch(codebooks + noise), plan(num_codebooks, num_entries, 1, rng)
        if start is residual_start:  # a beam takes codebooks in turn: it finds better codes where each refines the last
            codes = tables.choose(problem.x, BEAM_WIDTH, steps, codes)
        else:
            tables.improve(problem.x, codes, steps)
        done(i + 1, rounds + 1)
    codebooks = shrunk(problem.x, codes, _refit(problem, codes, codebooks))
    codebooks[0] += mean
    return codebooks, codes


def product_start(x: Floats, num_codebooks: int, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return codebooks (M, K, d) of a product quantizer: each is zero but for its own slice of the coordinates."""
    codebooks = np.zeros((num_codebooks, num_entries, x.shape[1]), np.float32)
    ones = np.ones(len(x), np.float32)
    for codebook, columns in zip(codebooks, np.array_split(np.arange(x.shape[1]), num_codebooks), strict=True):
        if len(columns):
            part = np.ascontiguousarray(x[:, columns])
            codebook[:, columns] = kmeans(part, ones, num_entries, KMEANS_ITERATIONS, rng)
    return codebooks


def residual_start(x: Floats, num_codebooks: int, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return codebooks (M, K, d), each the k-means centres of what those before it leave."""
    return progressive_residual_kmeans(x, num_codebooks, num_entries, GROWTH_ITERATIONS, rng)


def shrunk(x: Floats, codes: Words, codebooks: Floats) -> Floats:
    """Return codebooks (M, K, d) that fit rows (n, d) in the mean and are not larger than they need to be.

    Minimises |x - x^|^2 + sum over m, k, j of l_mj C_mkj^2 with l_mj = SHRINKAGE s_j / t_mj, s_j the mean squared
    residual of coordinate j and t_mj the variance of codebook m there: the mean of the posterior for given codes, were
    entries and residuals normal. Conjugate gradients from the given codebooks.
    """
    k = codebooks.shape[1]
    rows, ones = np.ascontiguousarray(codes[:, None]), np.ones((len(x), 1), np.float32)
    residual = _residual(x, codes, codebooks)
    spread = codebooks.var(1, keepdims=True)
    spread = np.maximum(spread, LEAST_SPREAD * spread.mean()) + np.float32(np.finfo(np.float32).tiny)
    penalty = SHRINKAGE * np.square(residual).mean(0) / spread
    uses = np.stack([np.bincount(column, minlength=k) for column in codes.T]).astype(np.float32)
    inverse = 1 / (uses[:, :, None] + penalty + np.float32(np.finfo(np.float32).tiny))

    def gather(values: Floats) -> Floats:
        return cpu.scatter_add(rows, values, ones, k).astype(np.float32)

    out = codebooks.copy()
    rest = gather(residual) - penalty * out
    direction = inverse * rest
    power = _dots(rest, direction)
    for _ in range(SHRINKING_STEPS):
        image = gather(cpu.decode(rows, direction, ones)) + penalty * direction
        step = _ratio(power, _dots(direction, image))
        out += step * direction
        rest -= step * image
        scaled = inverse * rest
        previous, power = power, _dots(rest, scaled)
        direction = scaled + _ratio(power, previous) * direction
    return out


def _residual(x: Floats, codes: Words, codebooks: Floats) -> Floats:
    ones = np.ones((len(x), 1), np.float32)
    return x - cpu.decode(np.ascontiguousarray(codes[:, None]), codebooks, ones)


def _dots(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return the inner products (d,) of each coordinate: they are independent problems."""
    return np.einsum("mkd,mkd->d", a, b, dtype=np.float64)


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> Floats:
    """Return a / b, and 0 where there is nothing left to do."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0).astype(np.float32)


def _best_start(
    problem: Problem, num_codebooks: int, num_entries: int, rng: np.random.Generator
) -> tuple[Start, Floats, Words]:
    """Return the start, and codebooks and codes from it, whose codebooks code held-out rows best after a few rounds."""
    held_out = min(MOST_HELD_OUT, int(HELD_OUT * len(problem.x)))
    order = rng.permutation(len(problem.x))
    other, rows = problem.x[order[:held_out]], order[held_out : held_out + TRIAL_ROWS * num_entries]
    trial = replace(problem, x=problem.x[rows])
    starts = [residual_start] if len(rows) < ROWS_TO_COMPARE * num_entries else [product_start, residual_start]
    steps = plan(num_codebooks, num_entries, 1, rng)
    tried = [_tried(start, trial, num_codebooks, num_entries, rng) for start in starts]
    losses = [TableSearch(codebooks).loss(other, BEAM_WIDTH, steps) for codebooks in tried]
    best = int(np.argmin(losses))
    return starts[best], tried[best], TableSearch(tried[best]).choose(problem.x, BEAM_WIDTH, steps)


def _tried(start: Start, problem: Problem, num_codebooks: int, num_entries: int, rng: np.random.Generator) -> Floats:
    """Return the codebooks that a few rounds from a start end at."""
    codebooks = start(problem.x, num_codebooks, num_entries, rng)
    codes = TableSearch(codebooks).choose(problem.x, BEAM_WIDTH, [])
    for _ in range(TRIAL_ROUNDS):
        codebooks = _refit(problem, codes, codebooks)
        TableSearch(codebooks).improve(problem.x, codes, plan(num_codebooks, num_entries, 1, rng))
    return _refit(problem, codes, codebooks)


def _refit(problem: Problem, codes: Words, codebooks: Floats) -> Floats:
    """Return least-squares codebooks (M, K, d) for codes (n, M)."""
    ones = np.ones((len(codes), 1), np.float32)
    return refit(problem, np.ascontiguousarray(codes[:, None]), codebooks, ones, SHRINKING_STEPS)
