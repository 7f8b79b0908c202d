"""Rounding to a uniform grid, with or without error feedback: the usual baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.additive import MAX_GROUP_SIZE
from mcq.encoders.columns import Feedback
from mcq.errors import ConfigError, InputError
from mcq.metric import Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array
from mcq.scalar_codes import ScalarCodes, require_scalar
from mcq.scales import reciprocal, to_float16
from mcq.validate import in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

#: Parts of the range of a group that are tried as range of its grid.
CLIPPING = np.linspace(1.0, 0.4, 13, dtype=np.float32)


@dataclass(frozen=True)
class ScalarConfig:
    """Options of `ScalarQuantizer`."""

    bits: int = 3
    group_size: int | None = 128
    feedback: bool = True
    clip: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.bits, 1, 8, "bits")
        if self.group_size is not None:
            in_range(self.group_size, 1, MAX_GROUP_SIZE, "group_size")
        for name in ("feedback", "clip"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")


@io.register("scalar")
class ScalarQuantizer(Quantizer):
    """Every entry rounded to a uniform grid that a group of columns of a row shares (RTN, GPTQ).

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^ = s (q - z), q and z integers of B bits, s a factor of the
    group. A grid spans the entries of its group and zero. Without feedback every entry goes to the nearest level (RTN);
    with it, under a metric that couples columns, entries are rounded one after another and mend what those before them
    left (GPTQ, groups in order of descending weight).

    Parameters
    ----------
    bits : int
        B, 1 to 8.
    group_size : int or None
        Columns that share s and z; None for the whole row.
    feedback : bool
    clip : bool
        Try smaller ranges, down to 0.4 of the group's, and keep the one of least squared error.

    Attributes
    ----------
    gain : float
        A power of two that keeps factors in the range of float16.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    All-in bits per entry are B + (16 + B) / group_size, and 4 bytes. Nothing is learned from a fit but `gain`. Costs
    O(n d), with feedback O(n d^2 + d^3).

    References
    ----------
    Frantar, Ashkboos, Hoefler and Alistarh, GPTQ, ICLR 2023.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((64, 256))
    >>> q = ScalarQuantizer(bits=4, group_size=128)
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, q.bits(codes).payload
    ((64, 256), 4.0)
    """

    kind = "scalar"
    config_type = ScalarConfig
    codes_type = ScalarCodes
    config: ScalarConfig

    def __init__(self, bits: int = 3, group_size: int | None = 128, feedback: bool = True, clip: bool = False) -> None:
        super().__init__(ScalarConfig(bits, group_size, feedback, clip))

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> ScalarCodes:
        """Note the size of `x` (n, d) and return its codes; nothing is random.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
        seed : int
            Changes nothing.
        progress : callable, optional
            Called once, at the end.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        in_range(seed, 0, None, "seed")
        problem = Problem.arrange(x, metric, self.config.group_size)
        self.arrays = {"gain": np.array([problem.gain], np.float32)}
        codes = self._encode(problem, np.shape(x)[1])
        (progress or ignore_progress)(1, 1)
        return codes

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> ScalarCodes:
        """Return the codes of `x` (n, d), of any width; rows do not influence each other.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        self._require_fitted()
        return self._encode(Problem.arrange(x, metric, self.config.group_size, self.gain), np.shape(x)[1])

    def decode(self, codes: ScalarCodes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        require_scalar(codes)
        d, bits = codes.shape[1], self.config.bits
        group_size = self.config.group_size or d
        groups = -(-d // group_size)
        want = {"scales": groups, "zeros": -(-groups * bits // 8)}
        found = {name: array.shape[1] for name, array in codes.side.items() if array.ndim == 2}
        if codes.row_bits != (d * bits,) or found != want:
            raise InputError(
                "the codes must come from a quantizer with the same options: bits of a row and columns of scales and "
                f"zeros must be {d * bits} and {want}, got {codes.row_bits} and {found}"
            )
        scales = codes.side["scales"].astype(np.float32) * np.float32(self.gain)
        zeros = cpu.unpack_bits(codes.side["zeros"], bits, groups).astype(np.float32)
        group = np.arange(d) // group_size
        return (codes.unpack(self._widths(d)).astype(np.float32) - zeros[:, group]) * scales[:, group]

    def _encode(self, problem: Problem, d: int) -> ScalarCodes:
        config, g = self.config, problem.group_size
        feedback = Feedback(problem.metric, problem.x.shape[1], config.feedback)
        ranges = CLIPPING if config.clip else CLIPPING[:1]
        grids: list[_Grid] = []
        columns: list[Bytes] = []

        def begin(group: slice, targets: Floats) -> None:
            grids.append(_Grid.best(targets, feedback.weights[group], config.bits, ranges))

        def choose(j: int, target: Floats) -> Floats:
            columns.append(grids[-1].round(target))
            return grids[-1].rebuild(columns[-1])

        feedback.run(np.ascontiguousarray(problem.x.T), g, begin, choose)
        n = len(problem.x)
        codes = problem.restore(np.stack(columns, axis=1).reshape(n, problem.num_groups, g)).reshape(n, -1)[:, :d]
        scales = problem.restore(np.stack([grid.scale for grid in grids], axis=1)).astype(np.float16)
        zeros = problem.restore(np.stack([grid.zero for grid in grids], axis=1)).astype(np.uint16)
        side: dict[str, NDArray[Any]] = {"scales": scales, "zeros": cpu.pack_bits(zeros, config.bits)}
        return ScalarCodes.pack(codes, self._widths(d), side)

    def _widths(self, d: int) -> NDArray[np.int64]:
        return np.full((1, d), self.config.bits)

    def _check_arrays(self) -> None:
        require_array(self.arrays, "gain", np.float32, (1,))


@dataclass(frozen=True)
class _Grid:
    """The levels s (q - z), q = 0 .. highest, of one group of n rows: scale s and zero z, both (n,)."""

    scale: Floats
    zero: Floats
    highest: int

    @classmethod
    def best(cls, targets: Floats, weights: Floats, bits: int, ranges: Floats) -> _Grid:
        """Return the grids of least weighted squared error for targets (g, n), among some parts of their ranges."""
        highest = (1 << bits) - 1
        low, high = np.minimum(targets.min(0), 0), np.maximum(targets.max(0), 0)
        scale, zero = np.zeros_like(low), np.zeros_like(low)
        least = np.full_like(low, np.inf)
        for part in ranges:
            tried = to_float16((high - low) * part / highest).astype(np.float32)
            inverse = reciprocal(tried)
            grid = cls(tried, np.clip(np.rint(-low * part * inverse), 0, highest), highest)
            error = targets - grid.rebuild(grid.round(targets))
            cost = cpu.matmul(weights[None], error * error)[0]  # sums in the same order for any number of rows
            better = cost < least
            scale[better], zero[better], least[better] = tried[better], grid.zero[better], cost[better]
        return cls(scale, zero, highest)

    def round(self, targets: Floats) -> Bytes:
        """Return the numbers of the nearest levels."""
        return np.clip(np.rint(targets * reciprocal(self.scale)) + self.zero, 0, self.highest).astype(np.uint8)

    def rebuild(self, codes: Bytes) -> Floats:
        """Return the levels of these numbers."""
        return (codes - self.zero) * self.scale
