"""Local search: the groups of a row one after another, each optimal given all others.

Within a group the codebooks are chosen in pairs, jointly and exactly; where a pair table would be too large, one at a
time. The distortion never rises. The same sweep under the triangular metric of `feedback` is error feedback.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mcq.encoders.feedback import Triangular
from mcq.energy import has_pair_tables
from mcq.metric import Identity
from mcq.problem import Problem
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Moves = NDArray[np.uint8]

#: Groups between two refreshes of the gradient, and the bytes that their pair tables may take.
BLOCK_GROUPS = 8
BLOCK_BYTES = 1 << 25


class Weighting(Protocol):
    """What a sweep needs of a metric; H need not be symmetric."""

    def apply(self, x: Floats, columns: slice) -> Floats:
        """Return ``x @ H[:, columns]``."""

    def block(self, columns: slice) -> Floats:
        """Return ``H[columns, columns]``."""


class Visit(NamedTuple):
    """What is done when a sweep comes to a group.

    Attributes
    ----------
    moves : array of shape (num_moves, 2)
        Codebooks that are chosen jointly, in this order; a pair of equal numbers means that codebook alone.
    beam_width : int
        Width of a beam over all codebooks that proposes codes before the moves; 0 for none.
    starts : bool
        Propose codes without pair tables: the best few entries of the first codebook, each continued greedily.
    """

    moves: Moves
    beam_width: int = 0
    starts: bool = False

    @classmethod
    def of(cls, num_codebooks: int, num_entries: int, beam_width: int) -> Visit:
        """Choose for so many codebooks of so many entries; the beam is for more than two codebooks.

        One pair is searched exactly. More codebooks get a proposal first, since pairs alone stop in local minima, and
        then disjoint pairs followed by the others: all of them for up to four codebooks, a ring of neighbours beyond.
        Codebooks too large for pair tables are chosen one at a time.
        """
        if num_codebooks == 1 or not has_pair_tables(num_codebooks, num_entries):
            alone = np.repeat(np.arange(num_codebooks, dtype=np.uint8), 2).reshape(-1, 2)
            return cls(alone, starts=num_codebooks > 1)
        pairs = [(m, min(m + 1, num_codebooks - 1)) for m in range(0, num_codebooks, 2)]
        others = list(itertools.combinations(range(num_codebooks), 2))
        if num_codebooks > 4:
            others = [(m, m + 1) for m in range(1, num_codebooks - 1, 2)] + [(0, num_codebooks - 1)]
        pairs += [pair for pair in others if pair not in pairs]
        return cls(np.array(pairs, np.uint8), beam_width=beam_width if num_codebooks > 2 else 0)


def sweep(
    x: Floats,
    codes: Words,
    codebooks: Floats,
    scale: Floats,
    metric: Weighting,
    visit: Visit,
    fresh: bool = False,
) -> None:
    """Choose the codes of every group once, in ascending order of groups; `codes` changes in place.

    Parameters
    ----------
    x : array of shape (n, G * g)
    codes : array of shape (n, G, M)
    codebooks : array of shape (M, K, g)
    scale : array of shape (n, G), may be broadcast
    metric : Weighting
    visit : Visit
    fresh : bool
        Choose from nothing instead of improving on `codes`.

    Notes
    -----
    Costs O(n G K^2) for each joint move and O(n d^2) for the metric; memory O(n d) and `BLOCK_BYTES` for pair tables.
    """
    g = codebooks.shape[2]
    # Groups are strangers under the identity: each is treated as a row of its own, under one set of tables.
    if isinstance(metric, Identity):
        n, groups, _ = codes.shape
        x, codes = x.reshape(-1, g), codes.reshape(n * groups, 1, -1)
        scale = np.ascontiguousarray(np.broadcast_to(scale, (n, groups))).reshape(-1, 1)
    sweep_range(x - cpu.decode(codes, codebooks, scale), codes, codebooks, scale, metric, visit, fresh)


def sweep_range(
    error: Floats,
    codes: Words,
    codebooks: Floats,
    scale: Floats,
    metric: Weighting,
    visit: Visit,
    fresh: bool,
    start: int = 0,
) -> None:
    """Choose the codes of the groups from `start` on, as many as `codes` has; `error` (n, d) follows, in place."""
    num_codebooks, k, g = codebooks.shape
    tables = num_codebooks * (num_codebooks - 1) // 2 if has_pair_tables(num_codebooks, k) else 0
    step = int(np.clip(BLOCK_BYTES // max(1, tables * 4 * k * k), 1, BLOCK_GROUPS))
    for j in range(0, codes.shape[1], step):
        part = slice(j, min(j + step, codes.shape[1]))
        columns = slice((start + part.start) * g, (start + part.stop) * g)
        block_error = np.ascontiguousarray(error[:, columns])
        gradient = np.ascontiguousarray(metric.apply(error, columns))
        own = metric.block(columns)
        cpu.sweep(block_error, gradient, codes[:, part], scale[:, part], codebooks, own, visit.moves, fresh, *visit[1:])
        error[:, columns] = block_error


class Search:
    """Error feedback and local search over the codes of one problem, with all that can be prepared once.

    Parameters
    ----------
    problem : Problem
    num_codebooks, num_entries, beam_width : int
    """

    def __init__(self, problem: Problem, num_codebooks: int, num_entries: int, beam_width: int) -> None:
        self.problem = problem
        self.num_codebooks = num_codebooks
        self.visit = Visit.of(num_codebooks, num_entries, beam_width)
        self.feeds_back = problem.metric.couples and problem.num_groups > 1
        self._start: Weighting = problem.metric
        if self.feeds_back:
            self._start = Triangular(problem.metric, problem.x.shape[1], problem.group_size)

    def no_codes(self) -> Words:
        """Return codes (n, G, M) for a fresh start to fill."""
        return np.zeros((len(self.problem.x), self.problem.num_groups, self.num_codebooks), np.uint16)

    def spread(self, scale: Floats) -> Floats:
        """Return `scale` (n, 1) or (n, G) as (n, G)."""
        return np.broadcast_to(scale, (len(self.problem.x), self.problem.num_groups))

    def improve(self, codes: Words, codebooks: Floats, scale: Floats, fresh: bool = False) -> None:
        """Visit every group once; `codes` changes in place. A fresh start feeds errors forward."""
        weighting = self._start if fresh else self.problem.metric
        sweep(self.problem.x, codes, codebooks, self.spread(scale), weighting, self.visit, fresh)
