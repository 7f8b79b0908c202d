"""Rows in bands of equal number, from the least to the most important, each with a quantizer of its own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.codes import Bits
from mcq.errors import InputError
from mcq.metric import Metric
from mcq.quantizer import Progress, Quantizer, require_array
from mcq.validate import as_matrix, config_from_dict, in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MAX_BANDS = 255
THRESHOLDS = "thresholds"


@io.register("banded codes")
@dataclass(frozen=True, eq=False)
class BandedCodes(io.Stored):
    """The codes of a matrix of n rows and d columns, band by band.

    Attributes
    ----------
    bands : array of shape (n,), uint8
        The band of each row. Stored in as many bits as the number of bands takes.
    parts : tuple of codes
        Of the rows of each band, in their order.

    Raises
    ------
    InputError
        If these do not fit together.
    """

    bands: Bytes
    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        counts = np.bincount(self.bands, minlength=len(self.parts)).tolist()
        widths = {part.shape[1] for part in self.parts}
        if counts != [len(part) for part in self.parts] or len(widths) != 1:
            raise InputError(
                f"parts must hold the {counts} rows of their bands, equally wide, got {[p.shape for p in self.parts]}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows n and columns d of the matrix that was encoded."""
        return len(self.bands), self.parts[0].shape[1]

    def bits(self, shared_bytes: int = 0) -> Bits:
        """Count the bits per entry; `shared_bytes` is what is stored once for all rows."""
        counted = [(part.bits(), part.shape[0] * part.shape[1]) for part in self.parts]
        entries = max(len(self) * self.shape[1], 1)
        stored = 8 * (self._packed_bands.nbytes + shared_bytes) + sum(bits.all_in * size for bits, size in counted)
        return Bits(sum(bits.payload * size for bits, size in counted) / entries, stored / entries)

    def container(self) -> io.Container:
        """Return what `save` writes; `mcq.io.restore` makes codes of it again."""
        kinds, arrays = _joined([part.container() for part in self.parts])
        return io.Container("banded codes", {"rows": len(self), "parts": kinds}, arrays | {"bands": self._packed_bands})

    @classmethod
    def concatenate(cls, parts: Sequence[BandedCodes]) -> BandedCodes:
        """Join codes of the same fit along the rows.

        Raises
        ------
        InputError
            If `parts` is empty, or the layouts differ.
        """
        if not parts:
            raise InputError("concatenate needs at least one part, got none")
        counts = {len(part.parts) for part in parts}
        if len(counts) > 1:
            raise InputError(f"all parts must share one layout, got {sorted(counts)} bands")
        joined = [type(first[0]).concatenate(first) for first in zip(*(part.parts for part in parts), strict=True)]
        return cls(np.concatenate([part.bands for part in parts]), tuple(joined))

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> BandedCodes:
        rows, kinds = config["rows"], config["parts"]
        bands = np.zeros(in_range(rows, 0, None, "rows"), np.uint8)
        width = _band_bits(len(kinds))
        if rows and width:
            require_array(arrays, "bands", np.uint8, (1, -(-rows * width // 8)))
            bands = cpu.unpack_bits(arrays["bands"], width, rows)[0].astype(np.uint8)
        return cls(bands, tuple(io.build(*container) for container in _apart(kinds, arrays)))

    def __len__(self) -> int:
        return len(self.bands)

    def __getitem__(self, rows: slice) -> BandedCodes:
        if not isinstance(rows, slice):
            raise TypeError(f"codes are cut by a slice over rows, such as codes[10:20], got {rows!r}")
        wanted = np.arange(len(self))[rows]
        if len(wanted) and (np.diff(wanted) != 1).any():
            raise InputError(f"rows in bands are cut by slices of step 1, such as codes[10:20], got {rows}")
        start, stop = (int(wanted[0]), int(wanted[-1]) + 1) if len(wanted) else (0, 0)
        before, until = (np.bincount(self.bands[:end], minlength=len(self.parts)) for end in (start, stop))
        cut = (part[int(a) : int(b)] for part, a, b in zip(self.parts, before, until, strict=True))
        return BandedCodes(self.bands[start:stop].copy(), tuple(cut))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BandedCodes):
            return NotImplemented
        return np.array_equal(self.bands, other.bands) and self.parts == other.parts

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BandedCodes(n={len(self)}, d={self.shape[1]}, parts={list(self.parts)})"

    @property
    def _packed_bands(self) -> Bytes:
        width = _band_bits(len(self.parts))
        if not width or not len(self):
            return np.zeros((1, 0), np.uint8)
        return cpu.pack_bits(self.bands[None].astype(np.uint16), width)


@dataclass(frozen=True)
class BandedConfig:
    """Kinds and options of the quantizers of the bands; see `BandedQuantizer`."""

    parts: tuple[tuple[str, dict[str, Any]], ...]
    version: int = 1


@io.register("banded")
class BandedQuantizer(Quantizer):
    """Cuts the rows into bands of equal number by their importance, and codes each band with a quantizer of its own.

    Minimises sum over rows of w_r (x_r - x^_r)^T H (x_r - x^_r) for rows whose errors do not count alike: at the rate R
    a row loses about w_r x_r^T H x_r 4^-R, and the least sum at a given mean rate has equal losses everywhere. Where
    these differ by a factor of 4, a bit moved from one band to another saves 20 per cent of both. Codebooks that are
    implicit cost nothing to have several of; a row takes log2 of the number of bands.

    Parameters
    ----------
    parts : sequence of Quantizer
        For the bands from the least to the most important, 1 to 255; a fit fits them.

    Raises
    ------
    InputError
        If `parts` are no quantizers, or themselves banded.
    ConfigError
        If there are none, or too many.

    Notes
    -----
    `fit_encode` and `encode` take an argument `importance` (n,), nonnegative; left out, it is the mean square of each
    row. Rows that are encoded later get the band that their importance puts them in. Costs what the parts cost.

    References
    ----------
    Cover and Thomas, Elements of Information Theory, 2006, section 10.3.3, for reverse water-filling.

    Examples
    --------
    >>> from mcq.metric import Identity
    >>> from mcq.shell import ShellQuantizer
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((256, 64)) * np.exp(rng.standard_normal((256, 1)))
    >>> alike = ShellQuantizer.of_rate(2.0, 16, "row")
    >>> banded = BandedQuantizer([ShellQuantizer.of_rate(rate, 16, "row") for rate in (1.0, 1.75, 2.25, 3.0)])
    >>> errors = [Identity().relative_error(x, q.decode(q.fit_encode(x))) for q in (alike, banded)]
    >>> errors[1] < 0.6 * errors[0]
    True
    """

    kind = "banded"
    config_type = BandedConfig
    codes_type = BandedCodes
    config: BandedConfig

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        for part in parts:
            if not isinstance(part, Quantizer) or isinstance(part, BandedQuantizer):
                raise InputError(f"parts must be quantizers that are not banded themselves, got {type(part).__name__}")
        in_range(len(parts), 1, MAX_BANDS, "the number of parts")
        super().__init__(BandedConfig(tuple((part.kind, dataclasses.asdict(part.config)) for part in parts)))
        self.parts = tuple(copy.deepcopy(part) for part in parts)  # one may be given for several bands

    @property
    def gain(self) -> float:
        """Not one for all bands: ask their quantizers."""
        self._require_fitted()
        raise AttributeError("a banded quantizer has no gain of its own; ask its parts for theirs")

    def fit_encode(
        self,
        x: ArrayLike,
        metric: Metric | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        importance: ArrayLike | None = None,
    ) -> BandedCodes:
        """Learn from `x` (n, d) and return its codes; a band that no row is in learns from all.

        Raises
        ------
        InputError
            As those of the parts, or if `importance` is not one finite number, at least 0, for each row.
        """
        matrix = as_matrix(x)
        weights = _importance(matrix, importance)
        thresholds = _cut(weights, len(self.parts))
        bands = np.searchsorted(thresholds, weights, side="right").astype(np.uint8)
        codes = []
        for band, part in enumerate(self.parts):
            rows = matrix[bands == band]
            found = part.fit_encode(rows if len(rows) else matrix, metric, seed=seed)
            codes.append(found if len(rows) else found[:0])
            if progress is not None:
                progress(band + 1, len(self.parts))
        _, arrays = _joined([part.container() for part in self.parts])
        self.arrays = arrays | {THRESHOLDS: thresholds}
        return BandedCodes(bands, tuple(codes))

    def encode(self, x: ArrayLike, metric: Metric | None = None, *, importance: ArrayLike | None = None) -> BandedCodes:
        """Return the codes of `x` (n, d).

        Raises
        ------
        NotFittedError
            If nothing was learned yet.
        InputError
            As `fit_encode`.
        """
        self._require_fitted()
        matrix = as_matrix(x)
        weights = _importance(matrix, importance)
        bands = np.searchsorted(self.arrays[THRESHOLDS], weights, side="right").astype(np.uint8)
        codes = []
        for band, part in enumerate(self.parts):
            rows = matrix[bands == band]
            codes.append(part.encode(rows, metric) if len(rows) else part.encode(matrix[:1], metric)[:0])
        return BandedCodes(bands, tuple(codes))

    def decode(self, codes: BandedCodes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If nothing was learned yet.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        if not isinstance(codes, BandedCodes) or len(codes.parts) != len(self.parts):
            raise InputError(
                f"the codes must come from a quantizer with the same options: {len(self.parts)} bands, got {codes!r}"
            )
        rows = np.empty(codes.shape, np.float32)
        for band, (part, found) in enumerate(zip(self.parts, codes.parts, strict=True)):
            rows[codes.bands == band] = part.decode(found)
        return rows

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> BandedQuantizer:
        found = config_from_dict(BandedConfig, config)
        quantizer = cls([io.build(*container) for container in _apart(found.parts, arrays)])
        quantizer.arrays = dict(arrays)
        quantizer._check_arrays()
        return quantizer

    def _check_arrays(self) -> None:
        require_array(self.arrays, THRESHOLDS, np.float64, (len(self.parts) - 1,))


def _importance(matrix: Floats, given: ArrayLike | None) -> NDArray[np.float64]:
    if given is None:
        return np.mean(np.square(matrix, dtype=np.float64), axis=1)
    found = np.asarray(given)
    real = found.dtype.kind in "iuf" and found.shape == (len(matrix),)
    if not real or not np.isfinite(found).all() or found.min(initial=0.0) < 0:
        raise InputError(
            f"importance must be a finite number, at least 0, for each of {len(matrix)} rows, got {found.dtype} of "
            f"shape {found.shape}"
        )
    return found.astype(np.float64)


def _cut(values: NDArray[np.float64], parts: int) -> NDArray[np.float64]:
    """Return thresholds that cut the values in parts of about equal number; equal values stay together."""
    ordered = np.sort(values)
    return ordered[[len(values) * part // parts for part in range(1, parts)]]


def _band_bits(bands: int) -> int:
    return (bands - 1).bit_length()


def _joined(containers: Sequence[io.Container]) -> tuple[list[list[Any]], dict[str, NDArray[Any]]]:
    """Return kinds and configs of several containers, and all their arrays, with numbers in front of their names."""
    arrays = {f"{i}.{name}": array for i, found in enumerate(containers) for name, array in found.arrays.items()}
    return [[found.kind, found.config] for found in containers], arrays


def _apart(kinds: Sequence[Sequence[Any]], arrays: Mapping[str, NDArray[Any]]) -> list[io.Container]:
    """Undo `_joined`."""
    return [
        io.Container(kind, config, {n.removeprefix(f"{i}."): a for n, a in arrays.items() if n.startswith(f"{i}.")})
        for i, (kind, config) in enumerate(kinds)
    ]
