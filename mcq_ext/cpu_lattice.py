"""The kernels of pyramids and shells on the CPU; see `mcq_ext.cpu` for what all of them share.

Every function has a twin of the same name and signature in `mcq_ext.reference_lattice`. Vectors are float32 (n, N),
points of a lattice int16 (n, N), ranks uint64; N is at most `MAX_GROUP`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq_ext import _core
from mcq_ext.scratch import PAD, empty
from mcq_ext.threads import split

Floats = NDArray[np.float32]
Points = NDArray[np.int16]
Ranks = NDArray[np.uint64]
Gains = NDArray[np.uint8]

MAX_GROUP = 256


def pyramid_search(x: Floats, inverse: Floats, gains: Floats, weights: Floats, pulses: int) -> tuple[Points, Gains]:
    """Return the points y (n, N) with sum |y_i| = K, and the gains, that are nearest to the rows of `x`.

    Both minimise sum_i w_i (inverse x_i - gains[s] y_i)^2, exactly up to rounding. On a tie the lowest s wins.

    Parameters
    ----------
    x : array of shape (n, N)
    inverse : array of shape (n,)
        One over the scale of each row.
    gains : array of shape (S,)
        At most 256, not negative.
    weights : array of shape (N,)
        Positive.
    pulses : int
        K.
    """
    y, gain = np.empty(x.shape, np.int16), np.empty(len(x), np.uint8)
    spread = np.float32(1) / weights
    if len(x):
        split(
            lambda i, j: _core.pyramid_search(x[i:j], inverse[i:j], gains, weights, spread, pulses, y[i:j], gain[i:j]),
            len(x),
        )
    return y, gain


def leader_search(x: Floats, leaders: Floats, factor: Floats) -> tuple[Points, Floats]:
    """Return the permuted and signed leaders y (n, N) of largest factor * x.y, and these x.y (n,).

    Parameters
    ----------
    x : array of shape (n, N)
    leaders : array of shape (K, N)
        Magnitudes, each row in descending order.
    factor : array of shape (K,)
    """
    y, product = np.empty(x.shape, np.int16), np.empty(len(x), np.float32)
    if len(x):
        split(lambda i, j: _core.leader_search(x[i:j], leaders, factor, y[i:j], product[i:j]), len(x))
    return y, product


def shell_search(x: Floats, inverse: Floats, gains: Floats, weights: Floats, squared_norm: int) -> tuple[Points, Gains]:
    """Return the points y (n, N) with sum y_i^2 = R, and the gains, that are nearest; see `pyramid_search`.

    There must be such points.
    """
    y, gain = np.empty(x.shape, np.int16), np.empty(len(x), np.uint8)

    def rows(i: int, j: int) -> None:
        scratch = empty(PAD * (x.shape[1] + 2) * (squared_norm + 1))
        _core.shell_search(x[i:j], inverse[i:j], gains, weights, squared_norm, y[i:j], gain[i:j], scratch)

    if len(x):
        split(rows, len(x))
    return y, gain


def budget_search(x: Floats, inverse: Floats, factor: Floats, budget: int, squared: bool) -> Points:
    """Return points y (n, N) for which |U^T (inverse x - y)| is small, and least if U is diagonal.

    Parameters
    ----------
    x : array of shape (n, N)
    inverse : array of shape (n,)
    factor : array of shape (N, N)
        U, upper triangular with a positive diagonal; near 1 in size.
    budget : int
        What sum |y_i|, or sum y_i^2 if `squared`, must be; there must be such points.
    """
    y = np.empty(x.shape, np.int16)

    def rows(i: int, j: int) -> None:
        scratch = empty(PAD * (3 * x.shape[1] + 3) * (budget + 1))
        _core.budget_search(x[i:j], inverse[i:j], factor, budget, squared, y[i:j], scratch)

    if len(x):
        split(rows, len(x))
    return y


def lattice_rank(y: Points, before: Ranks, budget: int, squared: bool) -> Ranks:
    """Return the numbers (n,) of points (n, N) whose sum of |y_i|, or of y_i^2 if `squared`, is `budget`.

    Parameters
    ----------
    y : array of shape (n, N)
    before : array of shape (N + 1, budget + 1, most + 2), may be a view
        before[k, r, m + 1] is how many points of k entries and budget r precede those that start with magnitude m:
        those that start with a larger one, unsigned. before[k, r, 0] is how many start with no negative entry.
    """
    rank = np.empty(len(y), np.uint64)
    if len(y):
        split(lambda i, j: _core.lattice_rank(y[i:j], before, budget, squared, rank[i:j]), len(y))
    return rank


def lattice_unrank(rank: Ranks, before: Ranks, budget: int, squared: bool) -> Points:
    """Return the points (n, N) of these numbers, the inverse of `lattice_rank`."""
    y = np.empty((len(rank), before.shape[0] - 1), np.int16)
    if len(y):
        split(lambda i, j: _core.lattice_unrank(rank[i:j], before, budget, squared, y[i:j]), len(y))
    return y
