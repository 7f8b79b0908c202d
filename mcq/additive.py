"""Additive quantization: each group of g entries is a sum of M entries, one from each codebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io, score_aware, vectors
from mcq.codebooks import refit, start_codebooks
from mcq.codes import Codes
from mcq.encoders.local_search import Search
from mcq.encoders.tables import ScoreSearch, Step, TableSearch, plan, tables_fit
from mcq.errors import InputError
from mcq.metric import Identity, Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array, require_no_outliers
from mcq.scales import Scale, refit_scale, start_scale, stored_scale
from mcq.score_aware import ScoreAware
from mcq.storage import CODEBOOK_DTYPES, CodebookDtype, as_stored, stored_codebooks
from mcq.validate import in_range, one_of
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Chooser = Callable[[Problem], tuple[Words, Floats]]

#: Steps of conjugate gradients in a refit; codes move on before more would pay.
CONJUGATE_STEPS = 8
MAX_CODEBOOKS = 64
MAX_GROUP_SIZE = 4096
MAX_BEAM_WIDTH = 256
#: Vectors shorter than this are groups like others: sweeps, whose beam proposes codes in every round, then end lower.
LEAST_VECTOR = 16


@dataclass(frozen=True)
class AdditiveConfig:
    """Options of additive and residual quantizers; see `AdditiveQuantizer`."""

    num_codebooks: int = 2
    codebook_bits: int = 8
    group_size: int | None = 8
    scale: Scale = "none"
    rounds: int = 8
    beam_width: int = 16
    search_steps: int = 3
    codebook_dtype: CodebookDtype = "float16"
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.num_codebooks, 1, MAX_CODEBOOKS, "num_codebooks")
        in_range(self.codebook_bits, 1, 16, "codebook_bits")
        if self.group_size is not None:
            in_range(self.group_size, 1, MAX_GROUP_SIZE, "group_size")
        one_of(self.scale, ("none", "row", "group"), "scale")
        in_range(self.rounds, 1, None, "rounds")
        in_range(self.beam_width, 1, MAX_BEAM_WIDTH, "beam_width")
        in_range(self.search_steps, 0, None, "search_steps")
        one_of(self.codebook_dtype, CODEBOOK_DTYPES, "codebook_dtype")

    @property
    def num_entries(self) -> int:
        """K, entries of a codebook."""
        return 1 << self.codebook_bits


def learn(
    search: Search,
    codebooks: Floats,
    scale: Floats,
    config: AdditiveConfig,
    progress: Progress,
    refit: Callable[..., Floats] = refit,
) -> tuple[NDArray[np.float16], Words, Floats]:
    """Alternate from given codebooks; return them as they are stored, and codes and scales chosen for exactly these."""
    problem, codes = search.problem, search.no_codes()
    for done in range(config.rounds):
        search.improve(codes, codebooks, scale, fresh=done == 0 or (search.feeds_back and done < config.rounds // 2))
        codebooks = refit(problem, codes, codebooks, search.spread(scale), CONJUGATE_STEPS)
        scale = refit_scale(problem, codes, codebooks, scale, config.scale)
        progress(done + 1, config.rounds + 1)
    stored = as_stored(codebooks, config.codebook_dtype)
    scale = stored_scale(scale)
    search.improve(codes, stored.astype(np.float32), scale)
    progress(config.rounds + 1, config.rounds + 1)
    return stored, codes, scale


def choose_codes(
    problem: Problem,
    codebooks: Floats,
    scale: Floats,
    kind: Scale,
    config: AdditiveConfig,
    search: Search | None = None,
) -> tuple[Words, Floats]:
    """Return codes (n, G, M) for given codebooks (M, K, g), and the scales refitted to them as they are stored."""
    search = search or Search(problem, len(codebooks), codebooks.shape[1], config.beam_width)
    codes = search.no_codes()
    search.improve(codes, codebooks, scale, fresh=True)
    # One exact move for each group leaves nothing to improve.
    exact = kind == "none" and not search.feeds_back and len(search.visit.moves) == 1
    for _ in range(0 if exact else config.search_steps):
        scale = stored_scale(refit_scale(problem, codes, codebooks, scale, kind))
        search.improve(codes, codebooks, scale)
    return codes, scale


@io.register("additive")
class AdditiveQuantizer(Quantizer):
    """Sums of M codebook entries for every group of g entries of a row, under any metric.

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^_j = s * sum_m C_m[a_jm] for group j, codebooks shared by
    all rows and groups. Alternates between codes (error feedback first, then local search in which two codebooks of a
    group are chosen jointly and exactly) and least-squares codebooks.

    Parameters
    ----------
    num_codebooks : int
        M, 1 to 64.
    codebook_bits : int
        Bits of a code, 1 to 16; K = 2 ** codebook_bits entries in a codebook.
    group_size : int or None
        g; the last group of a row is padded where g does not divide d. None: the whole row is one group.
    scale : "none", "row" or "group"
        What has a factor s of its own.
    rounds : int
        Alternations of codes and codebooks in a fit.
    beam_width : int
        Of the beam that proposes codes where there are more than two codebooks, 1 to 256.
    search_steps : int
        How often codes are improved after they were first chosen for given codebooks: by sweeps over the groups of a
        row; where a row is one group of more than two codebooks, by moves of pairs, first as they are and then with
        some codes shifted. 0 is fastest: with one group, the beam alone.
    codebook_dtype : "float16" or "int8"
        How codebooks are stored. In 8 bits, with one step per codebook, they take half the space at nearly the same
        error, which pays on small matrices.

    Attributes
    ----------
    codebooks : array of shape (M, K, g), float16
        In units of `gain`, as they decode.
    gain : float
        A power of two that keeps codebooks and scales in the range of float16.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    A round costs O(n d K^2 / g) for M = 2 and O(n d^2) for a Gram, both linear in rows; memory is a few copies of x,
    32 MiB of tables, and for the least squares under a metric other than the identity up to 128 MiB per codebook of
    16 bits. Same seed, same result at every thread count, SIMD level and batch split.

    Whole vectors (`group_size` None, 16 entries or more, more than two codebooks, no scale, no metric) have a way of
    their own, see `mcq.vectors`: two starts are compared on held-out rows, and all searches run on tables that all rows
    share. A round then costs O(n M (d K + K^2)), or O(n M K (d + M)) with more than 512 entries, which are chosen one
    at a time. Memory of a fit beyond x is 4 M (M - 1) K^2 bytes of tables, at most 768 MiB, and 32 MiB.

    An encode takes up 32 MiB of rows at a time, unless a Gram couples the groups: beside `x` and the codes it needs the
    tables and some 200 MiB, for any number of rows.

    References
    ----------
    Babenko and Lempitsky, Additive Quantization, CVPR 2014. Egiazarian et al., AQLM, ICML 2024.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> q = AdditiveQuantizer(num_codebooks=2, codebook_bits=4, group_size=8)
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, q.bits(codes).payload
    ((64, 32), 1.0)
    """

    kind = "additive"
    config_type = AdditiveConfig
    config: AdditiveConfig

    def __init__(
        self,
        num_codebooks: int = 2,
        codebook_bits: int = 8,
        group_size: int | None = 8,
        scale: Scale = "none",
        rounds: int = 8,
        beam_width: int = 16,
        search_steps: int = 3,
        codebook_dtype: CodebookDtype = "float16",
    ) -> None:
        options = (num_codebooks, codebook_bits, group_size, scale, rounds, beam_width, search_steps, codebook_dtype)
        super().__init__(AdditiveConfig(*options))

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn codebooks from `x` and return its codes.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
            H over the d columns; the identity if left out.
        seed : int
        progress : callable, optional
            Called as ``progress(done, total)`` after each round.

        Returns
        -------
        Codes

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        problem = Problem.arrange(x, metric, self.config.group_size)
        rng = np.random.default_rng(in_range(seed, 0, None, "seed"))
        scale = start_scale(problem, self.config.scale)
        codebooks, codes, scale = self._learn(problem, scale, rng, progress or ignore_progress)
        gain = np.array([problem.gain], np.float32)
        self.arrays = stored_codebooks(codebooks, self.config.codebook_dtype) | {"gain": gain}
        return self._pack(problem, codes, scale, np.shape(x)[1])

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
        """Return the codes of `x` for the learned codebooks; rows do not influence each other.

        Parameters
        ----------
        x : array-like of shape (n, d)
            Any number of columns; they need not be those of the fit.
        metric : Metric, optional
            H over the d columns; the identity if left out.

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        self._require_fitted()
        codebooks, parts, choose = self.codebooks.astype(np.float32), [], None
        for problem in self._parts(x, metric):
            choose = choose or self._chooser(problem, codebooks)
            parts.append(self._pack(problem, *choose(problem), np.shape(x)[1]))
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
        self._check_codes(codes)
        return self._decode(codes.unpack(), codes)

    def _learn(
        self, problem: Problem, scale: Floats, rng: np.random.Generator, progress: Progress
    ) -> tuple[NDArray[np.float16], Words, Floats]:
        """Return codebooks as they are stored, and codes and scales chosen for exactly these."""
        config = self.config
        if self._is_of_vectors(problem):
            return *self._learn_vectors(problem, rng, progress), scale
        codebooks = start_codebooks(problem, scale, config.num_codebooks, config.num_entries, rng)
        search = Search(problem, config.num_codebooks, config.num_entries, config.beam_width)
        return learn(search, codebooks, scale, config, progress)

    def _learn_vectors(
        self, problem: Problem, rng: np.random.Generator, progress: Progress
    ) -> tuple[NDArray[np.float16], Words]:
        """Return codebooks of whole vectors as they are stored, and codes chosen for exactly these."""
        config, metric = self.config, problem.metric
        rounds = config.rounds
        total = rounds * (2 if isinstance(metric, ScoreAware) else 1) + 1
        sizes, plain = (config.num_codebooks, config.num_entries), replace(problem, metric=Identity())
        codebooks, codes = vectors.learn(plain, *sizes, rounds, rng, lambda done, _: progress(done, total))
        if isinstance(metric, ScoreAware):
            start = codebooks, codes
            codebooks, codes = score_aware.learn(
                problem, metric.eta, *start, rounds, rng, lambda done, _: progress(rounds + done, total)
            )
        stored = as_stored(codebooks, config.codebook_dtype)
        tables, steps = self._tables(problem, stored.astype(np.float32))
        codes = tables.choose(problem.x, config.beam_width, steps, codes)
        progress(total, total)
        return stored, codes[:, None]

    def _parts(self, x: ArrayLike, metric: Metric | None) -> Iterator[Problem]:
        """Yield the problems of an encode, of some rows each."""
        return Problem.parts(x, metric, self._group_size, self.gain)

    def _chooser(self, problem: Problem, codebooks: Floats) -> Chooser:
        """Return what chooses codes, and scales as they are stored, for problems like this one, whatever their rows."""
        config = self.config
        if self._is_of_vectors(problem):
            tables, steps = self._tables(problem, codebooks)
            return lambda part: (
                tables.choose(part.x, config.beam_width, steps)[:, None],
                start_scale(part, config.scale),
            )
        return lambda part: choose_codes(part, codebooks, start_scale(part, config.scale), config.scale, config)

    def _is_of_vectors(self, problem: Problem) -> bool:
        """Return whether all rows share one set of tables, which are worth having and not too large."""
        config = self.config
        fits = config.num_codebooks > 2 and tables_fit(config.num_codebooks, config.num_entries)
        return fits and self._is_plain(problem, (Identity, ScoreAware))

    def _is_plain(self, problem: Problem, metrics: tuple[type[Metric], ...] = (Identity,)) -> bool:
        """Return whether rows are whole vectors, not short, without scales, under one of the `metrics`."""
        whole = problem.num_groups == 1 and problem.group_size >= LEAST_VECTOR
        return whole and isinstance(problem.metric, metrics) and self.config.scale == "none"

    def _tables(self, problem: Problem, codebooks: Floats) -> tuple[TableSearch, list[Step]]:
        """Return a search and its steps, which are part of the quantizer and do not depend on the seed of a fit."""
        config, metric, rng = self.config, problem.metric, np.random.default_rng(0)
        sizes = config.num_codebooks, config.num_entries, config.search_steps
        if isinstance(metric, ScoreAware):
            return ScoreSearch(codebooks, metric.eta), plan(*sizes, rng, alone=True)
        return TableSearch(codebooks), plan(*sizes, rng)

    @property
    def _group_size(self) -> int:
        return self.arrays["codebooks"].shape[2]

    def _pack(self, problem: Problem, codes: Words, scale: Floats, d: int) -> Codes:
        scales = None
        if self.config.scale != "none":
            scales = (problem.restore(scale) if self.config.scale == "group" else scale).astype(np.float16)
        return Codes.pack(problem.restore(codes), codebook_bits=self.config.codebook_bits, d=d, scales=scales)

    def _decode(self, codes_nGM: Words, codes: Codes) -> Floats:  # noqa: N803
        return self._rebuild(codes_nGM, self.codebooks[: codes_nGM.shape[2]].astype(np.float32), codes)

    def _rebuild(self, codes_nGM: Words, codebooks: Floats, codes: Codes) -> Floats:  # noqa: N803
        """Return what unpacked codes and given codebooks decode to, with the scales and the width of `codes`."""
        n, groups, _ = codes_nGM.shape
        scale = np.ones((n, 1), np.float32) if codes.scales is None else codes.scales.astype(np.float32)
        scale = scale * np.float32(self.gain)
        x_hat = cpu.decode(np.ascontiguousarray(codes_nGM), codebooks, np.broadcast_to(scale, (n, groups)))
        return np.ascontiguousarray(x_hat[:, : codes.shape[1]])

    def _check_codes(self, codes: Codes) -> None:
        config, d = self.config, codes.shape[1]
        columns = {"none": 0, "row": 1, "group": codes.num_groups}[config.scale]
        want = (config.num_codebooks, config.codebook_bits, -(-d // self._group_size), columns)
        found_columns = 0 if codes.scales is None else codes.scales.shape[1]
        found = (codes.num_codebooks, codes.codebook_bits, codes.num_groups, found_columns)
        require_no_outliers(codes)
        if want != found:
            raise InputError(
                "the codes must come from a quantizer with the same options: (codebooks, bits, groups, scale columns) "
                f"must be {want}, got {found}"
            )

    def _check_arrays(self) -> None:
        config = self.config
        shape = (config.num_codebooks, config.num_entries, config.group_size)
        require_array(self.arrays, "codebooks", np.dtype(config.codebook_dtype).type, shape)
        if config.codebook_dtype == "int8":
            require_array(self.arrays, "codebook_steps", np.float32, shape[:1])
        require_array(self.arrays, "gain", np.float32, (1,))
