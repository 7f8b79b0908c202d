"""An array that rows are appended to in amortised linear time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Growing:
    """Rows in a buffer that grows by a half whenever it is full: each row is copied about three times at most.

    Parameters
    ----------
    rows : array of shape (n, ...)
        Taken over without a copy.

    Examples
    --------
    >>> squares = Growing(np.array([0, 1, 4]))
    >>> squares.append([np.array([9]), np.array([16, 25])])
    >>> squares.rows.tolist()
    [0, 1, 4, 9, 16, 25]
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        self._buffer = rows
        self._size = len(rows)

    @property
    def rows(self) -> NDArray[Any]:
        """The rows so far; what is appended or removed later does not change them."""
        return self._buffer[: self._size]

    def append(self, parts: Sequence[NDArray[Any]]) -> None:
        """Append all rows of some arrays."""
        end = self._size + sum(len(part) for part in parts)
        if end > len(self._buffer):
            larger = np.empty((max(end, self._size + self._size // 2), *self._buffer.shape[1:]), self._buffer.dtype)
            larger[: self._size] = self.rows
            self._buffer = larger
        for part in parts:
            self._buffer[self._size : self._size + len(part)] = part
            self._size += len(part)

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Keep some rows, in a buffer of their own."""
        self._buffer = self.rows[chosen]
        self._size = len(self._buffer)
