"""Scalar codes of 0 to 8 bits, as many for each group as its size and weight deserve (CVXQ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.encoders.columns import BLOCK, Feedback
from mcq.errors import InputError
from mcq.levels import GRIDS, MAX_DEPTH, Groups, allocate_depths
from mcq.metric import Identity, Metric
from mcq.problem import require_size, typical_size
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array
from mcq.scalar_codes import LAYOUTS, ScalarCodes, require_scalar
from mcq.scales import to_float16
from mcq.validate import as_matrix, in_range, one_of
from mcq_ext import cpu

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Grid = Literal["companded", "lloyd", "uniform", "best"]

MAX_CLUSTERS = 255
#: How often scales and offsets are fitted anew to the entries as error feedback leaves them.
REFITS = 2
#: Bits that store depth and grid of a group.
FORM_BITS = 5
LEAST_POWER = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class CompandedConfig:
    """Options of `CompandedQuantizer`."""

    bits: float = 3.0
    group_size: int = 512
    grid: Grid = "best"
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.bits, 0.0, None, "bits")
        in_range(self.group_size, 1, None, "group_size")
        one_of(self.grid, (*GRIDS, "best"), "grid")


@io.register("companded")
class CompandedQuantizer(Quantizer):
    """Scalar codes whose depth, 0 to 8 bits, is chosen for every group of a few hundred rows and one column (CVXQ).

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^ = offset + scale * level, at a given number of bits all-in.
    Rows are sorted by their size and cut into clusters; a group is one column of a cluster and has depth, grid, scale
    and offset of its own. Depths minimise what a Gaussian of the size and weight of each group would lose. Under a
    metric that couples columns, these are rounded one after another with error feedback, the heaviest first.

    Parameters
    ----------
    bits : float
        Bits per entry, all-in, that a fit does not exceed.
    group_size : int
        Least number of rows of a cluster, unless there are fewer rows or more than 255 clusters. Each group costs 37
        bits beside its codes.
    grid : "companded", "lloyd", "uniform" or "best"
        Levels: those of a Laplace compander, optimal ones for a Gaussian, equal steps, or for each group the ones with
        the least error, scale and offset fitted.

    Attributes
    ----------
    depths : array of shape (clusters, d), uint8
    gain : float
        A power of two that keeps scales and offsets in the range of float16.

    Raises
    ------
    ConfigError
        If an option is out of range.
    InputError
        From fit, if the bits do not even suffice for the groups.

    Notes
    -----
    Rows that are encoded later get the cluster that their size puts them in. A fit costs about 40 roundings of each
    entry, and O(n d^2 + d^3) for a metric that couples columns; memory is a few copies of x.

    References
    ----------
    Young, Foundations of large language model compression, part 1: weight quantization, 2024. Young, Radio:
    rate-distortion optimization for large language model compression, ICML 2025.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((512, 64)) * np.exp(rng.standard_normal(64))
    >>> q = CompandedQuantizer(bits=3.0)
    >>> codes = q.fit_encode(x)
    >>> 2.87 < q.bits(codes).all_in <= 3.0, int(q.depths.min()), int(q.depths.max())
    (True, 0, 7)
    """

    kind = "companded"
    config_type = CompandedConfig
    codes_type = ScalarCodes
    config: CompandedConfig

    def __init__(self, bits: float = 3.0, group_size: int = 512, grid: Grid = "best") -> None:
        super().__init__(CompandedConfig(bits, group_size, grid))

    @property
    def depths(self) -> Bytes:
        """Bits of a code in each group (clusters, d)."""
        return self._groups.depths

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> ScalarCodes:
        """Choose clusters, depths, grids, scales and offsets for `x` and return its codes; nothing is random.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
            H over the d columns; the identity if left out.
        seed : int
            Changes nothing.
        progress : callable, optional
            Called as ``progress(done, total)``.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, the metric weighs another number of columns, or `bits` do not suffice
            for depths, scales and offsets of the groups.
        """
        in_range(seed, 0, None, "seed")
        report = progress or ignore_progress
        matrix = as_matrix(x)
        turns = _Turns(metric or Identity(), matrix.shape[1])
        gain = typical_size(matrix)
        rows = matrix / np.float32(gain)
        power = _log_power(rows)
        thresholds = _cut(power, self._clusters(len(rows)))
        clusters = np.searchsorted(thresholds, power, side="right")
        members = [np.flatnonzero(clusters == c) for c in range(len(thresholds) + 1)]
        parts = [rows[m] for m in members]
        allowed = GRIDS if self.config.grid == "best" else (self.config.grid,)
        groups = Groups.fit(parts, self._allocate(parts, turns.weights), allowed)
        report(1, REFITS + 2)
        for done in range(REFITS):
            if turns.couples:
                _, targets = turns.run(rows, clusters, groups)
                groups = groups.refit([targets[m] for m in members])
            report(done + 2, REFITS + 2)
        self.arrays = _to_arrays(groups) | {"thresholds": thresholds, "gain": np.array([gain], np.float32)}
        codes = self._encode(rows, turns)
        report(REFITS + 2, REFITS + 2)
        return codes

    def encode(self, x: ArrayLike, metric: Metric | None = None) -> ScalarCodes:
        """Return the codes of `x`, as wide as that of the fit; rows do not influence each other.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If `x` is not a finite real matrix of that width, or the metric weighs another number of columns.
        """
        self._require_fitted()
        matrix = as_matrix(x)
        require_size(matrix, self.gain)
        self._check_width(matrix.shape[1])
        return self._encode(matrix / np.float32(self.gain), _Turns(metric or Identity(), matrix.shape[1]))

    def decode(self, codes: ScalarCodes) -> Floats:
        """Return the reconstruction (n, d) of `codes`, float32.

        Raises
        ------
        NotFittedError
            If neither fit nor fit_encode was called.
        InputError
            If the codes were made by another fit.
        """
        self._require_fitted()
        require_scalar(codes)
        self._check_width(codes.shape[1])
        groups = self._groups
        want = tuple(int(bits) for bits in groups.depths.sum(1, dtype=np.int64))
        if codes.row_bits != want or set(codes.side) - {LAYOUTS}:
            raise InputError(
                "the codes must come from a quantizer with the same options and fit: bits of the rows of each cluster "
                f"must be {want} without arrays beside them, got {codes.row_bits} and {sorted(codes.side)}"
            )
        words, clusters = codes.unpack(groups.depths), codes.side.get(LAYOUTS, np.zeros(len(codes), np.uint8))
        rows = np.zeros(codes.shape, np.float32)
        for cluster, columns, grid, depth in groups.alike():
            place = np.ix_(clusters == cluster, columns)
            rows[place] = groups.rebuild(words[place], cluster, columns, grid, depth)
        return rows * np.float32(self.gain)

    @property
    def _groups(self) -> Groups:
        self._require_fitted()
        scales, offsets = (self.arrays[name].astype(np.float32) for name in ("scales", "offsets"))
        forms = cpu.unpack_bits(self.arrays["forms"], FORM_BITS, scales.shape[1])
        depths, grids = np.divmod(forms, len(GRIDS))
        return Groups(grids.astype(np.uint8), depths.astype(np.uint8), scales, offsets)

    def _allocate(self, parts: list[Floats], weights: Floats) -> Bytes:
        """Return depths (clusters, d) of all groups."""
        d, counts = len(weights), np.array([len(part) for part in parts])
        entries = int(counts.sum()) * d
        side = _side_bytes(len(parts), int(counts.sum()), d)

        def cost(depths: NDArray[np.int64]) -> float:
            return 8 * float(side + counts @ -(-depths.sum(1) // 8)) / entries

        variance = [np.var(part, axis=0, dtype=np.float64) for part in parts]
        depths = allocate_depths(weights * np.stack(variance), cost, self.config.bits)
        if depths is None:
            least = cost(np.zeros((len(parts), d), np.int64))
            raise InputError(
                f"bits must exceed {least:.2f}, which the groups of this matrix take without any codes, got "
                f"{self.config.bits}; give more bits or a larger group_size"
            )
        return depths.astype(np.uint8)

    def least_bits(self, n: int, d: int) -> float:
        """Return the bits per entry that the groups of a matrix (n, d) take at most, without any codes."""
        return 8 * _side_bytes(self._clusters(n), n, d) / (n * d)

    def _clusters(self, n: int) -> int:
        return min(max(n // self.config.group_size, 1), MAX_CLUSTERS)

    def _encode(self, rows: Floats, turns: _Turns) -> ScalarCodes:
        groups, thresholds = self._groups, self.arrays["thresholds"]
        clusters = np.searchsorted(thresholds, _log_power(rows), side="right")
        codes, _ = turns.run(rows, clusters, groups)
        side = {LAYOUTS: clusters.astype(np.uint8)} if len(thresholds) else {}
        return ScalarCodes.pack(codes, groups.depths, side)

    def _check_width(self, d: int) -> None:
        width = self.arrays["scales"].shape[1]
        if d != width:
            raise InputError(f"rows must be as wide as those of the fit, {width} columns, got {d}")

    def _check_arrays(self) -> None:
        require_array(self.arrays, "gain", np.float32, (1,))
        require_array(self.arrays, "thresholds", np.float32, (None,))
        require_array(self.arrays, "scales", np.float16, (len(self.arrays["thresholds"]) + 1, None))
        clusters, d = self.arrays["scales"].shape
        require_array(self.arrays, "offsets", np.float16, (clusters, d))
        require_array(self.arrays, "forms", np.uint8, (clusters, -(-FORM_BITS * d // 8)))
        if self._groups.depths.max() > MAX_DEPTH:
            raise InputError(f"depths must be at most {MAX_DEPTH}, got {self._groups.depths.max()}")


class _Turns:
    """The order in which columns are coded under a metric: all at once, or one after another, the heaviest first.

    Attributes
    ----------
    weights : array of shape (d,)
        What a squared error of each column costs.
    couples : bool
    """

    def __init__(self, metric: Metric, d: int) -> None:
        metric.check_width(d)
        metric = metric.for_search()
        self.order = np.argsort(-metric.diagonal(d), kind="stable")
        self.feedback = Feedback(metric.arranged(self.order, d), d)
        self.couples = self.feedback.mixing is not None
        self.weights = np.empty(d, np.float32)
        self.weights[self.order] = self.feedback.weights

    def run(self, rows: Floats, clusters: NDArray[np.intp], groups: Groups) -> tuple[Bytes, Floats]:
        """Return the codes of `rows` (n, d), and the entries that were rounded to them."""
        members = [np.flatnonzero(clusters == c) for c in range(len(groups.depths))]
        if not self.couples:
            codes = np.zeros(rows.shape, np.uint8)
            for cluster, columns, grid, depth in groups.alike():
                place = np.ix_(members[cluster], columns)
                codes[place] = groups.round(rows[place], cluster, columns, grid, depth)
            return codes, rows
        codes_dn, targets_dn = np.zeros(rows.T.shape, np.uint8), np.zeros(rows.T.shape, np.float32)
        forms: list[list[Any]] = [[] for _ in self.order]
        for cluster, columns, grid, depth in groups.alike():
            for column in columns:
                forms[column].append((cluster, columns, grid, depth))

        def choose(turn: int, target: Floats) -> Floats:
            column = self.order[turn]
            targets_dn[column] = target
            rebuilt = np.empty_like(target)
            for cluster, _, grid, depth in forms[column]:
                m = members[cluster]
                codes = groups.round(target[m], cluster, column, grid, depth)
                codes_dn[column, m], rebuilt[m] = codes, groups.rebuild(codes, cluster, column, grid, depth)
            return rebuilt

        ordered = np.ascontiguousarray(rows[:, self.order].T)
        self.feedback.run(ordered, BLOCK, lambda group, targets: None, choose)
        return np.ascontiguousarray(codes_dn.T), np.ascontiguousarray(targets_dn.T)


def _log_power(rows: Floats) -> Floats:
    """Return the logarithm of the mean square of each row, float32."""
    power = np.mean(np.square(rows, dtype=np.float64), axis=1)
    return np.log2(np.maximum(power, LEAST_POWER)).astype(np.float32)


def _side_bytes(clusters: int, n: int, d: int) -> int:
    """Return the bytes of forms, scales and offsets, of what clusters and rows have besides, and of their numbers."""
    return clusters * (-(-FORM_BITS * d // 8) + 4 * d + 4) + (n if clusters > 1 else 0)


def _cut(values: Floats, parts: int) -> Floats:
    """Return thresholds that cut the values in about equal parts, none of them empty."""
    ordered = np.sort(values)
    thresholds = np.unique(ordered[[len(values) * part // parts for part in range(1, parts)]])
    return thresholds[thresholds > ordered[0]]


def _to_arrays(groups: Groups) -> dict[str, NDArray[Any]]:
    forms = groups.grids.astype(np.uint16) + np.uint16(len(GRIDS)) * groups.depths
    return {
        "forms": cpu.pack_bits(forms, FORM_BITS),
        "scales": to_float16(groups.scales),
        "offsets": to_float16(groups.offsets),
    }
