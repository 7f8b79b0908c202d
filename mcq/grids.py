"""Grids that are optimal for a Gaussian, used as fixed codebooks for rotated rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.additive import AdditiveQuantizer
from mcq.codes import Codes
from mcq.metric import Identity, Metric
from mcq.problem import typical_size
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array
from mcq.scales import to_float16
from mcq.transforms import SEED_BITS, Hadamard
from mcq.validate import as_matrix, in_range, one_of

Floats = NDArray[np.float32]

#: Bits of a point that there are grids for, by dimension.
GRID_BITS = {1: range(1, 9), 2: range(2, 11), 3: range(3, 11), 4: range(4, 13)}


@dataclass(frozen=True)
class GridConfig:
    """Options of `GridQuantizer`."""

    dimension: int = 2
    points: int = 256
    search_steps: int = 3
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.dimension, 1, max(GRID_BITS), "dimension")
        one_of(self.points, [1 << bits for bits in GRID_BITS[self.dimension]], "points")
        in_range(self.search_steps, 0, None, "search_steps")


@io.register("grid")
class GridQuantizer(Quantizer):
    """Nearest points of a fixed grid for rows that a random rotation made Gaussian; nothing is learned (HIGGS).

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^ = s * [c(a_1) ... c(a_G)] T^-1: T the randomised Hadamard
    rotation of `mcq.transforms.Hadamard`, s a factor per row, and c(a) one of n points in p dimensions that code a
    standard Gaussian with the least squared error.

    Parameters
    ----------
    dimension : int
        p, 1 to 4 entries coded together. More dimensions lower the error for the same bits.
    points : int
        n, a power of two: 2 to 256, 4 to 1024, 8 to 1024 or 16 to 4096 for p = 1 to 4. A code takes log2(n) / p bits
        per entry.
    search_steps : int
        As in `AdditiveQuantizer`; 0 is fastest.

    Attributes
    ----------
    codebooks : array of shape (1, n, p), float16
        The grid, which is part of the library and stored nowhere else.
    gain : float
        A power of two that keeps scales in the range of float16.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    All-in bits per entry are log2(n) / p, 16 / d for the scales, and 12 bytes for seed and gain. Costs
    O(N d (n + log d)) for N rows without a metric; a Gram is rotated in O(d^2 log d) and then searched as in
    `AdditiveQuantizer`.

    References
    ----------
    Malinovskii et al., HIGGS: Pushing the limits of large language model quantization via the linearity theorem, NAACL
    2025.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((64, 32)) ** 3
    >>> q = GridQuantizer(dimension=2, points=256)
    >>> codes = q.fit_encode(x)
    >>> Identity().relative_error(x, q.decode(codes)) < 0.012, q.bits(codes).payload
    (True, 4.0)
    """

    kind = "grid"
    config_type = GridConfig
    config: GridConfig

    def __init__(self, dimension: int = 2, points: int = 256, search_steps: int = 3) -> None:
        super().__init__(GridConfig(dimension, points, search_steps))

    @property
    def codebooks(self) -> NDArray[np.float16]:
        """The grid (1, n, p), for a standard Gaussian."""
        self._require_fitted()
        return to_float16(gaussian_grid(self.config.dimension, self.config.points))[None]

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Note the size of `x` (n, d) and the seed of the rotation, and return the codes of `x`.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
        seed : int
            0 to 2**64 - 1.
        progress : callable, optional
            Called once, at the end.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        size = np.float32(typical_size(as_matrix(x)))
        seed = in_range(seed, 0, (1 << SEED_BITS) - 1, "seed")
        self.arrays = {"gain": np.array([size]), "seed": np.array([seed], np.uint64)}
        codes = self.encode(x, metric)
        (progress or ignore_progress)(1, 1)
        return codes

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
        """Return the codes of `x` (n, d), of any width; rows do not influence each other.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        self._require_fitted()
        matrix = as_matrix(x)
        rotation = self._rotation(matrix.shape[1])
        rotated = rotation.apply_metric(metric or Identity())
        return self._inner().encode(rotation.apply(matrix), rotated)

    def decode(self, codes: Codes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        decoded = self._inner().decode(codes)
        return self._rotation(codes.shape[1]).invert(decoded) if len(decoded) else decoded

    def _rotation(self, d: int) -> Hadamard:
        return Hadamard(d, int(self.arrays["seed"][0]))

    def _inner(self) -> AdditiveQuantizer:
        """Return the quantizer of rotated rows."""
        config = self.config
        bits = config.points.bit_length() - 1
        inner = AdditiveQuantizer(1, bits, config.dimension, "row", search_steps=config.search_steps)
        inner.arrays = {"codebooks": self.codebooks, "gain": self.arrays["gain"]}
        return inner

    def _check_arrays(self) -> None:
        require_array(self.arrays, "gain", np.float32, (1,))
        require_array(self.arrays, "seed", np.uint64, (1,))


@functools.cache
def gaussian_grid(dimension: int, points: int) -> Floats:
    """Return the points (points, dimension) that code a standard Gaussian with the least squared error.

    Raises
    ------
    ConfigError
        If there is no grid of this size.

    Examples
    --------
    >>> gaussian_grid(1, 4).ravel().astype(float).round(3).tolist()
    [-1.51, -0.453, 0.453, 1.51]
    """
    config = GridConfig(dimension, points)
    with resources.files("mcq").joinpath("grids.npz").open("rb") as file, np.load(file) as grids:
        grid = grids[f"{config.dimension}x{config.points}"].astype(np.float32)
    grid.flags.writeable = False
    return grid
