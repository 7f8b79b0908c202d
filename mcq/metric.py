"""Metrics: how an error is weighted. All quantizers minimise sum over rows of (x - x^)^T H (x - x^).

H is a symmetric PSD matrix of size (d, d) that all rows share. The quantizers ask a metric for two things only: rows
times H, and H between some columns; both are all that the search over codes needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import InputError
from mcq.validate import as_gram, as_matrix, as_weights, in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
EVERY = slice(None)


class Metric(ABC):
    """A PSD weighting H of errors, shared by all rows.

    Attributes
    ----------
    d : int or None
        Number of columns that the metric weighs; None if it fits any number.
    couples : bool
        Whether H has entries off its diagonal.
    """

    d: int | None = None
    couples: bool = False

    @abstractmethod
    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:
        """Return ``x @ H[:, columns]`` of shape (n, w)."""

    @abstractmethod
    def block(self, columns: slice) -> Floats:
        """Return ``H[columns, columns]`` of shape (w, w)."""

    @abstractmethod
    def diagonal(self, d: int) -> Floats:
        """Return the diagonal of H, of shape (d,)."""

    @abstractmethod
    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:
        """Return the metric of the columns in `order`, where numbers from `d` on are padding of weight zero."""

    def for_search(self) -> Metric:
        """Return the metric that a search should use: damped, and times a power of two that brings it near 1.

        The factor changes no code and keeps every intermediate result within float32.
        """
        return self

    def distortion(self, x: ArrayLike, x_hat: ArrayLike) -> float:
        """Return the sum over rows of (x - x^)^T H (x - x^) for arrays of shape (n, d).

        Examples
        --------
        >>> Diagonal([1.0, 4.0]).distortion([[1.0, 1.0]], [[0.0, 0.0]])
        5.0
        """
        error = as_matrix(x, "x") - as_matrix(x_hat, "x_hat")
        self.check_width(error.shape[1])
        unit = power_of_two_near(float(np.abs(error).max()))  # else squares of 1e20 or 1e-20 leave float32
        error /= np.float32(unit)
        return float(np.einsum("nd,nd->", self.apply(error), error, dtype=np.float64)) * unit**2

    def relative_error(self, x: ArrayLike, x_hat: ArrayLike) -> float:
        """Return the distortion divided by that of all zeros, tr(D H D^T) / tr(X H X^T); 0 if both are zero."""
        distortion = self.distortion(x, x_hat)
        return distortion / (self.distortion(x, np.zeros_like(x)) or 1.0)

    def check_width(self, d: int) -> None:
        """Raise `InputError` if the metric does not weigh exactly `d` columns."""
        if self.d is not None and self.d != d:
            raise InputError(f"the metric weighs {self.d} columns, but the data have {d}; pass the metric of this data")


class Identity(Metric):
    """H = I: plain squared error.

    Examples
    --------
    >>> Identity().distortion([[3.0, 4.0]], [[0.0, 0.0]])
    25.0
    """

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:  # noqa: D102
        return x[:, columns]

    def block(self, columns: slice) -> Floats:  # noqa: D102
        return np.eye(columns.stop - columns.start, dtype=np.float32)

    def diagonal(self, d: int) -> Floats:  # noqa: D102
        return np.ones(d, np.float32)

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        # Padding costs nothing either way: the data are zero there and decoding drops those columns.
        return self


class Diagonal(Metric):
    """H = diag(w): importance of each column.

    Parameters
    ----------
    weights : array-like of shape (d,), non-negative

    Raises
    ------
    InputError
        If a weight is negative or not finite, or all are zero.
    """

    def __init__(self, weights: ArrayLike) -> None:
        self.weights = as_weights(weights).astype(np.float32)
        self.d = len(self.weights)

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:  # noqa: D102
        return x[:, columns] * self.weights[columns]

    def block(self, columns: slice) -> Floats:  # noqa: D102
        return np.diag(self.weights[columns])

    def diagonal(self, d: int) -> Floats:  # noqa: D102
        return self.weights

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        return Diagonal(_take(self.weights, order))

    def for_search(self) -> Metric:  # noqa: D102
        return Diagonal(self.weights / power_of_two_near(self.weights.mean(dtype=np.float64)))


class Gram(Metric):
    """H = a full PSD matrix, such as X^T X of the inputs of a linear layer.

    Parameters
    ----------
    matrix : array-like of shape (d, d), symmetric and PSD
    damping : float
        Fraction of the mean of the diagonal that is added to the diagonal while codes and codebooks are chosen, so
        that directions which few or no samples show still count a little. Distortions are reported without it.

    Raises
    ------
    InputError
        If the matrix is not square, finite, symmetric and PSD, or all zero.

    Examples
    --------
    >>> Gram([[2.0, 1.0], [1.0, 2.0]]).distortion([[1.0, 1.0]], [[0.0, 0.0]])
    6.0
    """

    couples = True

    def __init__(self, matrix: ArrayLike, damping: float = 0.0) -> None:
        self.matrix: Floats = as_gram(matrix).astype(np.float32)
        self.damping = in_range(damping, 0.0, None, "damping")
        self.d = len(self.matrix)

    @classmethod
    def trusted(cls, matrix: Floats, damping: float = 0.0) -> Gram:
        """Wrap a matrix that is known to be good, without a check."""
        gram = cls.__new__(cls)
        gram.matrix, gram.damping, gram.d = np.ascontiguousarray(matrix), damping, len(matrix)
        return gram

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:  # noqa: D102
        return cpu.matmul(x, self.matrix[:, columns])

    def block(self, columns: slice) -> Floats:  # noqa: D102
        return np.ascontiguousarray(self.matrix[columns, columns])

    def diagonal(self, d: int) -> Floats:  # noqa: D102
        return np.diagonal(self.matrix)

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        real = order < d
        inside = np.where(real, order, 0)
        return Gram.trusted(self.matrix[np.ix_(inside, inside)] * np.outer(real, real))

    def for_search(self) -> Metric:  # noqa: D102
        mean = np.diagonal(self.matrix).mean(dtype=np.float64)
        unit = power_of_two_near(mean)
        extra = np.float32(self.damping * mean / unit)
        return Gram.trusted(self.matrix / np.float32(unit) + extra * np.eye(len(self.matrix), dtype=np.float32))


class LowRank(Metric):
    """H = diag(w) + F F^T: importance of columns and a few directions; costs O(d r) where a Gram costs O(d^2).

    Parameters
    ----------
    weights : array-like of shape (d,), non-negative
    factor : array-like of shape (d, r)

    Raises
    ------
    InputError
        If a weight is negative, a value is not finite, or the sizes differ.
    """

    couples = True

    def __init__(self, weights: ArrayLike, factor: ArrayLike) -> None:
        self.factor = as_matrix(factor, "factor")
        self.weights = as_weights(weights, d=len(self.factor)).astype(np.float32)
        self.d = len(self.weights)

    def apply(self, x: Floats, columns: slice = EVERY) -> Floats:  # noqa: D102
        out = np.ascontiguousarray(x[:, columns] * self.weights[columns])
        return cpu.matmul(
            cpu.matmul(x, self.factor), np.ascontiguousarray(self.factor[columns].T), out=out, accumulate=True
        )

    def block(self, columns: slice) -> Floats:  # noqa: D102
        part = self.factor[columns]
        return np.diag(self.weights[columns]) + cpu.matmul(part, np.ascontiguousarray(part.T))

    def diagonal(self, d: int) -> Floats:  # noqa: D102
        return self.weights + np.einsum("dr,dr->d", self.factor, self.factor)

    def arranged(self, order: NDArray[np.intp], d: int) -> Metric:  # noqa: D102
        return LowRank(_take(self.weights, order), _take(self.factor, order))

    def for_search(self) -> Metric:  # noqa: D102
        # a power of four, so that its root is a power of two
        unit = power_of_two_near(math.sqrt(self.diagonal(len(self.weights)).mean(dtype=np.float64)))
        return LowRank(self.weights / np.float32(unit**2), self.factor / np.float32(unit))


def power_of_two_near(value: float) -> float:
    """Return the power of two nearest to `value` on a logarithmic scale; 1 for zero."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0


def _take(values: Floats, order: NDArray[np.intp]) -> Floats:
    """Return rows of `values` in `order`; numbers past the end give zeros."""
    padded = np.concatenate([values, np.zeros((1, *values.shape[1:]), np.float32)])
    return padded[np.minimum(order, len(values))]
