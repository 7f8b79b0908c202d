"""What all quantizers share: a frozen config, a dict of arrays, and fit, encode, decode, bits, save, load."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.codes import Bits, Codes
from mcq.errors import InputError, NotFittedError
from mcq.metric import Metric
from mcq.storage import restored_codebooks
from mcq.validate import config_from_dict

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


class Quantizer(io.Stored):
    """Base of the quantizers.

    Codes are `mcq.Codes` or, where codes differ in width, another class with the same methods: ``len``, slices of rows,
    ``==``, `bits`, `save`, `load`, `concatenate`.

    Attributes
    ----------
    config : frozen dataclass
        All options, JSON-able and versioned.
    arrays : dict of str to array
        All that was learned; empty before `fit`.
    codes_type : type
        What `encode` returns.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type]
    codes_type: type[Any] = Codes

    def __init__(self, config: Any) -> None:
        self.config = config
        self.arrays: dict[str, NDArray[Any]] = {}

    @property
    def codebooks(self) -> NDArray[np.float16]:
        """Entries (M, K, g), or those of each slice, in units of `gain`; some quantizers have none."""
        self._require_fitted()
        if "codebooks" not in self.arrays:
            raise AttributeError(f"{type(self).__name__} has no codebooks, only {', '.join(self.arrays)}")
        return restored_codebooks(self.arrays)

    @property
    def gain(self) -> float:
        """The power of two by which everything decoded is multiplied."""
        self._require_fitted()
        return float(self.arrays["gain"][0])

    @abstractmethod
    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Any:
        """Learn from `x` and return its codes, which come free at the end of a fit."""

    @abstractmethod
    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Any:
        """Return the codes of `x` (n, d) under `metric`, one that weighs d columns."""

    @abstractmethod
    def decode(self, codes: Any) -> Floats:
        """Return the reconstruction (n, d), float32."""

    def fit(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Self:
        """Learn from `x` (n, d), as `fit_encode`, and return self."""
        self.fit_encode(x, metric, seed=seed, progress=progress)
        return self

    def bits(self, codes: Any) -> Bits:
        """Return payload and all-in bits per entry of the matrix behind `codes`, all arrays of self included."""
        bits: Bits = codes.bits(sum(array.nbytes for array in self.arrays.values()))
        return bits

    def container(self) -> io.Container:
        """Return what `save` writes; `mcq.io.restore` makes a quantizer of it again.

        Raises
        ------
        NotFittedError
            If nothing was learned yet.
        """
        self._require_fitted()
        return io.Container(self.kind, dataclasses.asdict(self.config), self.arrays)

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        quantizer = cls.__new__(cls)
        Quantizer.__init__(quantizer, config_from_dict(cls.config_type, config))
        quantizer.arrays = dict(arrays)
        quantizer._check_arrays()
        return quantizer

    @abstractmethod
    def _check_arrays(self) -> None:
        """Raise `InputError` unless the arrays, read from a file, fit the config."""

    def _require_fitted(self) -> None:
        if not self.arrays:
            raise NotFittedError(f"{type(self).__name__} was not fitted yet; call fit or fit_encode first")

    def __repr__(self) -> str:
        options = ", ".join(f"{f.name}={getattr(self.config, f.name)!r}" for f in dataclasses.fields(self.config))
        return f"{type(self).__name__}({options}){'' if self.arrays else ' (not fitted)'}"


def ignore_progress(done: int, total: int) -> None:
    """Stand in for a progress callback."""


def require_array(arrays: Mapping[str, NDArray[Any]], name: str, dtype: type, shape: tuple[int | None, ...]) -> None:
    """Raise `InputError` unless ``arrays[name]`` is finite, of this dtype and shape; None stands for any length."""
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.ndim != len(shape):
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise InputError(f"array {name!r} must be {np.dtype(dtype)} of shape {shape}, got {found}")
    if any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        raise InputError(f"array {name!r} must have shape {shape}, got {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"array {name!r} must be finite")


def require_no_outliers(codes: Codes) -> None:
    """Raise `InputError` if codes come from an `OutlierQuantizer`, which alone knows how to add its outliers."""
    if codes.outliers is not None:
        raise InputError("the codes must come from a quantizer with the same options, but have outliers as well")
