"""Local search for whole vectors, on tables that all rows share.

Where a row is one group under the identity, the pair tables are the same for every row and for the whole search, so
codes are improved by exact moves of two codebooks without touching a vector (`mcq_ext.cpu.table_moves`). To leave a
local minimum, some codes are shifted, moves follow, and whatever became cheaper stays (iterated local search, Martinez
et al., LSQ, ECCV 2016). Moves and shifts are the same for all rows, so that codes do not depend on the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Bytes that the pair tables may take, those of four codebooks of 12 bits, and those of the unary tables of a batch.
MAX_PAIR_BYTES = 3 << 28
UNARY_BYTES = 1 << 25
#: Codebooks that are shifted at once.
SHIFTED = 2
#: Entries up to which codebooks are chosen in pairs: K^2 sums, which beyond cost far more than they gain.
MAX_PAIRED = 512
NO_MOVES = np.empty((0, 2), np.uint8)


class Step(NamedTuple):
    """A part of a search.

    Attributes
    ----------
    shift : array of shape (M,), uint16
        Added to the codes, modulo K, before the moves; the result stays where it costs less than what was there.
    moves : array of shape (num_moves, 2), uint8
        Codebooks that are chosen jointly, in this order; equal numbers mean that codebook alone.
    """

    shift: Words
    moves: NDArray[np.uint8]


def tables_fit(num_codebooks: int, num_entries: int) -> bool:
    """Return whether the pair tables of so many codebooks are small enough to be built."""
    return num_codebooks * (num_codebooks - 1) * 4 * num_entries**2 <= MAX_PAIR_BYTES


def plan(num_codebooks: int, num_entries: int, count: int, rng: np.random.Generator, alone: bool = False) -> list[Step]:
    """Return so many steps; the first one shifts nothing.

    Each moves 2 (M - 1) random pairs, so that a codebook takes part in about four moves; codebooks of more than
    `MAX_PAIRED` entries, or all if `alone`, are chosen one at a time, each about twice.
    """
    if num_entries <= MAX_PAIRED and not alone:
        moves = [(a, b) for b in range(num_codebooks) for a in range(b)]
    else:
        moves = [(m, m) for m in range(num_codebooks)] * 2
    possible, steps = np.array(moves, np.uint8).reshape(-1, 2), []
    for i in range(count):
        shift = np.zeros(num_codebooks, np.uint16)
        if i > 0:
            chosen = rng.permutation(num_codebooks)[:SHIFTED]
            shift[chosen] = rng.integers(1, num_entries, len(chosen))
        steps.append(Step(shift, rng.permutation(possible)[: 2 * (num_codebooks - 1)]))
    return steps


class TableSearch:
    """The tables of some codebooks, and searches on them.

    Parameters
    ----------
    codebooks : array of shape (M, K, d)
    moves : bool
        Whether there will be any steps after the beam; without, tables take half the memory.

    Notes
    -----
    Memory is 4 M (M - 1) K^2 bytes of pair tables and `UNARY_BYTES`, whatever the number of rows.
    """

    def __init__(self, codebooks: Floats, moves: bool = True) -> None:
        self.codebooks = codebooks
        self._unary, self._pair = cpu.shared_tables(codebooks, transposed=moves)
        self._rows = max(1, UNARY_BYTES // (4 * self._unary.shape[1]))

    def choose(self, x: Floats, beam_width: int, steps: list[Step], known: Words | None = None) -> Words:
        """Return codes (n, M) for rows (n, d): those of a beam, or those `known` if they cost less, after `steps`."""
        codes = np.empty((len(x), len(self.codebooks)), np.uint16)
        for start in range(0, len(x), self._rows):
            part = slice(start, start + self._rows)
            tables = self._tables(x[part])
            codes[part], _ = cpu.table_beam(tables[0], self._pair, beam_width)
            cost = self._cost(tables, codes[part])
            if known is not None:
                _take_cheaper(codes[part], cost, known[part], self._cost(tables, known[part]))
            self._walk(tables, codes[part], cost, steps)
        return codes

    def loss(self, x: Floats, beam_width: int, steps: list[Step]) -> float:
        """Return the mean squared error per row of what `choose` chooses."""
        codes = np.ascontiguousarray(self.choose(x, beam_width, steps)[:, None])
        error = x - cpu.decode(codes, self.codebooks, np.ones((len(x), 1), np.float32))
        return float(np.square(error, dtype=np.float64).sum() / max(1, len(x)))

    def improve(self, x: Floats, codes: Words, steps: list[Step]) -> None:
        """Improve codes (n, M) by `steps`, in place; their cost never rises."""
        for start in range(0, len(x), self._rows):
            part = slice(start, start + self._rows)
            tables = self._tables(x[part])
            self._walk(tables, codes[part], self._cost(tables, codes[part]), steps)

    def _walk(self, tables: tuple[Floats, ...], codes: Words, cost: Floats, steps: list[Step]) -> None:
        for step in steps:
            trial = ((codes.astype(np.uint32) + step.shift) % self._pair.shape[2]).astype(np.uint16)
            trial_cost = self._move(tables, step.moves, trial)
            _take_cheaper(codes, cost, trial, trial_cost)

    def _cost(self, tables: tuple[Floats, ...], codes: Words) -> Floats:
        return self._move(tables, NO_MOVES, np.ascontiguousarray(codes))

    def _move(self, tables: tuple[Floats, ...], moves: NDArray[np.uint8], codes: Words) -> Floats:
        """Move codes, in place, and return their costs; `tables` are those of the rows."""
        return cpu.table_moves(tables[0], self._pair, moves, codes)

    def _tables(self, x: Floats) -> tuple[Floats, ...]:
        """Return what a search needs to know of rows: the unary table first."""
        table = np.empty((len(x), self._unary.shape[1]), np.float32)
        table[:] = self._unary[-1]
        cpu.matmul(x, self._unary[:-1], out=table, accumulate=True)
        return (table.reshape(len(x), len(self.codebooks), -1),)


class ScoreSearch(TableSearch):
    """The same where the squared error along each row counts `eta` times (`mcq.score_aware`).

    The beam knows nothing of it; moves, of one codebook at a time, are exact.

    Parameters
    ----------
    codebooks : array of shape (M, K, d)
    eta : float
    """

    def __init__(self, codebooks: Floats, eta: float) -> None:
        super().__init__(codebooks)
        self._extra = eta - 1

    def _move(self, tables: tuple[Floats, ...], moves: NDArray[np.uint8], codes: Words) -> Floats:
        unary, along, length = tables
        return cpu.score_moves(unary, along, length, self._extra, self._pair, moves, codes)

    def _tables(self, x: Floats) -> tuple[Floats, ...]:
        (unary,) = super()._tables(x)
        length = np.sqrt(np.einsum("nd,nd->n", x, x))
        # c . x from |c|^2 - 2 c . x; padding becomes zero
        along = self._unary[-1].reshape(unary.shape[1:]) - unary
        along *= np.divide(0.5, length, out=np.zeros_like(length), where=length > 0)[:, None, None]
        return unary, along, length


def _take_cheaper(codes: Words, cost: Floats, others: Words, costs: Floats) -> None:
    """Replace codes, in place, by others where these cost less."""
    better = costs < cost
    codes[better], cost[better] = others[better], costs[better]
