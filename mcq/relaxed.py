"""Additive codes with more codebooks where it matters: codebook c serves only the columns that need it most.

Columns are put in order before they are cut into groups, so that codebook c serves the first n_c groups. A null entry,
zero and never chosen by a search, completes the codes of the other groups to M. So decoding, least squares and scales
work on plain arrays (n, G, M), and only the search must know how many codebooks a group has: it visits runs of groups
that have equally many.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.additive import AdditiveConfig, AdditiveQuantizer, Chooser, choose_codes, learn
from mcq.codebooks import refit, scaled_groups
from mcq.codes import Codes
from mcq.encoders.local_search import Search, Visit, sweep, sweep_range
from mcq.errors import ConfigError, InputError
from mcq.kmeans import KMEANS_ITERATIONS, kmeans, nearest
from mcq.metric import Identity, Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, ignore_progress, require_array, require_no_outliers
from mcq.scales import Scale, start_scale
from mcq.storage import CodebookDtype, stored_codebooks
from mcq.validate import as_real_matrix, in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: The null entry needs a code of its own in 16 bits.
MAX_CODEBOOK_BITS = 15


@dataclass(frozen=True)
class RelaxedConfig(AdditiveConfig):
    """Options of `RelaxedQuantizer`."""

    extents: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self.codebook_bits, 1, MAX_CODEBOOK_BITS, "codebook_bits")
        if self.scale == "group":
            raise ConfigError("scale must be 'none' or 'row' where codebooks are relaxed, got 'group'")
        extents = tuple(in_range(extent, 0.0, 1.0, "extents") for extent in self.extents)
        falls = all(a >= b for a, b in zip(extents, extents[1:], strict=False))
        if len(extents) != self.num_codebooks or extents[0] != 1 or extents[-1] == 0 or not falls:
            raise ConfigError(
                "extents must be one share of the groups for each of the num_codebooks codebooks, from 1 on not rising "
                f"and above 0, got {extents} for {self.num_codebooks}"
            )
        object.__setattr__(self, "extents", extents)

    def counts(self, num_groups: int) -> list[int]:
        """Return how many of the groups each codebook serves, one at least."""
        return [max(1, round(extent * num_groups)) for extent in self.extents]


@io.register("relaxed")
class RelaxedQuantizer(AdditiveQuantizer):
    """Additive codes whose later codebooks serve only the groups of columns that matter most.

    Minimises the objective of `AdditiveQuantizer` with x^_j = s * sum over c with j < n_c of C_c[a_jc], where groups
    are cut from the columns by falling depth, and n_c = max(1, round(extents[c] * G)). The depth of a column is the
    number of its codebooks: codebook c takes the n_c * g columns i in which H_ii times the squared error that is left
    by one codebook, summed over rows, is largest. With all extents 1 this is additive quantization.

    Parameters
    ----------
    num_codebooks, codebook_bits, group_size, rounds, beam_width, search_steps, codebook_dtype
        As in `AdditiveQuantizer`; at most 15 bits.
    scale : "none" or "row"
    extents : sequence of M floats, optional
        Share of the columns that each codebook serves: 1 for the first, none larger than the one before. All 1 if left
        out. Codes take about sum(extents) * codebook_bits / group_size bits per entry.

    Attributes
    ----------
    column_depths : array of shape (d,), uint8
        How many codebooks serve each column, 1 to M. Columns of equal depth keep their order in the groups.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    Its `Codes` have one code in each of sum(n_c) groups: those of the first codebook for all groups, then those of the
    second one for the groups that it serves, and so on. Rows must be as wide as those of the fit.

    References
    ----------
    Xu et al., CRVQ: Channel-relaxed vector quantization for extreme compression of LLMs, TACL 2025.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)
    >>> q = RelaxedQuantizer(num_codebooks=2, codebook_bits=4, group_size=8, extents=(1, 0.1))
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, round(q.bits(codes).payload, 3)
    ((64, 80), 0.55)
    """

    kind = "relaxed"
    config_type = RelaxedConfig
    config: RelaxedConfig

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
        extents: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            num_codebooks, codebook_bits, group_size, scale, rounds, beam_width, search_steps, codebook_dtype
        )
        shares = (1.0,) * self.config.num_codebooks if extents is None else tuple(extents)
        self.config = RelaxedConfig(**dataclasses.asdict(self.config), extents=shares)

    @property
    def column_depths(self) -> NDArray[np.uint8]:
        """How many codebooks serve each column (d,), 1 to M."""
        self._require_fitted()
        return self.arrays["column_depths"]

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn codebooks and depths of columns from `x` (n, d) and return its codes.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        plain = Problem.arrange(x, metric, self.config.group_size)
        rng = np.random.default_rng(in_range(seed, 0, None, "seed"))
        d = np.shape(x)[1]
        depths = self._depths(plain, d, rng)
        problem = self._by_depth(Problem.arrange(x, metric, self.config.group_size, columns=_deepest_first(depths)))
        scale = start_scale(problem, self.config.scale)
        codebooks, codes, scale = self._learn(problem, scale, rng, progress or ignore_progress)
        gain = np.array([problem.gain], np.float32)
        self.arrays = stored_codebooks(codebooks, self.config.codebook_dtype) | {"gain": gain, "column_depths": depths}
        return self._pack(problem, codes, scale, d)

    def _depths(self, problem: Problem, d: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return for each of d columns how many codebooks it gets, by what one codebook leaves of it."""
        scale = start_scale(problem, self.config.scale)
        points, weight = scaled_groups(problem, scale)
        flat = points.reshape(-1, problem.group_size)
        centres = kmeans(flat, weight.ravel(), self.config.num_entries, KMEANS_ITERATIONS, rng)
        left = (flat - centres[nearest(flat, centres)]).reshape(points.shape) * scale[:, :, None]
        energy = np.square(left, dtype=np.float64).sum(0).ravel() * problem.metric.diagonal(problem.x.shape[1])
        order = np.argsort(-problem.restore(energy.reshape(1, problem.num_groups, -1)).ravel()[:d], kind="stable")
        depths = np.zeros(d, np.uint8)
        for count in self.config.counts(problem.num_groups):
            depths[order[: count * problem.group_size]] += 1
        return depths

    def _by_depth(self, problem: Problem) -> Problem:
        """Return the problem with groups of more codebooks first: a run of groups is searched at a time."""
        ends = self.config.counts(problem.num_groups)
        depth = (problem.group_order[:, None] < ends).sum(1)
        return problem.in_order(problem.group_order[np.argsort(-depth, kind="stable")])

    def _learn(
        self, problem: Problem, scale: Floats, rng: np.random.Generator, progress: Progress
    ) -> tuple[NDArray[np.float16], Words, Floats]:
        config = self.config
        search = _Search(problem, config)
        start = _start_codebooks(problem, scale, search.counts, config.num_entries, rng)
        stored, codes, scale = learn(
            search, _with_null(start), scale, config, progress, functools.partial(refit, null=True)
        )
        return np.ascontiguousarray(stored[:, :-1]), codes, scale

    def _parts(self, x: ArrayLike, metric: Metric | None) -> Iterator[Problem]:
        rows, depths = as_real_matrix(x), self.column_depths
        if rows.shape[1] != len(depths):
            raise InputError(f"rows must be as wide as those of the fit, {len(depths)} columns, got {rows.shape[1]}")
        parts = Problem.parts(rows, metric, self._group_size, self.gain, _deepest_first(depths))
        return (self._by_depth(part) for part in parts)

    def _chooser(self, problem: Problem, codebooks: Floats) -> Chooser:
        config, entries = self.config, _with_null(codebooks)

        def choose(part: Problem) -> tuple[Words, Floats]:
            scale = start_scale(part, config.scale)
            return choose_codes(part, entries, scale, config.scale, config, _Search(part, config))

        return choose

    def _pack(self, problem: Problem, codes: Words, scale: Floats, d: int) -> Codes:
        codes = problem.restore(codes)
        counts = self.config.counts(problem.num_groups)
        words = np.concatenate([codes[:, :count, c] for c, count in enumerate(counts)], axis=1)
        scales = scale.astype(np.float16) if self.config.scale == "row" else None
        return Codes.pack(words[:, :, None], codebook_bits=self.config.codebook_bits, d=d, scales=scales)

    def _decode(self, codes_nGM: Words, codes: Codes) -> Floats:  # noqa: N803
        counts = self._counts
        words = np.full((len(codes), counts[0], len(counts)), self.config.num_entries, np.uint16)
        for c, part in enumerate(np.split(codes_nGM[:, :, 0], np.cumsum(counts)[:-1], axis=1)):
            words[:, : counts[c], c] = part
        x_hat = np.empty(codes.shape, np.float32)
        x_hat[:, _deepest_first(self.column_depths)] = self._rebuild(
            words, _with_null(self.codebooks.astype(np.float32)), codes
        )
        return x_hat

    @property
    def _counts(self) -> list[int]:
        return self.config.counts(-(-len(self.column_depths) // self._group_size))

    def _check_codes(self, codes: Codes) -> None:
        want = (sum(self._counts), 1, self.config.codebook_bits, len(self.column_depths), self.config.scale == "row")
        found = (codes.num_groups, codes.num_codebooks, codes.codebook_bits, codes.shape[1], codes.scales is not None)
        require_no_outliers(codes)
        if want != found:
            raise InputError(
                "the codes must come from a quantizer with the same options: (codes of a row, codebooks of a code, "
                f"bits, columns, scales) must be {want}, got {found}"
            )

    def _check_arrays(self) -> None:
        super()._check_arrays()
        require_array(self.arrays, "column_depths", np.uint8, (None,))
        depths, d = self.column_depths, len(self.column_depths)
        served = [int((depths > c).sum()) for c in range(self.config.num_codebooks)]
        wanted = [min(d, count * self._group_size) for count in self._counts]
        if served != wanted:
            raise InputError(f"array 'column_depths' must give the codebooks {wanted} columns, got {served}")


class _Run(NamedTuple):
    """Groups one after another that have equally many codebooks, and how they are visited."""

    groups: slice
    num_codebooks: int
    visit: Visit


class _Search(Search):
    """A search in which every group chooses from its own codebooks only; the last entry of each is the null entry."""

    def __init__(self, problem: Problem, config: RelaxedConfig) -> None:
        super().__init__(problem, config.num_codebooks, config.num_entries, config.beam_width)
        self.null = config.num_entries
        self.counts = config.counts(problem.num_groups)
        ends = [*self.counts, 0]
        self.runs = [
            _Run(slice(ends[c], ends[c - 1]), c, Visit.of(c, config.num_entries, config.beam_width))
            for c in range(config.num_codebooks, 0, -1)
            if ends[c] < ends[c - 1]
        ]

    def no_codes(self) -> Words:
        codes = super().no_codes()
        for c, count in enumerate(self.counts):
            codes[:, count:, c] = self.null
        return codes

    def improve(self, codes: Words, codebooks: Floats, scale: Floats, fresh: bool = False) -> None:
        problem, scale, g = self.problem, self.spread(scale), self.problem.group_size
        weighting = self._start if fresh else problem.metric
        error = problem.x - cpu.decode(codes, codebooks, scale)
        for groups, size, visit in self.runs:
            own, entries = np.ascontiguousarray(codes[:, groups, :size]), np.ascontiguousarray(codebooks[:size, :-1])
            if isinstance(weighting, Identity):
                x = np.ascontiguousarray(problem.x[:, groups.start * g : groups.stop * g])
                sweep(x, own, entries, scale[:, groups], weighting, visit, fresh)
            else:
                sweep_range(error, own, entries, scale[:, groups], weighting, visit, fresh, groups.start)
            codes[:, groups, :size] = own


def _deepest_first(depths: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the columns in the order in which they are cut into groups."""
    return np.argsort(-depths.astype(np.intp), kind="stable")


def _with_null(codebooks: Floats) -> Floats:
    """Return codebooks (M, K + 1, g) with the null entry at the end of each."""
    return np.pad(codebooks, ((0, 0), (0, 1), (0, 0)))


def _start_codebooks(
    problem: Problem, scale: Floats, counts: list[int], num_entries: int, rng: np.random.Generator
) -> Floats:
    """Return codebooks (M, K, g), each the k-means centres of what those before it leave of the groups it serves."""
    left, weight = scaled_groups(problem, scale)
    codebooks = []
    for count in counts:
        points = np.ascontiguousarray(left[:, :count]).reshape(-1, problem.group_size)
        centres = kmeans(points, weight[:, :count].ravel(), num_entries, KMEANS_ITERATIONS, rng)
        left[:, :count] -= centres[nearest(points, centres)].reshape(len(left), count, -1)
        codebooks.append(centres)
    return np.stack(codebooks)
