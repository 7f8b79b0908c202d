"""What a fit or an encode works on: data and metric, cut into groups and ordered for the search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import InputError
from mcq.metric import Identity, Metric, power_of_two_near
from mcq.validate import as_matrix, as_real_matrix

Floats = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


#: Data this many times larger than those of a fit would overflow float32 in the search.
MAX_RANGE = 1e12
#: The powers of two that float32 holds.
LEAST_GAIN, MOST_GAIN = 2.0**-149, 2.0**127
#: Bytes of the rows, as float32, that an encode takes up at a time.
PART_BYTES = 1 << 25


@dataclass(frozen=True)
class Problem:
    """Rows cut into G groups of g entries, the heaviest groups first.

    The order serves error feedback: groups that come early leave their errors for later ones to mend, so the groups
    that weigh most should come first.

    Attributes
    ----------
    x : array of shape (n, G * g)
        The data in order, divided by `gain`, with zero columns where g does not divide d.
    metric : Metric
        H between the ordered columns, made ready for a search.
    group_size : int
    group_order : array of shape (G,)
        group_order[j] is the place in the data of the group that is searched as number j.
    gain : float
        A power of two that brings the data near 1, so that all that follows fits in float32 and float16.
    """

    x: Floats
    metric: Metric
    group_size: int
    group_order: NDArray[np.intp]
    gain: float

    @classmethod
    def arrange(
        cls,
        x: ArrayLike,
        metric: Metric | None,
        group_size: int | None,
        gain: float | None = None,
        columns: NDArray[np.intp] | None = None,
    ) -> Problem:
        """Check the data, cut them into groups and order the groups by descending weight.

        Without `gain`, the power of two nearest to the root mean square of the data is taken. With `columns`, groups
        are cut from the columns in this order.

        Raises
        ------
        InputError
            If `x` is no finite real matrix, the metric weighs another number of columns, or the data are too large
            for `gain`.
        """
        matrix = as_matrix(x)
        n, d = matrix.shape
        metric = metric or Identity()
        metric.check_width(d)
        metric = metric.for_search()
        if gain is None:
            gain = typical_size(matrix)
        require_size(matrix, gain)
        if columns is not None:
            matrix, metric = matrix[:, columns], metric.arranged(columns, d)
        g = group_size or d
        groups = -(-d // g)
        padded = np.empty((n, groups * g), np.float32)
        np.divide(matrix, np.float32(gain), out=padded[:, :d])
        padded[:, d:] = 0
        order = np.arange(groups)
        if metric.couples:
            weight = np.zeros(groups * g)
            weight[:d] = metric.diagonal(d)
            order = np.argsort(-weight.reshape(groups, g).sum(1), kind="stable")
            padded = np.take(padded.reshape(n, groups, g), order, axis=1).reshape(n, -1)
        places = (order[:, None] * g + np.arange(g)).ravel()
        return cls(padded, metric.arranged(places, d), g, order, gain)

    def in_order(self, group_order: NDArray[np.intp]) -> Problem:
        """Return the same problem with its groups, named by their places in the data, in another order."""
        g = self.group_size
        columns = (np.argsort(self.group_order)[group_order][:, None] * g + np.arange(g)).ravel()
        x, metric = np.ascontiguousarray(self.x[:, columns]), self.metric.arranged(columns, len(columns))
        return replace(self, x=x, metric=metric, group_order=group_order)

    @classmethod
    def parts(
        cls,
        x: ArrayLike,
        metric: Metric | None,
        group_size: int | None,
        gain: float,
        columns: NDArray[np.intp] | None = None,
    ) -> Iterator[Problem]:
        """Yield problems of some rows each, all of `x` in turn, so that an encode needs little beside it.

        Where groups are coupled there is only one: its preparation costs as much as thousands of rows.

        Raises
        ------
        InputError
            As `arrange`; values that are not finite before anything is yielded.
        """
        rows = as_real_matrix(x)
        n, d = rows.shape
        whole = metric is not None and metric.couples and group_size is not None and group_size < d
        step = n if whole else max(1, PART_BYTES // (4 * d))
        if n > step:
            for start in range(0, n, step):
                as_matrix(rows[start : start + step], first_row=start)
        for start in range(0, n, step):
            yield cls.arrange(rows[start : start + step], metric, group_size, gain, columns)

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return len(self.group_order)

    def restore(self, per_group: NDArray[T]) -> NDArray[T]:
        """Put an array (n, G, ...) of the search back into the order of the data."""
        restored = np.empty_like(per_group)
        restored[:, self.group_order] = per_group
        return restored


def typical_size(matrix: Floats) -> float:
    """Return the power of two nearest to the root mean square of the entries, within float32; 1 for zeros."""
    size = power_of_two_near(math.sqrt(float(np.mean(np.square(matrix, dtype=np.float64)))))
    return min(max(size, LEAST_GAIN), MOST_GAIN)


def require_size(matrix: Floats, gain: float) -> None:
    """Raise `InputError` if the matrix is too large for a gain that was chosen for other data."""
    largest = float(np.abs(matrix).max())
    if largest > MAX_RANGE * gain:
        raise InputError(
            f"the largest entry must be at most {MAX_RANGE:g} times the typical one of the fit ({gain:g}), got "
            f"{largest:g}; remove the outlier, or fit on data of this size"
        )
