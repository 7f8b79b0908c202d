"""Trellis codes: every entry of a row is decoded from a window of the row's bits, so that neighbours share them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from mcq import io
from mcq.codes import Codes
from mcq.encoders.feedback import damped
from mcq.errors import InputError
from mcq.metric import Metric
from mcq.problem import Problem
from mcq.quantizer import Progress, Quantizer, ignore_progress, require_array
from mcq.scales import reciprocal, rescaled_rows, start_scale, stored_scale
from mcq.validate import in_range, one_of
from mcq_ext import cpu, cpu_trellis

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Offsets = NDArray[np.uint32]

MIN_STATE_BITS, MAX_STATE_BITS = 9, 16
MAX_BITS = 5
MAX_BEAM_WIDTH = 4096
#: Levels are quantiles of a normal distribution, 2**12 at most, rounded to so many parts of one.
LEVEL_BITS, LEVEL_PARTS = 12, 4096
GOLDEN_SECTION = (3 - math.sqrt(5)) / 2
#: What a fit tries as size of the values, relative to that of the data, then next to the best, and on how many entries.
SPREADS = 0.8 * 1.1 ** np.arange(8)
NEAR_SPREADS = 1.1 ** np.array([-0.5, 0.5])
SAMPLE_ENTRIES = 1 << 14


@dataclass(frozen=True)
class TrellisConfig:
    """Options of `TrellisQuantizer`."""

    bits: float = 2.0
    state_bits: int = 12
    scale: Literal["none", "row"] = "none"
    beam_width: int = 256
    version: int = 1

    def __post_init__(self) -> None:
        in_range(self.bits, 1.0, MAX_BITS, "bits")
        in_range(self.state_bits, MIN_STATE_BITS, MAX_STATE_BITS, "state_bits")
        one_of(self.scale, ("none", "row"), "scale")
        in_range(self.beam_width, 1, MAX_BEAM_WIDTH, "beam_width")


@io.register("trellis")
class TrellisQuantizer(Quantizer):
    """Rows as strings of bits whose overlapping windows of L bits are the entries; nothing is learned but a size.

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^_j = s * spread * v(b_j), where b_j are the L bits of the
    row from bit floor(j * bits) on, zeros past its end, and v their value (see `state_values`). Every bit takes part
    in L / bits entries: as in a very long vector code, errors come near the limit of all codes, but with a search and a
    decoder of scalar ones. Made for normal entries, such as weights after a rotation.

    Parameters
    ----------
    bits : float
        Bits per entry, 1 to 5, fractions included.
    state_bits : int
        L, 9 to 16. The error falls with L; the time of a search doubles with every bit of it, unless a Gram couples
        columns.
    scale : "none" or "row"
        Whether rows have a factor s of their own.
    beam_width : int
        Under a metric that couples columns, paths that a search keeps, 1 to 4096. More of them lower the error and take
        as much longer.

    Attributes
    ----------
    spread : float
        The size of the values, in units of `gain` or of a row's scale: what a fit learns.

    Raises
    ------
    ConfigError
        If an option is out of range.

    Notes
    -----
    Codes are exactly the best ones where the metric couples no columns (Viterbi), in O(n d 2**L) and, for each thread,
    d 2**(L - bits) bytes. Where it does, a beam of paths finds them, each path with its own error feedback, in
    O(n d (beam_width 2**bits + d) + d^3). Decoding is a shift and a look-up for an entry, in any order. The last
    entries of a row have few bits to share: at 2 bits, rows of 128 entries have an error 8 per cent above that of long
    ones, of 576 two. Same data, same result at every thread count, SIMD level and batch split.

    References
    ----------
    Marcellin and Fischer, Trellis coded quantization, IEEE Trans. Communications 1990. Eriksson, Novak and Anderson,
    Linear congruential trellis source codes, IEEE Trans. Communications 2007, for the values. Tseng et al., QTIP,
    NeurIPS 2024, for bitshift trellises in language models. Anderson and Mohan, Sequential coding algorithms, IEEE
    Trans. Communications 1984, for the beam.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((16, 1024))
    >>> q = TrellisQuantizer(bits=2, state_bits=10)
    >>> codes = q.fit_encode(x)
    >>> q.bits(codes).payload, bool(np.square(x - q.decode(codes)).mean() < 0.078)
    (2.0, True)
    """

    kind = "trellis"
    config_type = TrellisConfig
    config: TrellisConfig

    def __init__(
        self,
        bits: float = 2.0,
        state_bits: int = 12,
        scale: Literal["none", "row"] = "none",
        beam_width: int = 256,
    ) -> None:
        super().__init__(TrellisConfig(bits, state_bits, scale, beam_width))

    @property
    def spread(self) -> float:
        """The size of the values."""
        self._require_fitted()
        return float(self.arrays["spread"][0])

    def fit_encode(
        self, x: ArrayLike, metric: Metric | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Codes:
        """Learn the size of the values from some rows of `x` and return the codes of all of them.

        Parameters
        ----------
        x : array-like of shape (n, d)
        metric : Metric, optional
            H over the d columns; the identity if left out.
        seed : int
            Nothing here is random: every seed gives the same result.
        progress : callable, optional
            Called as ``progress(done, total)`` after each trial and at the end.

        Raises
        ------
        InputError
            If `x` is not a finite real matrix, or the metric weighs another number of columns.
        """
        in_range(seed, 0, None, "seed")
        progress = progress or ignore_progress
        problem = Problem.arrange(x, metric, None)
        search = _Search(problem.metric, self.config, problem.x.shape[1])
        rows = max(1, SAMPLE_ENTRIES // problem.x.shape[1])
        sample = replace(problem, x=np.ascontiguousarray(problem.x[:: -(-len(problem.x) // rows)]))
        size = 1.0 if self.config.scale == "row" else float(np.sqrt(np.mean(np.square(sample.x, dtype=np.float64))))
        best, done, total = (math.inf, size), 0, len(SPREADS) + len(NEAR_SPREADS) + 1
        for factors in (SPREADS, NEAR_SPREADS):
            for spread in best[1] * factors:
                packed, scale = search.run(sample, float(spread))
                x_hat = search.decode(packed, scale * np.float32(spread))
                best, done = min(best, (sample.metric.distortion(sample.x, x_hat), float(spread))), done + 1
                progress(done, total)
        self.arrays = {"spread": np.array([best[1]], np.float32), "gain": np.array([problem.gain], np.float32)}
        codes = self._pack(*search.run(problem, self.spread), search)
        progress(total, total)
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
        parts = []
        for problem in Problem.parts(x, metric, None, self.gain):
            search = _Search(problem.metric, self.config, problem.x.shape[1])
            parts.append(self._pack(*search.run(problem, self.spread), search))
        return Codes.concatenate(parts)

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
        n, d = codes.shape
        offset = window_offsets(d, self.config.bits)
        want = (1, 1, int(offset[-1]), 0 if self.config.scale == "none" else 1)
        columns = 0 if codes.scales is None else codes.scales.shape[1]
        found = (codes.num_codebooks, codes.codebook_bits, codes.num_groups, columns)
        if want != found:
            raise InputError(
                "the codes must come from a quantizer with the same options: (codes a bit, bits a code, bits a row, "
                f"scale columns) must be {want}, got {found}"
            )
        scale = np.full(n, self.spread * self.gain, np.float32)
        if codes.scales is not None:
            scale *= codes.scales[:, 0].astype(np.float32)
        return cpu_trellis.trellis_decode(codes.packed, offset, state_values(self.config.state_bits), scale)

    def _pack(self, packed: Bytes, scale: Floats, search: _Search) -> Codes:
        scales = None if self.config.scale == "none" else scale.astype(np.float16)
        bits = int(search.offset[-1])
        return Codes(packed, (len(packed), len(search.offset) - 1), bits, 1, 1, scales)

    def _check_arrays(self) -> None:
        require_array(self.arrays, "spread", np.float32, (1,))
        require_array(self.arrays, "gain", np.float32, (1,))


class _Search:
    """Finds the codes of rows under one metric."""

    def __init__(self, metric: Metric, config: TrellisConfig, d: int) -> None:
        self.config, self.offset, self.value = config, window_offsets(d, config.bits), state_values(config.state_bits)
        self.feedback: Floats | None = None
        self.weight: Floats = np.ascontiguousarray(metric.diagonal(d))
        if metric.couples:
            lower = cpu.cholesky(damped(metric, d)).T
            pivots = np.diagonal(lower)
            self.feedback = (lower / pivots).astype(np.float32)
            self.weight = (pivots**2).astype(np.float32)

    def run(self, problem: Problem, spread: float) -> tuple[Bytes, Floats]:
        """Return the codes (n, bytes) of the rows and their scales (n, 1), the best ones for these codes."""
        scale = start_scale(problem, self.config.scale)
        size = (scale * np.float32(spread))[:, 0]
        inverse = reciprocal(size)
        if self.feedback is None:
            packed = cpu_trellis.trellis_search(problem.x, inverse, self.offset, self.value, self.weight)
        else:
            width = self.config.beam_width
            packed = cpu_trellis.trellis_beam(
                problem.x, inverse, self.offset, self.value, self.weight, self.feedback, width
            )
        if self.config.scale == "row":
            scale = stored_scale(rescaled_rows(problem, self.decode(packed, size[:, None]), scale))
        return packed, scale

    def decode(self, packed: Bytes, size: Floats) -> Floats:
        """Return the rows (n, d) of these codes for values of size (n, 1)."""
        return cpu_trellis.trellis_decode(packed, self.offset, self.value, np.ascontiguousarray(size[:, 0]))


def window_offsets(d: int, bits: float) -> Offsets:
    """Return where the windows of d entries begin, floor(j * bits), and how many bits a row has (d + 1,).

    Examples
    --------
    >>> window_offsets(4, 2.5).tolist()
    [0, 2, 5, 7, 10]
    """
    return np.floor(np.arange(d + 1) * bits).astype(np.uint32)


@functools.cache
def state_values(state_bits: int) -> Floats:
    """Return the values (2**L,) of all states, normal with variance 1.

    With a the odd number nearest below (or at) the golden section of 2**L, state b has the quantile number
    (a b + (2**L - 1 - a) / 2) mod 2**L of 2**L: as b counts up, these fill the normal distribution evenly, however few
    of them there are. States that share a past differ in their last bits only, and so have values far apart.

    Examples
    --------
    >>> state_values(9)[:4].astype(float).round(2).tolist()
    [-0.5, 0.5, -1.47, -0.12]
    """
    count = 1 << state_bits
    step = int(count * GOLDEN_SECTION) // 2 * 2 + 1
    number = (np.arange(count) * step + (count - 1 - step) // 2) % count
    bits = min(state_bits, LEVEL_BITS)
    levels = np.round(LEVEL_PARTS * ndtri((np.arange(1 << bits) + 0.5) / (1 << bits))) / LEVEL_PARTS
    values = levels[number >> (state_bits - bits)].astype(np.float32)
    values.flags.writeable = False
    return values
