"""Product quantization: a row is cut into slices, and each slice is coded by codebooks of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.additive import MAX_BEAM_WIDTH, MAX_CODEBOOKS, AdditiveQuantizer
from mcq.codes import Codes
from mcq.errors import InputError
from mcq.metric import Diagonal, Identity, Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array, require_no_outliers
from mcq.residual import ResidualQuantizer
from mcq.rotation import learned_rotation, random_rotation
from mcq.scales import to_float16
from mcq.validate import in_range, one_of
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Method = Literal["additive", "residual"]
Rotation = Literal["none", "random", "learned"]

MAX_SPLITS = 4096


@dataclass(frozen=True)
class ProductConfig:
    """Options of `ProductQuantizer`."""

    num_splits: int = 8
    num_codebooks: int = 1
    codebook_bits: int = 8
    method: Method = "additive"
    rotation: Rotation = "none"
    rounds: int = 8
    beam_width: int = 16
    search_steps: int = 3
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.num_splits, 1, MAX_SPLITS, "num_splits")
        in_range(self.num_codebooks, 1, MAX_CODEBOOKS, "num_codebooks")
        in_range(self.codebook_bits, 1, 16, "codebook_bits")
        one_of(self.method, ("additive", "residual"), "method")
        one_of(self.rotation, ("none", "random", "learned"), "rotation")
        in_range(self.rounds, 1, None, "rounds")
        in_range(self.beam_width, 1, MAX_BEAM_WIDTH, "beam_width")
        in_range(self.search_steps, 0, None, "search_steps")


@io.register("product")
class ProductQuantizer(Quantizer):
    """Slices of a row, each a sum of M entries of the slice's own codebooks.

    Minimises sum over rows of (x - x^)^T H (x - x^), x^ = [y_1 ... y_S] R^T with y_s = sum_m C_sm[a_sm], R a rotation
    and H the identity or, without a rotation, diagonal: other metrics couple the slices, which are coded apart. With
    one codebook this is product quantization, with more its product with residual or additive quantization.

    Parameters
    ----------
    num_splits : int
        S; rows of d entries are padded with zeros to S slices of ceil(d / S).
    num_codebooks : int
        M, 1 to 64, of each slice.
    codebook_bits : int
        Bits of a code, 1 to 16.
    method : "additive" or "residual"
        How the codebooks of a slice add up; see `AdditiveQuantizer` and `ResidualQuantizer`.
    rotation : "none", "random" or "learned"
        What rows are multiplied by before they are cut. A random one evens out the slices; a learned one is fitted to
        the codes in turns (OPQ).
    rounds, beam_width, search_steps
        As in `AdditiveQuantizer`, for each slice.

    Attributes
    ----------
    codebooks : array of shape (S, M, K, ceil(d / S)), float16
        In units of `gain`.
    gain : float
    rotation : array of shape (d, d), float32, or None
        R, orthogonal.

    Raises
    ------
    ConfigError
        If an option is out of range.
    InputError
        If the metric of a fit or an encode couples the slices.

    References
    ----------
    Jegou, Douze and Schmid, Product quantization, PAMI 2011. Ge et al., Optimized product quantization, CVPR 2013.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)
    >>> q = ProductQuantizer(num_splits=4, codebook_bits=4)
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, q.bits(codes).payload
    ((256, 16), 1.0)
    """

    kind = "product"
    config_type = ProductConfig
    config: ProductConfig

    def __init__(
        self,
        num_splits: int = 8,
        num_codebooks: int = 1,
        codebook_bits: int = 8,
        method: Method = "additive",
        rotation: Rotation = "none",
        rounds: int = 8,
        beam_width: int = 16,
        search_steps: int = 3,
    ) -> None:
        options = (num_splits, num_codebooks, codebook_bits, method, rotation, rounds, beam_width, search_steps)
        super().__init__(ProductConfig(*options))

    @property
    def rotation(self) -> Floats | None:
        """The matrix (d, d) that rows are multiplied by before they are cut, or None."""
        self._require_fitted()
        return self.arrays.get("rotation")

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn rotation and codebooks from `x` (n, d) and return its codes.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Identity or, without a rotation, Diagonal, optional
        seed : int
        progress : callable, optional
            Called as ``progress(done, total)`` after each slice.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric couples the slices or weighs another number of columns.
        """
        self._require_uncoupled(metric)
        problem = Problem.arrange(x, metric, None)
        rng = np.random.default_rng(in_range(seed, 0, None, "seed"))
        rows = problem.x
        arrays: dict[str, NDArray[Any]] = {"gain": np.array([problem.gain], np.float32)}
        config, report = self.config, progress or ignore_progress
        if config.rotation != "none":
            make = random_rotation if config.rotation == "random" else learned_rotation
            arrays["rotation"] = make(rows, config.num_splits, 1 << config.codebook_bits, rng)
            rows = cpu.matmul(rows, arrays["rotation"])
        codes, codebooks = [], []
        parts = zip(slices(rows, config.num_splits), slice_metrics(problem, config.num_splits), strict=True)
        for done, (part, own) in enumerate(parts):
            inner = self._inner()
            codes.append(inner.fit_encode(part, own, seed=int(rng.integers(1 << 32))).unpack())
            codebooks.append(inner.codebooks.astype(np.float32) * np.float32(inner.gain))
            report(done + 1, config.num_splits)
        arrays["codebooks"] = to_float16(np.stack(codebooks))
        self.arrays = arrays
        return self._pack(np.concatenate(codes, axis=1), problem.x.shape[1])

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
        """Return the codes of `x` (n, d) for what was learned; rows do not influence each other.

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        InputError
            If `x` is not a finite real matrix whose rows are cut into slices as those of the fit, or the metric couples
            the slices or weighs another number of columns.
        """
        self._require_fitted()
        self._require_uncoupled(metric)
        parts = []
        for problem in Problem.parts(x, metric, None, self.gain):
            self._check_width(problem.x.shape[1])
            rows = problem.x if self.rotation is None else cpu.matmul(problem.x, self.rotation)
            codes, splits = [], self.config.num_splits
            for part, own, codebooks in zip(
                slices(rows, splits), slice_metrics(problem, splits), self.codebooks, strict=True
            ):
                inner = self._inner()
                inner.arrays = {"codebooks": codebooks, "gain": np.ones(1, np.float32)}
                codes.append(inner.encode(part, own).unpack())
            parts.append(self._pack(np.concatenate(codes, axis=1), problem.x.shape[1]))
        return Codes.concatenate(parts)

    def decode(self, codes: Codes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        config, (n, d) = self.config, codes.shape
        found = (codes.num_groups, codes.num_codebooks, codes.codebook_bits, codes.scales is not None)
        want = (config.num_splits, config.num_codebooks, config.codebook_bits, False)
        require_no_outliers(codes)
        if found != want:
            raise InputError(
                "the codes must come from a quantizer with the same options: (slices, codebooks, bits, scales) "
                f"must be {want}, got {found}"
            )
        self._check_width(d)
        words, ones = codes.unpack(), np.ones((n, 1), np.float32)
        parts = [
            cpu.decode(np.ascontiguousarray(words[:, s : s + 1]), codebooks.astype(np.float32), ones)
            for s, codebooks in enumerate(self.codebooks)
        ]
        rows = np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :d])
        if self.rotation is not None:
            rows = cpu.matmul(rows, np.ascontiguousarray(self.rotation.T))
        return rows * np.float32(self.gain)

    def _require_uncoupled(self, metric: Metric | None) -> None:
        if metric is None or isinstance(metric, Identity):
            return
        name, rotation = type(metric).__name__, self.config.rotation
        if metric.couples:
            raise InputError(
                f"a product quantizer codes its slices apart, but {name} couples them; pass Identity or Diagonal, or "
                "use AdditiveQuantizer, which takes any metric"
            )
        if rotation != "none":
            raise InputError(
                f'{name} couples the slices after a rotation, got rotation="{rotation}"; take rotation="none", or use '
                "AdditiveQuantizer"
            )

    def _inner(self) -> AdditiveQuantizer:
        """Return a quantizer for one slice."""
        config = self.config
        kind = AdditiveQuantizer if config.method == "additive" else ResidualQuantizer
        return kind(
            config.num_codebooks,
            config.codebook_bits,
            group_size=None,
            rounds=config.rounds,
            beam_width=config.beam_width,
            search_steps=config.search_steps,
        )

    def _pack(self, codes: Words, d: int) -> Codes:
        return Codes.pack(codes, codebook_bits=self.config.codebook_bits, d=d, scales=None)

    def _check_width(self, d: int) -> None:
        width = self.codebooks.shape[3]
        fits = -(-d // self.config.num_splits) == width if self.rotation is None else d == len(self.rotation)
        if not fits:
            wanted = f"{width * self.config.num_splits}" if self.rotation is None else f"{len(self.rotation)}"
            raise InputError(f"rows must be as wide as those of the fit, {wanted} columns with padding, got {d}")

    def _check_arrays(self) -> None:
        config = self.config
        shape = (config.num_splits, config.num_codebooks, 1 << config.codebook_bits, None)
        require_array(self.arrays, "codebooks", np.float16, shape)
        require_array(self.arrays, "gain", np.float32, (1,))
        if config.rotation != "none":
            require_array(self.arrays, "rotation", np.float32, (None, None))
            rows, columns = self.arrays["rotation"].shape
            if rows != columns or -(-rows // config.num_splits) != self.arrays["codebooks"].shape[3]:
                raise InputError(f"array 'rotation' must be square and as wide as the slices, got {rows} x {columns}")


def slices(x: Floats, num_splits: int) -> list[Floats]:
    """Cut rows (n, d) into slices (n, ceil(d / num_splits)), with zero columns at the end where they are needed."""
    n, d = x.shape
    width = -(-d // num_splits)
    padded = np.zeros((n, num_splits * width), np.float32)
    padded[:, :d] = x
    return [np.ascontiguousarray(padded[:, s * width : (s + 1) * width]) for s in range(num_splits)]


def slice_metrics(problem: Problem, num_splits: int) -> list[Metric]:
    """Return what the metric of a problem, identity or diagonal, is for each slice.

    A slice without weight takes the identity: any codes are right.
    """
    if isinstance(problem.metric, Identity):
        return [problem.metric] * num_splits
    parts = slices(problem.metric.diagonal(problem.x.shape[1])[None], num_splits)
    return [Diagonal(weights[0]) if weights.any() else Identity() for weights in parts]
