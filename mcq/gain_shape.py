"""Gain-shape quantization: each group is a gain from a small table times a point of an implicit codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincinv

from mcq.codes import Codes
from mcq.encoders.lattice_search import LatticeSearch
from mcq.errors import ConfigError, InputError
from mcq.lattices import MAX_GROUP_SIZE, Lattice, counts_up_to
from mcq.metric import Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array
from mcq.scales import reciprocal, rescaled_rows, start_scale, stored_scale, to_float16
from mcq.validate import in_range, one_of
from mcq_ext import cpu

Floats = NDArray[np.float32]
Points = NDArray[np.int16]
Words = NDArray[np.uint64]
Gains = NDArray[np.uint8]

MAX_GAIN_BITS = 8
MAX_GROUPS_PER_WORD = 64
WORD_BITS = 64
#: Groups from which a fit takes its first gains, searches for their points, and steps of Lloyd over gains alone.
START_GROUPS = 1 << 16
START_ROUNDS = 3
LLOYD_STEPS = 300
#: Groups of the sample that compares settings of one rate, the lowest rate, and what a float may lack of a whole bit.
SAMPLE_GROUPS = 2048
LEAST_RATE = 0.01
ROUNDING = 1e-9
#: Weight of the old gain table in a refit, as a fraction of the mean diagonal of the normal matrix.
RIDGE = 1e-6


@dataclass(frozen=True)
class GainShapeConfig:
    """Options that pyramid and shell quantizers share; see these."""

    group_size: int = 16
    gain_bits: int = 1
    scale: Literal["none", "row"] = "none"
    gains: Literal["lloyd", "theory"] = "lloyd"
    groups_per_word: int = 1
    rounds: int = 8
    search_steps: int = 2
    version: int = 1

    budget_name: ClassVar[str]
    lattice_type: ClassVar[type[Lattice]]

    def __post_init__(self) -> None:
        in_range(self.group_size, 1, MAX_GROUP_SIZE, "group_size")
        in_range(self.budget, 1, self.lattice_type.max_budget, self.budget_name)
        in_range(self.gain_bits, 0, MAX_GAIN_BITS, "gain_bits")
        one_of(self.scale, ("none", "row"), "scale")
        one_of(self.gains, ("lloyd", "theory"), "gains")
        in_range(self.groups_per_word, 1, MAX_GROUPS_PER_WORD, "groups_per_word")
        in_range(self.rounds, 1, None, "rounds")
        in_range(self.search_steps, 0, None, "search_steps")
        self._require_points_that_fit()

    @property
    def budget(self) -> int:
        """What a point of the lattice spends: its pulses or its squared norm."""
        return int(getattr(self, self.budget_name))

    @property
    def num_gains(self) -> int:
        """S, entries of the gain table."""
        return 1 << self.gain_bits

    def _require_points_that_fit(self) -> None:
        counts = counts_up_to(self.group_size, self.budget, self.lattice_type.squared)
        good = [
            b
            for b, count in enumerate(counts)
            if b > 0 and 0 < (count << self.gain_bits) ** self.groups_per_word <= 1 << WORD_BITS
        ]
        if self.budget in good:
            return
        name, largest = self.budget_name, max(good, default=0)
        if counts[self.budget] == 0:
            raise ConfigError(
                f"{name} must be that of an integer vector of {self.group_size} entries, but {self.budget} is not; "
                f"the next lower one is {largest}"
            )
        raise ConfigError(
            f"{name} must be at most {largest} for group_size={self.group_size}, gain_bits={self.gain_bits} and "
            f"groups_per_word={self.groups_per_word}, so that a word fits in {WORD_BITS} bits, got {self.budget}"
        )


class GainShapeQuantizer(Quantizer):
    """Base of the quantizers whose groups are a gain times a lattice point.

    Attributes
    ----------
    lattice : Lattice
        The codebook of shapes, which is not stored.
    """

    config_type: ClassVar[type[GainShapeConfig]]
    config: GainShapeConfig

    @property
    def lattice(self) -> Lattice:
        """The points that shapes are taken from."""
        return self.config.lattice_type.of(self.config.group_size, self.config.budget)

    @property
    def gain_table(self) -> NDArray[np.float16]:
        """Gains (S,), in units of `gain`."""
        self._require_fitted()
        return self.arrays["gain_table"]

    @property
    def word_bits(self) -> int:
        """Bits of a stored word, which holds `groups_per_word` groups."""
        return (self._radix**self.config.groups_per_word - 1).bit_length()

    @property
    def rate(self) -> float:
        """Bits per entry of the codes."""
        return self.word_bits / (self.config.groups_per_word * self.config.group_size)

    @classmethod
    def of_rate(cls, bits: float, group_size: int = 16, scale: Literal["none", "row"] = "none") -> Self:
        """Return the quantizer of least error on normal entries that takes at most `bits` per entry.

        Parameters
        ----------
        bits : float
            Upper limit of `rate`; fractions are fine, groups then share words.
        group_size : int
            N; 64 / N is the highest rate.
        scale : "none" or "row"
            Scales are not counted in `bits`.

        Raises
        ------
        ConfigError
            If no codes of this group size are so short, or `bits` is above 64 / N.

        Notes
        -----
        For each number of gain bits, until more do not help, the lattice of most points that fits is tried on a small
        sample of normal entries, the same on every call. Takes a second or so.
        """
        in_range(group_size, 1, MAX_GROUP_SIZE, "group_size")
        in_range(bits, LEAST_RATE, WORD_BITS / group_size, "bits")
        x = np.random.default_rng(0).standard_normal((SAMPLE_GROUPS, group_size), np.float32)
        best, least, worse = None, math.inf, 0
        for gain_bits in range(MAX_GAIN_BITS + 1):
            budget, per_word = _largest_that_fits(cls.config_type.lattice_type, bits, group_size, gain_bits)
            if budget == 0 or worse == 2:
                break
            shape: dict[str, Any] = {"group_size": group_size, cls.config_type.budget_name: budget}
            shape |= {"gain_bits": gain_bits, "groups_per_word": per_word}
            trial = cls(**shape | {"rounds": 1})
            loss = float(np.square(x - trial.decode(trial.fit_encode(x))).sum(dtype=np.float64))
            worse = 0 if loss < least else worse + 1
            if loss < least:
                best, least = cls(**shape | {"scale": scale}), loss
        if best is None:
            raise ConfigError(
                f"bits must allow at least one code for group_size={group_size}, got {bits}; raise bits or group_size"
            )
        return best

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn the gain table from `x` and return its codes.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
            H over the d columns; the identity if left out.
        seed : int
            Nothing here is random: every seed gives the same result.
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
        config, progress = self.config, progress or ignore_progress
        in_range(seed, 0, None, "seed")
        problem = Problem.arrange(x, metric, config.group_size)
        scale = start_scale(problem, config.scale)
        search = LatticeSearch(problem, self.lattice)
        table = self._start_table(problem, scale)
        for done in range(config.rounds):
            search.improve(table, scale, fresh=done == 0)
            table = self._refit_table(search, table, scale)
            scale = self._refit_scale(search, table, scale)
            progress(done + 1, config.rounds + 1)
        stored = to_float16(table)
        self.arrays = {"gain_table": stored, "gain": np.array([problem.gain], np.float32)}
        scale = stored_scale(scale)
        search.improve(stored.astype(np.float32), scale)
        progress(config.rounds + 1, config.rounds + 1)
        return self._pack(search, scale, np.shape(x)[1])

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> Codes:
        """Return the codes of `x` for the learned gain table; rows do not influence each other.

        Parameters
        ----------
        x : array-like of shape (n, d)
            Any number of columns; they need not be those of the fit.
        metric : Metric, optional
            H over the d columns; the identity if left out.

        Raises
        ------
        NotFittedError
            If there is no gain table yet.
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        self._require_fitted()
        table, parts = self.gain_table.astype(np.float32), []
        for problem in Problem.parts(x, metric, self.config.group_size, self.gain):
            scale, search = start_scale(problem, self.config.scale), LatticeSearch(problem, self.lattice)
            search.improve(table, scale, fresh=True)
            for _ in range(self.config.search_steps if problem.metric.couples else 0):
                scale = stored_scale(self._refit_scale(search, table, scale))
                search.improve(table, scale)
            scale = stored_scale(self._refit_scale(search, table, scale))
            parts.append(self._pack(search, scale, np.shape(x)[1]))
        return Codes.concatenate(parts)

    def decode(self, codes: Codes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If there is no gain table yet.
        InputError
            If the codes were made with other options.
        """
        self._require_fitted()
        self._check_codes(codes)
        n, d = codes.shape
        points, gains = self._split_words(codes.unpack()[:, :, 0].astype(np.uint64), -(-d // self.config.group_size))
        factor = (self.gain_table.astype(np.float32) * np.float32(self.gain))[gains]
        if codes.scales is not None:
            factor *= codes.scales.astype(np.float32)
        x_hat = np.multiply(points, factor[:, :, None], dtype=np.float32).reshape(n, points.shape[1] * points.shape[2])
        return np.ascontiguousarray(x_hat[:, :d])

    def _start_table(self, problem: Problem, scale: Floats) -> Floats:
        """Return gains that suit the groups, each with the point that is nearest to it by angle, or nearly so."""
        size, count, lattice = problem.group_size, self.config.num_gains, self.lattice
        if self.config.gains == "theory":
            return _norm_quantiles(count, size) / np.float32(lattice.typical_size * math.sqrt(size))
        step = -(-problem.x.size // (size * START_GROUPS))
        inverse = np.repeat(reciprocal(scale[:, 0]), problem.num_groups)
        x = problem.x.reshape(-1, size)[::step] * inverse[::step, None]
        wanted = np.sqrt(np.mean(np.square(x), axis=1)) / np.float32(lattice.typical_size)
        for _ in range(START_ROUNDS):
            inverse = reciprocal(wanted)
            points, _ = lattice.nearest(x, inverse, np.ones(1, np.float32))
            square = np.square(points, dtype=np.float32).sum(1)
            wanted = np.maximum(np.einsum("ng,ng->n", x, points, dtype=np.float32) / square, 0)
        return _lloyd_max(wanted, square, count)

    def _refit_table(self, search: LatticeSearch, table: Floats, scale: Floats) -> Floats:
        """Return the gains of least distortion for the points chosen: a linear least-squares problem."""
        normal, right = _normal_equations(search, len(table), scale)
        if self.config.gains == "theory":
            curvature = table @ normal @ table
            return (table * (table @ right / curvature)).astype(np.float32) if curvature > 0 else table
        error = right - normal @ table.astype(np.float64)
        normal[np.diag_indices(len(table))] += RIDGE * (np.trace(normal) / len(table) or 1.0)
        return np.maximum(table + cpu.cholesky_solve(cpu.cholesky(normal), error[:, None])[:, 0], 0).astype(np.float32)

    def _refit_scale(self, search: LatticeSearch, table: Floats, scale: Floats) -> Floats:
        return (
            scale if self.config.scale == "none" else rescaled_rows(search.problem, search.decode(table, scale), scale)
        )

    @property
    def _radix(self) -> int:
        """How many codes a group has: a gain times V plus the number of the point."""
        return self.config.num_gains * self.lattice.count

    def _pack(self, search: LatticeSearch, scale: Floats, d: int) -> Codes:
        problem, size = search.problem, self.config.group_size
        ranks = self.lattice.rank(search.points.reshape(-1, size)).reshape(search.gains.shape)
        codes = problem.restore(search.gains * np.uint64(self.lattice.count) + ranks)
        scales = None if self.config.scale == "none" else scale.astype(np.float16)
        return Codes.pack(self._join_words(codes)[:, :, None], codebook_bits=self.word_bits, d=d, scales=scales)

    def _join_words(self, codes: Words) -> Words:
        """Return words (n, W) of `groups_per_word` codes each, the first one least significant, zeros at the end."""
        per_word = self.config.groups_per_word
        if per_word == 1:
            return codes
        n, groups = codes.shape
        padded = np.zeros((n, -(-groups // per_word) * per_word), np.uint64)
        padded[:, :groups] = codes
        digits = padded.reshape(n, -1, per_word)
        words = digits[:, :, -1]
        for i in reversed(range(per_word - 1)):
            words = words * np.uint64(self._radix) + digits[:, :, i]
        return words

    def _split_words(self, words: Words, groups: int) -> tuple[Points, Gains]:
        """Return points (n, G, N) and gains (n, G), the inverse of `_join_words` and of ranking."""
        per_word, n = self.config.groups_per_word, len(words)
        if int(words.max(initial=0)) >= self._radix**per_word:
            raise InputError(f"words must be below {self._radix**per_word}, got {words.max()}; the codes were altered")
        codes = words
        if per_word > 1:
            digits = np.empty((*words.shape, per_word), np.uint64)
            for i in range(per_word):
                words, digits[:, :, i] = np.divmod(words, np.uint64(self._radix))
            codes = digits.reshape(n, -1)[:, :groups]
        gains, ranks = np.divmod(codes, np.uint64(self.lattice.count))
        points = self.lattice.unrank(np.ascontiguousarray(ranks).ravel())
        return points.reshape(n, groups, self.config.group_size), gains.astype(np.uint8)

    def _check_codes(self, codes: Codes) -> None:
        config, d = self.config, codes.shape[1]
        groups = -(-d // config.group_size)
        want = (1, self.word_bits, -(-groups // config.groups_per_word), 0 if config.scale == "none" else 1)
        columns = 0 if codes.scales is None else codes.scales.shape[1]
        found = (codes.num_codebooks, codes.codebook_bits, codes.num_groups, columns)
        if want != found:
            raise InputError(
                "the codes must come from a quantizer with the same options: (codes a word, bits, words, scale "
                f"columns) must be {want}, got {found}"
            )

    def _check_arrays(self) -> None:
        require_array(self.arrays, "gain_table", np.float16, (self.config.num_gains,))
        require_array(self.arrays, "gain", np.float32, (1,))


def _largest_that_fits(lattice: type[Lattice], bits: float, group_size: int, gain_bits: int) -> tuple[int, int]:
    """Return the budget with most points that takes at most so many bits per entry, and the groups that share a word.

    The budget is zero if there is none.
    """
    top = 16
    while top < lattice.max_budget and counts_up_to(group_size, top, lattice.squared)[top] < 2 ** (bits * group_size):
        top = min(2 * top, lattice.max_budget)
    counts = counts_up_to(group_size, top, lattice.squared)
    most, best = 0, (0, 1)
    for per_word in range(1, min(MAX_GROUPS_PER_WORD, int(WORD_BITS / (bits * group_size))) + 1):
        word_bits = int(bits * group_size * per_word + ROUNDING)
        for budget in range(1, top + 1):
            if most < counts[budget] and (counts[budget] << gain_bits) ** per_word <= 1 << word_bits:
                most, best = counts[budget], (budget, per_word)
    return best


def _norm_quantiles(count: int, size: int) -> Floats:
    """Return the middles of equally likely parts of the norm of a normal vector of `size` entries."""
    return np.sqrt(2 * gammaincinv(size / 2, (np.arange(count) + 0.5) / count)).astype(np.float32)


def _lloyd_max(values: Floats, weights: Floats, count: int) -> Floats:
    """Return the levels of least weighted squared error, by Lloyd's iteration from quantiles."""
    order = np.argsort(values, kind="stable")
    values, mass = values[order].astype(np.float64), np.cumsum(np.append(0.0, weights[order]))
    moment = np.cumsum(np.append(0.0, weights[order] * values))
    levels = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(LLOYD_STEPS):
        edges = np.concatenate([[0], np.searchsorted(values, (levels[1:] + levels[:-1]) / 2), [len(values)]])
        inside = mass[edges[1:]] - mass[edges[:-1]]
        np.divide(moment[edges[1:]] - moment[edges[:-1]], inside, out=levels, where=inside > 0)
    return levels.astype(np.float32)


def _normal_equations(search: LatticeSearch, num_gains: int, scale: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return A (S, S) and b (S,) with distortion s^T A s - 2 b^T s + constant for gains s, in float64."""
    problem, which = search.problem, search.gains.ravel()
    shape = (*search.gains.shape, problem.group_size)
    unit = search.decode(np.ones(num_gains, np.float32), scale)

    def sums(a: Floats, b: Floats) -> NDArray[np.float64]:
        products = np.einsum("njg,njg->nj", a.reshape(shape), b.reshape(shape))
        return np.bincount(which, weights=products.ravel(), minlength=num_gains).astype(np.float64)

    if not problem.metric.couples:
        weighted = problem.metric.apply(unit)
        return np.diag(sums(weighted, unit)), sums(weighted, problem.x)
    normal = np.empty((num_gains, num_gains))
    for s in range(num_gains):
        own = unit.reshape(shape) * (search.gains == s)[:, :, None]
        normal[s] = sums(problem.metric.apply(own.reshape(unit.shape)), unit)
    return normal, sums(problem.metric.apply(problem.x), unit)
