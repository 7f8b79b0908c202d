"""Codes for inner products: what an error does along a vector counts more than what it does across it.

A query that finds a vector by its inner product lies near the direction of the vector, so the part of the error along
the vector changes the result most (Guo et al., Accelerating large-scale inference with anisotropic vector quantization,
ICML 2020). Every row has an H of its own; all have the same form, which is what the search and the least squares use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.codebooks import refit
from mcq.encoders.tables import ScoreSearch, plan
from mcq.errors import InputError
from mcq.metric import EVERY, Metric, power_of_two_near
from mcq.problem import Problem
from mcq.quantizer import Progress
from mcq.validate import as_matrix, in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Steps of conjugate gradients in a refit.
CONJUGATE_STEPS = 12


class ScoreAware(Metric):
    """H = I + (eta - 1) u u^T with u = x / |x|, of each row its own: what errors do to large inner products.

    For `AdditiveQuantizer` of whole vectors: ``group_size=None``, 16 entries or more, more than two codebooks, no
    scale. Everything else refuses it.

    Parameters
    ----------
    eta : float
        Weight of the error along a row, relative to that across it; at least 1, which is the identity.

    Raises
    ------
    ConfigError
        If `eta` is less than 1.

    References
    ----------
    Guo et al., Accelerating large-scale inference with anisotropic vector quantization, ICML 2020.

    Examples
    --------
    >>> ScoreAware(3.0).distortion([[2.0, 0.0]], [[1.0, 1.0]])
    4.0
    """

    def __init__(self, eta: float) -> None:
        self.eta = in_range(eta, 1.0, None, "eta")

    @classmethod
    def at_threshold(cls, threshold: float, d: int) -> ScoreAware:
        """Return the metric for inner products that count from `threshold` |x| on, with queries of any direction.

        eta = (d - 1) t^2 / (1 - t^2), at least 1, with t = threshold, 0 to 0.99, the cosine of query and vector.

        Examples
        --------
        >>> round(ScoreAware.at_threshold(0.2, d=128).eta, 3)
        5.292
        """
        t = in_range(threshold, 0.0, 0.99, "threshold")
        return cls(max(1.0, (in_range(d, 1, None, "d") - 1) * t**2 / (1 - t**2)))

    def distortion(self, x: ArrayLike, x_hat: ArrayLike) -> float:
        """Return the sum over rows of |x - x^|^2 + (eta - 1) ((x - x^) . u)^2 for arrays of shape (n, d)."""
        rows = as_matrix(x, "x")
        error = rows - as_matrix(x_hat, "x_hat")
        unit = power_of_two_near(float(np.abs(error).max()))
        error /= np.float32(unit)
        weighted = OfRows(rows, self.eta).apply(error)
        return float(np.einsum("nd,nd->", weighted, error, dtype=np.float64)) * unit**2

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:  # noqa: D102
        _refuse()

    def block(self, columns: slice) -> Floats:  # noqa: D102
        _refuse()

    def diagonal(self, d: int) -> Floats:  # noqa: D102
        _refuse()

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        return self


class OfRows(Metric):
    """The H of given rows (n, d), for arrays whose rows belong to these."""

    couples = True

    def __init__(self, x: Floats, eta: float) -> None:
        length = lengths(x)[:, None]
        self.directions = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
        self.extra = np.float32(eta - 1)
        self.d = x.shape[1]

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:
        """Return each row times its H."""
        along = np.einsum("nd,nd->n", x, self.directions)[:, None]
        return (x + self.extra * along * self.directions)[:, columns]

    def block(self, columns: slice) -> Floats:
        """Return the mean of all H, which is what a preconditioner needs."""
        part = self.directions[:, columns]
        moment = cpu.matmul(np.ascontiguousarray(part.T), np.ascontiguousarray(part)) / np.float32(len(part))
        return np.eye(part.shape[1], dtype=np.float32) + self.extra * moment

    def diagonal(self, d: int) -> Floats:
        """Return the diagonal of the mean of all H."""
        return 1 + self.extra * np.square(self.directions).mean(0)

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        return self


def lengths(x: Floats) -> Floats:
    """Return the lengths (n,) of rows."""
    return np.sqrt(np.einsum("nd,nd->n", x, x))


def learn(
    problem: Problem, eta: float, codebooks: Floats, codes: Words, rounds: int, rng: np.random.Generator, done: Progress
) -> tuple[Floats, Words]:
    """Return codebooks (M, K, d) and codes (n, M) that cost less than those given, which were learned without `eta`.

    In turns, codebooks by least squares, where conjugate gradients need H times rows only, and codes by exact moves of
    one codebook. Neither ever raises the distortion.
    """
    bound = replace(problem, metric=OfRows(problem.x, eta))
    num_codebooks, num_entries, _ = codebooks.shape
    codes, ones = codes.copy(), np.ones((len(codes), 1), np.float32)
    for i in range(rounds):
        codebooks = refit(bound, np.ascontiguousarray(codes[:, None]), codebooks, ones, CONJUGATE_STEPS)
        steps = plan(num_codebooks, num_entries, 1, rng, alone=True)
        ScoreSearch(codebooks, eta).improve(problem.x, codes, steps)
        done(i + 1, rounds)
    return refit(bound, np.ascontiguousarray(codes[:, None]), codebooks, ones, CONJUGATE_STEPS), codes


def _refuse() -> NoReturn:
    raise InputError(
        "ScoreAware weighs every row in its own direction, which needs AdditiveQuantizer with group_size=None, 16 or "
        "more columns, 3 or more codebooks and no scale; take these, or another metric"
    )
