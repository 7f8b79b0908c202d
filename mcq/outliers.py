"""A few entries of each row apart, in float16, where codebooks would have to stretch to reach them.

Each row has equally many, so that rows stay independent and of one size. Their columns are stored in the code of Elias
and Fano: the low bits of each as they are, the high bits as gaps in unary, about log2(d / k) + 2 bits for each of k.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.codes import Codes
from mcq.errors import InputError
from mcq.metric import Identity, Metric
from mcq.problem import typical_size
from mcq.quantizer import Progress, Quantizer, require_array
from mcq.scales import to_float16
from mcq.validate import as_matrix, in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class OutlierConfig:
    """Options of `OutlierQuantizer`: kind and options of the inner quantizer, and the share of outliers."""

    inner: str
    options: Mapping[str, Any]
    fraction: float = 0.005
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.fraction, 0.0, 1.0, "fraction")

    def count(self, d: int) -> int:
        """Return k, the outliers of a row of d columns, one at least."""
        return max(1, round(self.fraction * d))


@io.register("outlier")
class OutlierQuantizer(Quantizer):
    """Codes of any other quantizer, and the few heaviest entries of each row in float16.

    x^ = inner(x - o) + o, where o has k = max(1, round(fraction * d)) entries of x in each row, those with the largest
    H_ii x_i^2: what they would cost if nothing were coded. (What they cost after a first encode chooses worse:
    codebooks that have reached for the outliers rebuild these well and the others badly.)

    Parameters
    ----------
    inner : Quantizer
        With the options that are wanted; a fit fits it.
    fraction : float
        Share of the entries of a row that are outliers.

    Attributes
    ----------
    inner : Quantizer

    Raises
    ------
    ConfigError
        If `fraction` is not from 0 to 1.
    InputError
        If the codes of `inner` have no place for outliers.

    Notes
    -----
    An outlier costs 16 bits and about log2(1 / fraction) + 2 for its place: 0.13 bit per entry for 0.5 per cent. This
    pays where single entries are many times as large as the others, and not on weights that are nearly normal.

    References
    ----------
    Shao et al., GWQ: Gradient-aware weight quantization, 2024, for a share of the weights in float16. Vigna,
    Quasi-succinct indices, WSDM 2013, for the code of their places.

    Examples
    --------
    >>> import mcq
    >>> x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> x[np.arange(64), np.arange(64) % 32] = 50
    >>> plain = mcq.AdditiveQuantizer(num_codebooks=1, codebook_bits=6, group_size=8)
    >>> q = OutlierQuantizer(plain, fraction=1 / 32)
    >>> Identity().relative_error(x, q.decode(q.fit_encode(x))) < 0.02
    True
    """

    kind = "outlier"
    config_type = OutlierConfig
    config: OutlierConfig

    def __init__(self, inner: Quantizer, fraction: float = 0.005) -> None:
        if inner.codes_type is not Codes or isinstance(inner, OutlierQuantizer):
            raise InputError(f"inner must be a quantizer with codes of one width and no outliers, got {inner}")
        super().__init__(OutlierConfig(inner.kind, dataclasses.asdict(inner.config), fraction))
        self.inner = copy.deepcopy(inner)

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Fit the inner quantizer to `x` (n, d) without its outliers, and return the codes of both.

        Raises
        ------
        InputError
            As the inner quantizer.
        """
        matrix = as_matrix(x)
        gain = typical_size(matrix)
        packed, without = self._apart(matrix, metric, gain)
        codes = self.inner.fit_encode(without, metric, seed=seed, progress=progress)
        self.arrays = self.inner.arrays | {"outlier_gain": np.array([gain], np.float32)}
        return dataclasses.replace(codes, outliers=packed)

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
        """Return the codes of `x` (n, d) and its outliers; rows do not influence each other.

        Raises
        ------
        NotFittedError
            If nothing was learned yet.
        InputError
            As the inner quantizer.
        """
        self._require_fitted()
        matrix = as_matrix(x)
        packed, without = self._apart(matrix, metric, float(self.arrays["outlier_gain"][0]))
        return dataclasses.replace(self.inner.encode(without, metric), outliers=packed)

    def decode(self, codes: Codes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If nothing was learned yet.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        n, d = codes.shape
        count = self.config.count(d)
        width = 2 * count + places_bytes(count, d)
        if codes.outliers is None or codes.outliers.shape[1] != width:
            found = 0 if codes.outliers is None else codes.outliers.shape[1]
            raise InputError(
                "the codes must come from a quantizer with the same options: bytes of outliers of a row must be "
                f"{width}, got {found}"
            )
        x_hat = self.inner.decode(dataclasses.replace(codes, outliers=None))
        values = np.ascontiguousarray(codes.outliers[:, : 2 * count]).view("<f2").astype(np.float32)
        places = unpack_places(codes.outliers[:, 2 * count :], count, d)
        x_hat[np.arange(n)[:, None], places] += values * self.arrays["outlier_gain"]
        return x_hat

    def _apart(self, x: Floats, metric: Metric | None, gain: float) -> tuple[Bytes, Floats]:
        """Return the outliers of rows as they are stored, and the rows without them."""
        n, d = x.shape
        count, rows = self.config.count(d), np.arange(n)[:, None]
        metric = metric or Identity()
        metric.check_width(d)
        scaled = x / np.float32(gain)
        weight = np.sqrt(metric.for_search().diagonal(d))
        places = np.sort(np.argsort(-np.abs(scaled) * weight, axis=1, kind="stable")[:, :count], axis=1)
        values = to_float16(np.take_along_axis(scaled, places, axis=1))
        without = x.copy()
        without[rows, places] -= values.astype(np.float32) * np.float32(gain)
        return np.concatenate([values.astype("<f2").view(np.uint8), pack_places(places, d)], axis=1), without

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        quantizer = super()._from_container(config, arrays)
        own = {name: array for name, array in arrays.items() if name != "outlier_gain"}
        quantizer.inner = io.build(quantizer.config.inner, quantizer.config.options, own)
        options = dataclasses.asdict(quantizer.inner.config)  # JSON has no tuples
        quantizer.config = dataclasses.replace(quantizer.config, options=options)
        return quantizer

    def _check_arrays(self) -> None:
        require_array(self.arrays, "outlier_gain", np.float32, (1,))


def places_bytes(count: int, d: int) -> int:
    """Return the bytes that `count` columns of d take."""
    low = _low_bits(count, d)
    return -(-count * low // 8) + -(-(count + (d - 1 >> low)) // 8)


def pack_places(places: NDArray[np.intp], d: int) -> Bytes:
    """Return rising columns (n, k), each below d, as bytes (n, `places_bytes`): all low bits, then all gaps.

    Column p, number i of its row, sets bit (p >> l) + i of the gaps, l = max(0, floor(log2(d / k))) the low bits.

    Examples
    --------
    >>> unpack_places(pack_places(np.array([[3, 70, 71]]), 100), 3, 100).tolist()
    [[3, 70, 71]]
    """
    n, count = places.shape
    low = _low_bits(count, d)
    gaps = np.zeros((n, count + (d - 1 >> low)), np.uint8)
    gaps[np.arange(n)[:, None], (places >> low) + np.arange(count)] = 1
    lows = cpu.pack_bits((places & (1 << low) - 1).astype(np.uint16), low) if low else np.empty((n, 0), np.uint8)
    return np.concatenate([lows, np.packbits(gaps, axis=1, bitorder="little")], axis=1)


def unpack_places(packed: Bytes, count: int, d: int) -> NDArray[np.intp]:
    """Return the columns (n, k) that `pack_places` packed.

    Raises
    ------
    InputError
        If a row does not have `count` columns below d.
    """
    low = _low_bits(count, d)
    split = -(-count * low // 8)
    gaps = np.unpackbits(packed[:, split:], axis=1, count=count + (d - 1 >> low), bitorder="little")
    if (gaps.sum(1, dtype=np.int64) != count).any():
        raise InputError(f"each row must have {count} outliers; the codes were altered")
    places = (np.nonzero(gaps)[1].reshape(len(packed), count) - np.arange(count)) << low
    if low:
        places |= cpu.unpack_bits(np.ascontiguousarray(packed[:, :split]), low, count)
    if places.max(initial=0) >= d:
        raise InputError(f"outliers must lie in columns below {d}; the codes were altered")
    return places


def _low_bits(count: int, d: int) -> int:
    return min(16, max(0, (d // count).bit_length() - 1))
