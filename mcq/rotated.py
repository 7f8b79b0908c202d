"""Any quantizer of rows that are rotated first: their entries are then nearly normal, whatever they were."""

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
from mcq.errors import ConfigError, InputError
from mcq.metric import Identity, Metric
from mcq.quantizer import Progress, Quantizer, require_array
from mcq.scales import FLOAT16_MAX
from mcq.transforms import MAX_WIDTH, SEED_BITS, Composition, Hadamard, Transform
from mcq.validate import as_matrix, config_from_dict, in_range, one_of

Floats = NDArray[np.float32]
Seeds = NDArray[np.uint64]

ROTATION = "rotation"
#: Entries of the sample of `fit_normal`.
NORMAL_ENTRIES = 1 << 18
LEAST_SIZE, LARGEST_SIZE = 1e-30, 1e30


@dataclass(frozen=True)
class RotatedConfig:
    """Kind and options of the quantizer of rotated rows; see `RotatedQuantizer`."""

    inner: str
    options: dict[str, Any]
    unbiased: bool = False
    version: int = 1


@io.register("rotated")
class RotatedQuantizer(Quantizer):
    """Quantizes y = x T, with T a randomised Hadamard rotation of the columns, by any other quantizer.

    Minimises what the other quantizer does, sum over rows of (y - y^)^T H' (y - y^), under the metric H' = T^T H T that
    weighs errors of y as H weighs those of x. The rotation costs the 64 bits of its seed. It serves implicit codebooks,
    which are made for normal entries and cannot follow any others; learned codebooks do not need it. Rotated rows are
    nearly normal whatever they were, so `fit_normal` needs no data at all.

    Parameters
    ----------
    inner : Quantizer
        With the options that are wanted; a fit fits it.
    unbiased : bool
        Whether inner products are estimated without bias: each row scale is multiplied by |x|^2 / x.x^, so that
        x.x^ = |x|^2 and, on average over rotations, q.x^ = q.x for any q that knows nothing of the rotation. The least
        error makes x^ shorter than x and inner products too small, by a factor that differs from row to row. The
        squared error becomes |x|^2 (1 / cos^2 - 1), where it was |x|^2 (1 - cos^2) at best, with the angle of x and x^.

    Raises
    ------
    InputError
        If `inner` is no quantizer, or rotates itself.
    ConfigError
        If `unbiased` is not a bool, or asked for without a scale per row.

    Notes
    -----
    Costs O(n d log d) more than the other quantizer, O(d^2 log d) for the metric, and with `unbiased` a decode. The
    mean over rotations is exact for uniformly distributed ones, and if no codebook was learned from rotated rows. One
    Hadamard transform is not random enough for rows whose mass is in a few entries; with `unbiased` there are two, and
    the rotation costs 128 bits.

    References
    ----------
    Ashkboos et al., QuaRot, NeurIPS 2024. Tseng et al., QuIP#, ICML 2024. Gao and Long, RaBitQ, SIGMOD 2024, for the
    factor.

    Examples
    --------
    >>> from mcq.scalar import ScalarQuantizer
    >>> x = np.random.default_rng(0).standard_normal((64, 96)) ** 3
    >>> plain, rotated = ScalarQuantizer(4, None), RotatedQuantizer(ScalarQuantizer(4, None))
    >>> errors = [Identity().relative_error(x, q.decode(q.fit_encode(x))) for q in (plain, rotated)]
    >>> errors[1] < 0.7 * errors[0]
    True
    >>> from mcq.shell import ShellQuantizer
    >>> unbiased = RotatedQuantizer(ShellQuantizer(scale="row"), unbiased=True).fit_normal(96)
    >>> x_hat = unbiased.decode(unbiased.encode(x))
    >>> bool(np.allclose((x * x_hat).sum(1), (x * x).sum(1), rtol=1e-3))
    True
    """

    kind = "rotated"
    config_type = RotatedConfig
    config: RotatedConfig

    def __init__(self, inner: Quantizer, unbiased: bool = False) -> None:
        if not isinstance(inner, Quantizer) or isinstance(inner, RotatedQuantizer):
            raise InputError(f"inner must be a quantizer that does not rotate itself, got {type(inner).__name__}")
        if one_of(unbiased, (False, True), "unbiased") and getattr(inner.config, "scale", None) != "row":
            raise ConfigError(f"unbiased=True needs an inner quantizer with scale='row', got {inner}")
        super().__init__(RotatedConfig(inner.kind, dataclasses.asdict(inner.config), unbiased))
        self.inner, self.codes_type = copy.deepcopy(inner), inner.codes_type

    def fit_normal(self, d: int, *, size: float = 1.0, seed: int = 0) -> Self:
        """Learn from normal entries, which any rows nearly have after a rotation, instead of data; return self.

        Parameters
        ----------
        d : int
            Columns of the rows to come; others can be encoded, too.
        size : float
            Root mean square of their entries. With a scale per row a rough figure will do: scales are float16 numbers,
            in units of about `size`. Without, codes are good for rows of this size only.
        seed : int
            Of sample and rotation.

        Raises
        ------
        ConfigError
            If a number is out of range.
        """
        in_range(d, 1, MAX_WIDTH, "d")
        in_range(size, LEAST_SIZE, LARGEST_SIZE, "size")
        seeds, rows = self._seeds(seed), -(-NORMAL_ENTRIES // d)
        sample = np.random.default_rng(seed).standard_normal((rows, d), np.float32) * np.float32(size)
        self.inner.fit(sample, seed=seed)
        self.arrays = {**self.inner.arrays, ROTATION: seeds}
        return self

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn from `x` (n, d), rotated by `seed`, and return its codes.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns, or any at all where
            inner products shall be unbiased.
        """
        matrix, seeds = as_matrix(x), self._seeds(seed)
        rotation = _rotation(matrix.shape[1], seeds)
        rotated, weights = rotation.apply(matrix), self._rotated_metric(rotation, metric)
        codes = self.inner.fit_encode(rotated, weights, seed=seed, progress=progress)
        self.arrays = {**self.inner.arrays, ROTATION: seeds}
        return self._unbiased(codes, rotated)

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
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
        rotation = _rotation(matrix.shape[1], self.arrays[ROTATION])
        rotated = rotation.apply(matrix)
        return self._unbiased(self.inner.encode(rotated, self._rotated_metric(rotation, metric)), rotated)

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
        decoded = self.inner.decode(codes)
        return _rotation(decoded.shape[1], self.arrays[ROTATION]).invert(decoded) if len(decoded) else decoded

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RotatedQuantizer:
        found = config_from_dict(RotatedConfig, config)
        own = {name: array for name, array in arrays.items() if name != ROTATION}
        quantizer = cls(io.build(found.inner, found.options, own), found.unbiased)
        quantizer.arrays = dict(arrays)
        quantizer._check_arrays()
        return quantizer

    def _check_arrays(self) -> None:
        require_array(self.arrays, ROTATION, np.uint64, (2 if self.config.unbiased else 1,))

    def _seeds(self, seed: int) -> Seeds:
        """Return the seeds of the transforms that make up the rotation."""
        last = (1 << SEED_BITS) - 1
        in_range(seed, 0, last, "seed")
        return np.array([seed, last - seed] if self.config.unbiased else [seed], np.uint64)

    def _rotated_metric(self, rotation: Transform, metric: Metric | None) -> Metric:
        if self.config.unbiased and not isinstance(metric, Identity | None):
            # Weights that turn with the rows would tell the code where other vectors lie.
            raise InputError(
                f"unbiased=True needs the identity as metric, got {type(metric).__name__}; leave out one of the two"
            )
        return rotation.apply_metric(metric or Identity())

    def _unbiased(self, codes: Codes, rotated: Floats) -> Codes:
        """Multiply the row scales by y.y / y.y^; rows whose codes say nothing about their direction keep theirs."""
        if not self.config.unbiased:
            return codes
        assert codes.scales is not None  # noqa: S101 (the constructor sees to it)
        y = rotated.astype(np.float64)
        square, product = (y * y).sum(1), (y * self.inner.decode(codes)).sum(1)
        factor = np.divide(square, product, out=np.ones_like(square), where=product > 0)
        scales = codes.scales * factor[:, None]
        if scales.max() > FLOAT16_MAX:
            raise InputError(
                f"scales of rows must be at most {FLOAT16_MAX:g} times the size of the data of the fit, got "
                f"{scales.max():g}; fit on data of this size, or give it to fit_normal"
            )
        return dataclasses.replace(codes, scales=scales.astype(np.float16))


def _rotation(d: int, seeds: Seeds) -> Transform:
    return Composition([Hadamard(d, int(seed)) for seed in seeds])
