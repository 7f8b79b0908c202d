"""Pyramids and shells of integer vectors: how many points they have, their numbers, and the nearest of them.

A pyramid P(N, K) holds the y of Z^N with sum |y_i| = K (Fischer 1986), a shell those with sum y_i^2 = R. Both are
codebooks that need no storage: points are numbered one after the other (Cover 1973), by tables of a few KiB.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mcq.errors import ConfigError
from mcq.validate import in_range
from mcq_ext import cpu_lattice

Floats = NDArray[np.float32]
Points = NDArray[np.int16]
Ranks = NDArray[np.uint64]
Gains = NDArray[np.uint8]

MAX_GROUP_SIZE = cpu_lattice.MAX_GROUP
MAX_PULSES = 4095
MAX_SQUARED_NORM = 4095
#: Leaders up to which they are searched one by one.
MAX_LEADERS = 1 << 13
#: Squared norm above which a search with weights, O(N R^1.5) for each gain, costs more than it tells about the gain.
EXACT_BUDGET = 64
#: Normal vectors that tell how close the points of a shell come.
SAMPLE = 512


class Lattice(ABC):
    """The integer vectors of N entries that spend one budget.

    Attributes
    ----------
    group_size : int
        N.
    budget : int
        What sum |y_i| or, if `squared`, sum y_i^2 must be.
    count : int
        V, the number of points.
    """

    squared: ClassVar[bool]
    max_budget: ClassVar[int]

    def __init__(self, group_size: int, budget: int) -> None:
        self.group_size, self.budget = group_size, budget
        self.count = counts_up_to(group_size, budget, self.squared)[budget]

    @classmethod
    @functools.lru_cache(maxsize=32)
    def of(cls, group_size: int, budget: int) -> Self:
        """Return the lattice with its tables, which are made once."""
        return cls(group_size, budget)

    @property
    @abstractmethod
    def typical_size(self) -> float:
        """Roughly the root mean square of the entries of the points that are used."""

    @abstractmethod
    def nearest(self, x: Floats, inverse: Floats, gains: Floats, weights: Floats | None = None) -> tuple[Points, Gains]:
        """Return the points y (n, N) and gains (n,) that minimise sum_i w_i (inverse x_i - gains[s] y_i)^2, exactly.

        Parameters
        ----------
        x : array of shape (n, N)
        inverse : array of shape (n,)
            One over the scale of each row.
        gains : array of shape (S,)
        weights : array of shape (N,), optional
            Positive; all alike if left out.
        """

    def likely_gains(self, x: Floats, inverse: Floats, gains: Floats, weights: Floats) -> Gains:
        """Return the gains (n,) of the nearest points, or what they probably are where these cost too much."""
        return self.nearest(x, inverse, gains, weights)[1]

    def nearest_under(self, x: Floats, inverse: Floats, factor: Floats) -> Points:
        """Return points y (n, N) for which |U^T (inverse x - y)| is small, and least if U is diagonal.

        U (N, N) is upper triangular with a positive diagonal.
        """
        return cpu_lattice.budget_search(x, inverse, factor, self.budget, self.squared)

    def rank(self, y: Points) -> Ranks:
        """Return the numbers, below `count`, of points (n, N)."""
        return cpu_lattice.lattice_rank(y, self._before, self.budget, self.squared)

    def unrank(self, ranks: Ranks) -> Points:
        """Return the points (n, N) of these numbers, all below `count`."""
        return cpu_lattice.lattice_unrank(ranks, self._before, self.budget, self.squared)

    @functools.cached_property
    @abstractmethod
    def _before(self) -> Ranks:
        """What `mcq_ext.cpu_lattice.lattice_rank` asks for."""


class Pyramid(Lattice):
    """P(N, K), the vectors whose magnitudes sum to K.

    Examples
    --------
    >>> pyramid = Pyramid(2, 2)
    >>> pyramid.unrank(np.arange(pyramid.count, dtype=np.uint64)).tolist()
    [[2, 0], [1, 1], [1, -1], [0, 2], [0, -2], [-2, 0], [-1, 1], [-1, -1]]
    """

    squared = False
    max_budget = MAX_PULSES

    @property
    def typical_size(self) -> float:  # noqa: D102
        density = self.budget / self.group_size
        return max(density, math.sqrt(density))

    def nearest(  # noqa: D102
        self, x: Floats, inverse: Floats, gains: Floats, weights: Floats | None = None
    ) -> tuple[Points, Gains]:
        weights = np.ones(self.group_size, np.float32) if weights is None else weights
        return cpu_lattice.pyramid_search(x, inverse, gains, weights, self.budget)

    @functools.cached_property
    def _before(self) -> Ranks:
        """U(n, r - m), a view of one row for each n: it depends on the difference alone."""
        counts = _counts(self.group_size, self.budget, squared=False)
        padded = np.zeros((self.group_size + 1, 2 * self.budget + 2), np.uint64)
        for n in range(1, self.group_size + 1):
            padded[n, self.budget :] = [0, *itertools.accumulate(counts[n - 1])]
        return np.lib.stride_tricks.sliding_window_view(padded, self.budget + 2, axis=1)[:, :, ::-1]


class Shell(Lattice):
    """The vectors whose squares sum to R.

    Examples
    --------
    >>> shell = Shell(16, 19)
    >>> len(shell.leaders), round(math.log2(shell.count), 2)
    (9, 30.65)
    """

    squared = True
    max_budget = MAX_SQUARED_NORM

    @property
    def typical_size(self) -> float:  # noqa: D102
        return math.sqrt(self.budget / self.group_size)

    def nearest(  # noqa: D102
        self, x: Floats, inverse: Floats, gains: Floats, weights: Floats | None = None
    ) -> tuple[Points, Gains]:
        if weights is not None:
            return cpu_lattice.shell_search(x, inverse, gains, weights, self.budget)
        # All points are equally long: the nearest one does not depend on the gain.
        if self.leaders is not None:
            y, product = cpu_lattice.leader_search(x, self.leaders, np.ones(len(self.leaders), np.float32))
        else:
            one = np.ones(max(len(x), self.group_size), np.float32)
            y, _ = cpu_lattice.shell_search(x, one[: len(x)], one[:1], one[: self.group_size], self.budget)
            product = np.einsum("ng,ng->n", x, y, dtype=np.float32)
        return y, best_gains(product * inverse, np.full(len(x), self.budget, np.float32), gains)

    def likely_gains(self, x: Floats, inverse: Floats, gains: Floats, weights: Floats) -> Gains:  # noqa: D102
        if self.budget <= EXACT_BUDGET:
            return super().likely_gains(x, inverse, gains, weights)
        product = np.sqrt(np.square(x).sum(1) * np.float32(self.budget)) * inverse * np.float32(self._cosine)
        return best_gains(product, np.full(len(x), self.budget, np.float32), gains)

    @functools.cached_property
    def _cosine(self) -> float:
        """The mean of the cosine between normal vectors and the points nearest to them."""
        x = np.random.default_rng(0).standard_normal((SAMPLE, self.group_size), np.float32)
        y, _ = self.nearest(x, np.ones(len(x), np.float32), np.ones(1, np.float32))
        return float(np.mean((x * y).sum(1) / np.sqrt(np.square(x).sum(1) * self.budget)))

    @functools.cached_property
    def leaders(self) -> Floats | None:
        """The magnitudes of all points in descending order (leaders, N), or None if there are too many."""
        found = list(itertools.islice(_leaders(self.group_size, self.budget, True), MAX_LEADERS + 1))
        return np.array(found, np.float32) if len(found) <= MAX_LEADERS else None

    @functools.cached_property
    def _before(self) -> Ranks:
        counts, most = _counts(self.group_size, self.budget, squared=True), math.isqrt(self.budget)
        before = np.zeros((self.group_size + 1, self.budget + 1, most + 2), np.uint64)
        for n, r in itertools.product(range(1, self.group_size + 1), range(self.budget + 1)):
            starting = [counts[n - 1][r - m * m] for m in range(math.isqrt(r), -1, -1)]
            before[n, r, : len(starting) + 1] = [0, *itertools.accumulate(starting)][::-1]
        return before


def nearest_direction(x: Floats, pulses: int) -> Points:
    """Return the points of a pyramid at the least angle to the rows of `x`, exactly, by trying all its leaders.

    Parameters
    ----------
    x : array of shape (n, N), float32
    pulses : int
        K, with at most 8,192 partitions into N parts: up to 100 for N = 4, 38 for 8, 32 for 16, 31 from 24 on.

    Returns
    -------
    array of shape (n, N), int16
        argmax of x.y / |y| over sum |y_i| = K.

    Raises
    ------
    ConfigError
        If there are more partitions; the most pulses for this N are named.

    Notes
    -----
    Costs O(N log(N)^2) for a sort and O(N L) for L partitions: 56 for 11 pulses, 231 for 16, 1,255 for 23.

    Examples
    --------
    >>> nearest_direction(np.array([[3.1, -0.9, 0.2]], np.float32), 4)
    array([[ 3, -1,  0]], dtype=int16)
    """
    size, most = x.shape[1], _most_pulses(x.shape[1])
    if in_range(pulses, 1, MAX_PULSES, "pulses") > most:
        raise ConfigError(
            f"pulses must be at most {most} for a search by angle in groups of {size}, so that there are no more than "
            f"{MAX_LEADERS} partitions to try, got {pulses}; search by distance instead"
        )
    return cpu_lattice.leader_search(x, *_directions(size, pulses))[0]


@functools.cache
def _most_pulses(group_size: int) -> int:
    """Return the most pulses that have at most MAX_LEADERS partitions into N parts."""
    counts = [1] + [0] * MAX_PULSES  # as many as into parts of at most N
    for part in range(1, group_size + 1):
        for k in range(part, MAX_PULSES + 1):
            counts[k] = min(counts[k] + counts[k - part], MAX_LEADERS + 1)
    return max(k for k, count in enumerate(counts) if count <= MAX_LEADERS)


@functools.lru_cache(maxsize=16)
def _directions(group_size: int, pulses: int) -> tuple[Floats, Floats]:
    leaders = np.array(list(_leaders(group_size, pulses, False)), np.float32)
    return leaders, (1 / np.sqrt(np.square(leaders).sum(1))).astype(np.float32)


def best_gains(product: Floats, squared_norm: Floats, gains: Floats) -> Gains:
    """Return the s (n,) that minimise gains[s]^2 y.y - 2 gains[s] x.y; the lowest on a tie."""
    costs = gains * (gains * squared_norm[:, None] - 2 * product[:, None])
    return costs.argmin(1).astype(np.uint8)


def counts_up_to(group_size: int, budget: int, squared: bool) -> list[int]:
    """Return how many integer vectors of N entries have sum |y_i|, or sum y_i^2, equal to 0, 1, ... budget."""
    return _counts(group_size, budget, squared)[group_size]


@functools.lru_cache(maxsize=64)
def _counts(group_size: int, budget: int, squared: bool) -> list[list[int]]:
    """Return counts[n][r] for up to N entries and every budget r up to the one asked for."""
    rows = [[1] + [0] * budget]
    for _ in range(group_size):
        last = np.array(rows[-1], object)  # counts outgrow 64 bits
        row = last.copy()
        if squared:
            for m in range(1, math.isqrt(budget) + 1):
                row[m * m :] += 2 * last[: budget + 1 - m * m]
        else:
            row[1:] += last[:-1]
            row = np.add.accumulate(row)
        rows.append(row.tolist())
    return rows


def _leaders(group_size: int, budget: int, squared: bool, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """Yield all non-negative vectors in descending order that spend the budget."""
    if budget == 0:
        yield (0,) * group_size
    elif group_size > 0:
        largest = math.isqrt(budget) if squared else budget
        for m in range(min(largest, budget if most is None else most), 0, -1):
            spent = m * m if squared else m
            if group_size * spent < budget:
                return  # nothing behind is larger
            for rest in _leaders(group_size - 1, budget - spent, squared, m):
                yield (m, *rest)
