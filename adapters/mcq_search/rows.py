"""Matrices of which a part is read at a time: arrays, memory maps, files of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import InputError
from mcq.validate import as_matrix, as_real_matrix

Floats = NDArray[np.float32]

#: Rows that are read, encoded or searched at a time.
CHUNK = 1 << 14


class Rows(Protocol):
    """What has a shape (n, d) and gives rows for a slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return some rows as an array."""


def as_rows(x: Rows | ArrayLike, d: int | None = None, name: str = "x") -> Rows:
    """Return `x` as it is if rows can be cut from it, else as an array; values are checked when they are read.

    Raises
    ------
    InputError
        If `x` is not a matrix with at least one row and one column, or has not `d` columns.
    """
    rows = cast(Rows, x if hasattr(x, "shape") else as_real_matrix(x, name))
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise InputError(f"{name} must have shape (n, d) with at least one row and one column, got {tuple(rows.shape)}")
    if d is not None and rows.shape[1] != d:
        raise InputError(f"{name} must have the {d} columns of the index, got shape {tuple(rows.shape)}")
    return rows


def chunks(rows: Rows, name: str = "x") -> Iterator[tuple[slice, Floats]]:
    """Yield slices and the finite float32 matrices that they cut.

    Raises
    ------
    InputError
        If a value is not a finite real number.
    """
    n = rows.shape[0]
    for start in range(0, n, CHUNK):
        part = slice(start, min(start + CHUNK, n))
        label = name if n <= CHUNK else f"{name}[{part.start}:{part.stop}]"
        yield part, as_matrix(rows[part], label)


def sample_rows(rows: Rows, count: int, rng: np.random.Generator, name: str = "x") -> Floats:
    """Return `count` different rows at random, in their order, or all if there are not more.

    Examples
    --------
    >>> sample_rows(np.arange(6.0).reshape(6, 1), 6, np.random.default_rng(0)).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    n = rows.shape[0]
    chosen = np.sort(rng.choice(n, size=min(count, n), replace=False))
    return np.concatenate(
        [x[chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start] for part, x in chunks(rows, name)]
    )
