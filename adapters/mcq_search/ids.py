"""The ids of an index: which are taken, and in which row each is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import InputError
from mcq_search.growing import Growing

Integers = NDArray[np.int64]

LARGEST = np.iinfo(np.int64).max


class Ids:
    """Different integers, one for each row of an index.

    Parameters
    ----------
    ids : array-like of shape (n,), integers
    n : int
        Rows, for which there must be ids.

    Raises
    ------
    InputError
        If these are not n different integers in 0..2**63 - 1.

    Examples
    --------
    >>> ids = Ids([7, 3], 2)
    >>> ids.append(ids.new([5], 1))
    >>> ids.append(ids.new(None, 2))
    >>> ids.values.tolist(), ids.rows_of([3, 9]).tolist()
    ([7, 3, 5, 8, 9], [1, 4])
    """

    def __init__(self, ids: ArrayLike, n: int) -> None:
        self._values = Growing(_valid(ids, n))
        self._largest = int(self.values.max(initial=-1))
        self._taken: Taken | None = None  # made when ids first come that do not follow the largest

    @property
    def values(self) -> Integers:
        """The ids, shape (n,), row by row."""
        return self._values.rows

    def new(self, ids: ArrayLike | None, n: int) -> Integers:
        """Return ids for n more rows, those after the largest if `ids` is None.

        Raises
        ------
        InputError
            If they are not n different integers in 0..2**63 - 1, or one is taken.
        """
        if ids is None:
            if self._largest > LARGEST - n:
                raise InputError(f"there are no {n} ids after the largest, {self._largest}; pass ids")
            return self._largest + 1 + np.arange(n)
        new = _valid(ids, n)
        if n and new.min() <= self._largest:
            self._taken = self._taken or Taken(self.values)
            known = new[self._taken.contain(new)]
            if len(known):
                raise InputError(f"ids must be new, but {known[0]} is in the index already; remove it first")
        return new

    def append(self, new: Integers) -> None:
        """Append ids that `new` returned."""
        self._values.append([new])
        self._largest = max(self._largest, int(new.max(initial=-1)))
        if self._taken is not None:
            self._taken.add(new)

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Keep the ids of some rows."""
        self._values.keep(chosen)
        self._largest = int(self.values.max(initial=-1))
        self._taken = None

    def rows_of(self, ids: ArrayLike) -> Integers:
        """Return the row of each id.

        Raises
        ------
        InputError
            If an id is not an integer, or not in the index.
        """
        wanted, values = np.atleast_1d(np.asarray(ids)), self.values
        if wanted.shape == (0,):
            return np.zeros(0, np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(f"ids must be integers of shape (n,), got {wanted.dtype} of shape {wanted.shape}")
        missing = wanted[~np.isin(wanted, values)]
        if len(missing):
            raise InputError(f"ids must be in the index, but {missing[0]} is not ({len(missing)} such in all)")
        order = np.argsort(values)
        return order[np.searchsorted(values, wanted, sorter=order)]


class Taken:
    """A set of integers, as sorted runs each of which is larger than the next one.

    Adding a batch merges runs of about its size: O(log n) for each integer in all, where one sorted array would cost
    O(n) for each batch. Asking looks into at most log2(n) runs.

    Parameters
    ----------
    ids : array of shape (n,), int64

    Examples
    --------
    >>> taken = Taken(np.array([3, 9]))
    >>> taken.add(np.array([5]))
    >>> taken.contain(np.array([5, 6, 9])).tolist()
    [True, False, True]
    """

    def __init__(self, ids: Integers) -> None:
        self._runs: list[Integers] = []
        self.add(ids)

    def add(self, ids: Integers) -> None:
        """Add integers that are not in the set yet."""
        run = np.sort(ids)
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)

    def contain(self, ids: Integers) -> NDArray[np.bool_]:
        """Return for each id whether it is in the set."""
        found = np.zeros(ids.shape, bool)
        for run in self._runs:
            found |= run[np.minimum(np.searchsorted(run, ids), len(run) - 1)] == ids
        return found


def _valid(ids: ArrayLike, n: int) -> Integers:
    array = np.asarray(ids)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(f"ids must be {n} integers, one for each vector, got {array.dtype} of shape {array.shape}")
    if n and (array.min() < 0 or array.max() > LARGEST):
        raise InputError(f"ids must lie in 0..2**63 - 1, got {array.min()} to {array.max()}")
    values, counts = np.unique(array, return_counts=True)
    if len(values) < n:
        raise InputError(f"ids must not repeat, but {values[counts > 1][0]} comes {counts.max()} times")
    return array.astype(np.int64)
