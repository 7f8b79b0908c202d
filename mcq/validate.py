"""Checks of what the user hands in: each public call runs them once, nothing below repeats them.

Every message says what was required, what was found and what to do about it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import ConfigError, InputError
from mcq_ext import cpu

T = TypeVar("T")

# Relative to the largest entry and to the trace; a Gram accumulated in float32 stays below both.
SYMMETRY_TOLERANCE = 1e-5
PSD_TOLERANCE = 1e-6


def as_matrix(x: ArrayLike, name: str = "x", first_row: int = 0) -> NDArray[np.float32]:
    """Return `x` as a finite, C-contiguous float32 matrix with at least one row and one column.

    Parameters
    ----------
    x : array-like of shape (n, d), real
        Not copied when it already is C-contiguous float32.
    name : str
        How error messages call the array.
    first_row : int
        The number that error messages give to its first row.

    Returns
    -------
    array of shape (n, d), float32

    Raises
    ------
    InputError
        If the shape, the dtype or a value does not fit; the first bad value is located.

    Examples
    --------
    >>> as_matrix([[1, 2], [3, 4]]).dtype
    dtype('float32')
    """
    source = as_real_matrix(x, name)
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(source, dtype=np.float32)
    _require_finite(matrix, source, name, first_row)
    return matrix


def as_real_matrix(x: ArrayLike, name: str = "x") -> NDArray[Any]:
    """Return `x` as a real matrix of its own dtype, with at least one row and one column; values are not looked at.

    Raises
    ------
    InputError
        If the shape or the dtype does not fit.

    Examples
    --------
    >>> as_real_matrix([[1, 2], [3, 4]]).shape
    (2, 2)
    """
    source = _as_real(x, name, ndim=2, axes="(n, d)")
    if 0 in source.shape:
        raise InputError(f"{name} must have at least one row and one column, got shape {source.shape}")
    return source


def as_gram(h: ArrayLike, name: str = "gram", d: int | None = None) -> NDArray[np.float64]:
    """Return `h` as an exactly symmetric, positive semidefinite float64 matrix.

    Asymmetry and negative eigenvalues of the size of float32 rounding are accepted.

    Parameters
    ----------
    h : array-like of shape (d, d), real
        X^T X of the inputs of a layer, or any other PSD weighting.
    name : str
        How error messages call the array.
    d : int, optional
        The size that `h` must have.

    Returns
    -------
    array of shape (d, d), float64

    Raises
    ------
    InputError
        If `h` is not square or not of size `d`, not finite, not symmetric, all zero, or not PSD.

    Examples
    --------
    >>> as_gram([[2, 1], [1, 2]]).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """
    source = _as_real(h, name, ndim=2, axes="(d, d)")
    rows, columns = source.shape
    if rows != columns or rows == 0:
        raise InputError(f"{name} must be square, one row per input dimension, got shape {source.shape}")
    _require_size(rows, d, name)
    gram = source.astype(np.float64)
    _require_finite(gram, source, name)
    peak = float(max(gram.max(), -gram.min()))
    if peak == 0:
        raise InputError(f"{name} must not be all zero; accumulate it over inputs that reach the layer")
    asymmetry = float(np.abs(gram - gram.T).max()) / peak
    if asymmetry > SYMMETRY_TOLERANCE:
        raise InputError(
            f"{name} must be symmetric, but differs from its transpose by {asymmetry:.1e} of its "
            "largest entry; pass X.T @ X, or (h + h.T) / 2"
        )
    gram += gram.T
    gram /= 2
    _require_psd(gram, name)
    return gram


def as_weights(w: ArrayLike, name: str = "weights", d: int | None = None) -> NDArray[np.float64]:
    """Return `w` as a finite, non-negative float64 vector that is not all zero.

    Parameters
    ----------
    w : array-like of shape (d,), real
        Importance of each dimension, on any scale.
    name : str
        How error messages call the array.
    d : int, optional
        The length that `w` must have.

    Returns
    -------
    array of shape (d,), float64

    Raises
    ------
    InputError
        If the shape, the dtype or a value does not fit.

    Examples
    --------
    >>> as_weights([0, 1, 2]).tolist()
    [0.0, 1.0, 2.0]
    """
    source = _as_real(w, name, ndim=1, axes="(d,)")
    _require_size(source.size, d, name)
    weights = source.astype(np.float64)
    _require_finite(weights, source, name)
    if weights.min(initial=0.0) < 0:
        where = int(weights.argmin())
        raise InputError(f"{name} must not be negative, but entry {where} is {weights[where]:g}")
    if not weights.any():
        raise InputError(f"{name} must have a positive entry, but all are zero; pass ones to weigh all alike")
    return weights


@overload
def in_range(value: int, low: int, high: int | None, name: str) -> int: ...
@overload
def in_range(value: float, low: float, high: float | None, name: str) -> float: ...
def in_range(value: Any, low: float, high: float | None, name: str) -> float:
    """Return `value` if it lies in [low, high]; `high` None means no upper limit.

    An integer `low` asks for an integer; write ``0.0`` to accept fractions.

    Raises
    ------
    ConfigError
        If `value` is not such a number.

    Examples
    --------
    >>> in_range(8, 1, 16, "codebook_bits")
    8
    """
    whole = isinstance(low, int)
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real) and value is not True
    if not is_number or not low <= value < math.inf or (high is not None and value > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} must be {'an integer' if whole else 'a number'} {limits}, got {value!r}")
    return int(value) if whole else float(value)


def one_of(value: T, choices: Iterable[T], name: str) -> T:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    ConfigError
        If it is not; the message lists the choices.

    Examples
    --------
    >>> one_of("row", ("none", "row", "group"), "scale")
    'row'
    """
    allowed = list(choices)
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def config_from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the config dataclass `cls` from `values`, as read from a file or given by a user.

    Parameters
    ----------
    cls : type
        A dataclass; if it has a field ``version``, its default is the newest version this code understands.
    values : mapping of str to value

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or the version is newer than this code.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     width: int
    ...     version: int = 1
    >>> config_from_dict(Config, {"width": 8})
    Config(width=8, version=1)
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if "version" in fields:
        # First, because a newer version is also the likeliest reason for an unknown key.
        _require_known_version(cls.__name__, values.get("version", 1), fields["version"].default)
    for key in values:
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{cls.__name__} has no option {key!r}; the nearest of its options is {nearest!r}")
    missing = [f.name for f in fields.values() if _is_required(f) and f.name not in values]
    if missing:
        raise ConfigError(f"{cls.__name__} needs the option {missing[0]!r}, got {', '.join(values) or 'nothing'}")
    return cls(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _require_known_version(name: str, found: object, newest: Any) -> None:
    if not isinstance(found, int) or not 1 <= found <= newest:
        raise ConfigError(f"{name} must have a version from 1 to {newest}, got {found!r}; upgrade multicodebook")


def _as_real(x: ArrayLike, name: str, ndim: int, axes: str) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise InputError(f"{name} must be {ndim}-D of shape {axes}: {error}") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold real numbers, got dtype {array.dtype}; convert it to float32")
    if array.ndim != ndim:
        raise InputError(f"{name} must be {ndim}-D of shape {axes}, got shape {array.shape}")
    return array


def _require_size(size: int, d: int | None, name: str) -> None:
    if d is not None and size != d:
        raise InputError(f"{name} must match the {d} columns of the data, got size {size}")


def _require_finite(array: NDArray[np.floating[Any]], source: NDArray[Any], name: str, first_row: int = 0) -> None:
    """Locate the first non-finite value; `source` is the array before its conversion."""
    with np.errstate(over="ignore"):
        if np.isfinite(np.vdot(array, array)):  # only if all entries are; half the time of a mask
            return
    finite = np.isfinite(array)
    if finite.all():
        return
    where = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), array.shape))
    numbers = (where[0] + first_row, *where[1:])
    place = " ".join(f"{axis} {i}" for axis, i in zip(("row", "column"), numbers, strict=False))
    value = source[where]
    reason = f"too large for {array.dtype}; rescale it" if np.isfinite(value) else "replace or drop it"
    count = array.size - int(finite.sum())
    raise InputError(f"{name} must be finite, but has {value} at {place} ({count} such in all); {reason}")


def _require_psd(gram: NDArray[np.float64], name: str) -> None:
    """Check by a Cholesky factorisation, because it is far cheaper than the eigenvalues; `gram` stays as it was."""
    diagonal = np.diagonal(gram).copy()
    np.fill_diagonal(gram, diagonal + PSD_TOLERANCE * diagonal.sum())
    try:
        cpu.cholesky(gram)
    except np.linalg.LinAlgError:
        smallest = float(np.linalg.eigvalsh(gram)[0]) / float(np.abs(gram).max())
        raise InputError(
            f"{name} must be positive semidefinite, but its smallest eigenvalue is {smallest:.1e} of its "
            "largest entry; pass X.T @ X accumulated in float32 or wider"
        ) from None
    finally:
        np.fill_diagonal(gram, diagonal)
