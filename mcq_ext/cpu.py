"""The kernels on the CPU: allocate outputs, pad tables, split rows over threads, call C.

Every function has a twin of the same name and signature in `mcq_ext.reference`. Inputs are trusted: C-contiguous,
float32 (codes uint16), codes within range. Results are the same at every SIMD level and thread count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcq_ext import _core
from mcq_ext.scratch import PAD, empty
from mcq_ext.threads import split

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
AnyWords = NDArray[Any]  # uint16 or uint64

PAD_COST = np.float32(3.0e38)
TILE = 8
PAIR_TILES = 8
#: Entries above which the search passes PAIR_TILES tiles of rows over each line of the table, as in search.inc.c.
LARGE_K = 512
#: Rows of a Cholesky factor that are finished together.
FACTOR_ROWS = 32


def _padded(k: int) -> int:
    return -(-k // PAD) * PAD


def _pad_entries(a: NDArray[Any], value: float | np.float32 = 0.0) -> Floats:
    """Copy, the last axis, which counts entries, padded to a multiple of PAD."""
    k = a.shape[-1]
    padded = empty(*a.shape[:-1], _padded(k))
    padded[..., :k] = a
    padded[..., k:] = value
    return padded


def matmul(a: Floats, b: Floats, out: Floats | None = None, alpha: float = 1.0, accumulate: bool = False) -> Floats:
    """Return ``a @ (alpha * b)`` (n, k), added to `out` if `accumulate`; each sum in order of the inner axis."""
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), np.float32)
    split(lambda i, j: _core.matmul(a[i:j], b, out[i:j], alpha, accumulate), a.shape[0])
    return out


def assign(x: Floats, codebook: Floats, quad: Floats) -> tuple[Words, Floats]:
    """Return codes (n,) = argmin_k quad_k - 2 x.c_k, the lowest k on a tie, and the minima (n,)."""
    entries_t, quad_pad = _pad_entries(codebook.T), _pad_entries(quad, PAD_COST)
    k, g = codebook.shape
    codes, value = np.empty(x.shape[0], np.uint16), np.empty(x.shape[0], np.float32)

    def rows(i: int, j: int) -> None:
        _core.assign(x[i:j], entries_t, quad_pad, k, codes[i:j], value[i:j], empty(TILE * g))

    split(rows, x.shape[0])
    return codes, value


def unary_table(x: Floats, codebook: Floats, quad: Floats) -> Floats:
    """Return the table (n, K) of quad_k - 2 x.c_k."""
    entries_t, quad_pad = _pad_entries(codebook.T), _pad_entries(quad, PAD_COST)
    unary = empty(x.shape[0], quad_pad.shape[0])
    split(lambda i, j: _core.unary_table(x[i:j], entries_t, quad_pad, unary[i:j]), x.shape[0])
    return unary[:, : codebook.shape[0]]


def pair_table(codebook_a: Floats, codebook_b: Floats, h: Floats) -> Floats:
    """Return the table (K, K) of 2 a^T H b for the entries a and b of two codebooks."""
    return matmul(matmul(codebook_a, h, alpha=2.0), np.ascontiguousarray(codebook_b.T))


def pair_search(unary_a: Floats, unary_b: Floats, pair: Floats) -> tuple[Words, Floats]:
    """Return codes (n, 2) = argmin over (a, b) of (unary_b + pair[a, b]) + unary_a, and the minima (n,).

    The lowest a, then the lowest b wins a tie.
    """
    ua, ub = _pad_entries(unary_a, PAD_COST), _pad_entries(unary_b, PAD_COST)
    table = _pad_entries(pair)
    codes, value = np.empty((ua.shape[0], 2), np.uint16), np.empty(ua.shape[0], np.float32)
    split(lambda i, j: _core.pair_search(ua[i:j], ub[i:j], table, codes[i:j], value[i:j]), ua.shape[0])
    return codes, value


def sweep(
    error: Floats,
    gradient: Floats,
    codes: Words,
    scale: Floats,
    codebooks: Floats,
    h: Floats,
    moves: NDArray[np.uint8],
    fresh: bool = False,
    beam_width: int = 0,
    starts: bool = False,
) -> None:
    """Choose the codes of the groups of a block one after another, each optimal given all others; in place.

    Parameters
    ----------
    error, gradient : arrays of shape (n, w)
        x - x^ and (x - x^) H in the columns of the block; both follow the new codes.
    codes : array of shape (n, w / g, M), may be a view into more groups
    scale : array of shape (n, w / g), may be broadcast
    codebooks : array of shape (M, K, g)
    h : array of shape (w, w)
        The metric between the columns of the block.
    moves : array of shape (num_moves, 2)
        Pairs of codebooks that are chosen jointly, in this order; a pair of equal numbers means that codebook alone.
    fresh : bool
        Choose from nothing: a move sees only codebooks that the moves before it chose. The moves must cover all
        codebooks. Otherwise every move improves on the codes given.
    beam_width : int
        Before the moves, replace the codes of a group by those of a beam of this width over all its codebooks if they
        cost less; 0 for no beam. From two codebooks on.
    starts : bool
        The same without tables of pairs, for codebooks too large to have them: the eight best entries of the first
        codebook each go on greedily, one codebook after another.
    """
    joint = beam_width > 0 or bool((moves[:, 0] != moves[:, 1]).any())
    quad, pair, entries_t = _sweep_tables(codebooks, h, joint)
    num_codebooks, k, g = codebooks.shape
    span = TILE * (PAIR_TILES if k > LARGE_K else 1)
    size = (3 * span + 1) * g + (max(2 * span, TILE * num_codebooks) * _padded(k) if joint else 0)
    h = np.ascontiguousarray(h)

    def rows(i: int, j: int) -> None:
        scratch = empty(size)
        _core.sweep(
            error[i:j],
            gradient[i:j],
            codes[i:j],
            scale[i:j],
            h,
            codebooks,
            entries_t,
            quad,
            pair,
            moves,
            fresh,
            beam_width,
            starts,
            scratch,
        )

    split(rows, error.shape[0])


def _sweep_tables(codebooks: Floats, h: Floats, joint: bool) -> tuple[Floats, Floats | None, Floats]:
    """Return quad (groups, M, K'), pair (M (M - 1) / 2, groups, K, K') if `joint`, and codebooks (M, g, K')."""
    num_codebooks, k, g = codebooks.shape
    groups = h.shape[0] // g
    h_jj = h.reshape(groups, g, groups, g)[np.arange(groups), :, np.arange(groups)]
    side_by_side = np.ascontiguousarray(h_jj.transpose(1, 0, 2)).reshape(g, groups * g)
    products = matmul(codebooks.reshape(-1, g), side_by_side).reshape(num_codebooks, k, groups, g)
    quad = np.einsum("mkjc,mkc->jmk", products, codebooks)
    entries_t = _pad_entries(codebooks.transpose(0, 2, 1))
    pair = None
    if joint:
        couples = [(a, b) for b in range(num_codebooks) for a in range(b)]
        pair = empty(len(couples), groups, k, _padded(k))
        for table, (a, b) in zip(pair, couples, strict=True):
            left = products[a].transpose(1, 0, 2).reshape(-1, g)
            matmul(left, entries_t[b], out=table.reshape(-1, table.shape[-1]), alpha=2.0)
    return _pad_entries(quad, PAD_COST), pair, entries_t


def beam_step(
    unary: Floats, pair: Floats, codes: Words, cost: Floats, width: int
) -> tuple[NDArray[np.int32], Words, Floats]:
    """Extend every hypothesis of a beam by one codebook and keep the cheapest `width`.

    Parameters
    ----------
    unary : array of shape (n, K)
        Costs of the entries of the next codebook.
    pair : array of shape (m * K, K)
        Pair costs between the entries of the m codebooks already chosen and the next one.
    codes : array of shape (n, b, m)
    cost : array of shape (n, b)
        Codes and costs of the hypotheses so far; a cost of 3e38 marks an empty place.
    width : int

    Returns
    -------
    parent, entry, cost : arrays of shape (n, width)
        In ascending order of cost; on a tie the earlier hypothesis, then the lower entry comes first.
    """
    n, k = unary.shape
    table, u = (
        _pad_entries(pair) if codes.shape[2] else np.empty((0, 0), np.float32),
        _pad_entries(unary, PAD_COST),
    )
    parent = np.empty((n, width), np.int32)
    entry = np.empty((n, width), np.uint16)
    new_cost = np.empty((n, width), np.float32)

    split(
        lambda i, j: _core.beam_step(u[i:j], table, codes[i:j], cost[i:j], parent[i:j], entry[i:j], new_cost[i:j], k),
        n,
    )
    return parent, entry, new_cost


def shared_tables(codebooks: Floats, transposed: bool = True) -> tuple[Floats, Floats]:
    """Return the tables that all rows share where a row is one group under the identity.

    Returns
    -------
    minus2_t : array of shape (g + 1, M * K')
        -2 C^T, and below it the squared norms of the entries: ``[x, 1] @ minus2_t`` is the unary table.
    pair : array of shape (2, M (M - 1) / 2, K, K')
        2 C_a C_b^T for a < b at b (b - 1) / 2 + a, and the same transposed. Without `transposed` only the first half,
        all that a beam needs.
    """
    num_codebooks, k, g = codebooks.shape
    entries_t = _pad_entries(codebooks.transpose(0, 2, 1))
    width = entries_t.shape[2]
    unary = np.empty((g + 1, num_codebooks, width), np.float32)
    unary[:g] = -2 * entries_t.transpose(1, 0, 2)
    unary[g] = _pad_entries(np.einsum("mkg,mkg->mk", codebooks, codebooks), PAD_COST)
    couples = [(a, b) for b in range(num_codebooks) for a in range(b)]
    pair = empty(2 if transposed else 1, len(couples), k, width)
    for i, (a, b) in enumerate(couples):
        matmul(codebooks[a], entries_t[b], out=pair[0, i], alpha=2.0)
        if transposed:
            pair[1, i, :, :k] = pair[0, i, :, :k].T
            pair[1, i, :, k:] = 0
    return unary.reshape(g + 1, -1), pair


def table_beam(unary: Floats, pair: Floats, width: int) -> tuple[Words, Floats]:
    """Return codes (n, M) by a beam over the codebooks, and their costs (n,).

    Parameters
    ----------
    unary : array of shape (n, M, K')
    pair : array of shape (2, M (M - 1) / 2, K, K')
        Of `shared_tables`.
    width : int
        Hypotheses kept after each codebook.
    """
    codes = np.empty(unary.shape[:2], np.uint16)
    cost = np.empty(len(unary), np.float32)
    split(lambda i, j: _core.table_beam(unary[i:j], pair, width, codes[i:j], cost[i:j]), len(unary))
    return codes, cost


def table_moves(unary: Floats, pair: Floats, moves: NDArray[np.uint8], codes: Words) -> Floats:
    """Improve codes (n, M), in place, by moves that are exact for the tables; return their costs (n,).

    Parameters
    ----------
    unary : array of shape (n, M, K')
    pair : array of shape (2, M (M - 1) / 2, K, K')
        Of `shared_tables`.
    moves : array of shape (num_moves, 2)
        Codebooks that are chosen jointly, the lower one first, in this order; equal numbers mean that codebook alone.
    codes : array of shape (n, M)
    """
    cost = np.empty(len(unary), np.float32)
    size = 2 * TILE * (PAIR_TILES if pair.shape[2] > LARGE_K else 1) * unary.shape[2]

    def rows(i: int, j: int) -> None:
        _core.table_moves(unary[i:j], pair, moves, codes[i:j], cost[i:j], empty(size))

    split(rows, len(unary))
    return cost


def score_moves(
    unary: Floats,
    along: Floats,
    length: Floats,
    extra: float,
    pair: Floats,
    moves: NDArray[np.uint8],
    codes: Words,
) -> Floats:
    """Improve codes (n, M), in place, where the squared error along each row counts 1 + extra times.

    Parameters
    ----------
    unary : array of shape (n, M, K')
    along : array of shape (n, M, K')
        The part of each entry along the row: its inner product with the row, divided by the row's length.
    length : array of shape (n,)
    extra : float
    pair : array of shape (2, M (M - 1) / 2, K, K')
        Of `shared_tables`.
    moves : array of shape (num_moves, 2)
        Codebooks that are chosen, one at a time and in this order: both numbers of a move are equal.
    codes : array of shape (n, M)

    Returns
    -------
    array of shape (n,)
        Costs: those of `table_moves`, and extra times the squared error along the row.
    """
    cost = np.empty(len(unary), np.float32)

    def rows(i: int, j: int) -> None:
        scratch = empty(unary.shape[2])
        _core.score_moves(unary[i:j], along[i:j], length[i:j], extra, pair, moves, codes[i:j], cost[i:j], scratch)

    split(rows, len(unary))
    return cost


def decode(codes: Words, codebooks: Floats, scale: Floats) -> Floats:
    """Return (n, G * g): sums of entries chosen by `codes` (n, G, M) times `scale` (n, G, may be broadcast)."""
    n, groups, _ = codes.shape
    out = np.empty((n, groups * codebooks.shape[2]), np.float32)
    split(lambda i, j: _core.decode(codes[i:j], codebooks, scale[i:j], out[i:j]), n)
    return out


def scatter_add(codes: Words, values: Floats, scale: Floats, num_entries: int) -> NDArray[np.float64]:
    """Return sums (M, K, g) of scale * values over the groups that use each entry: the adjoint of `decode`."""
    groups, num_codebooks = codes.shape[1:]
    sums = np.zeros((num_codebooks, num_entries, values.shape[1] // groups))
    split(lambda i, j: _core.scatter_add(codes, values, scale, sums, i, j), num_entries)
    return sums


def pack_bits(words: AnyWords, bits: int) -> NDArray[np.uint8]:
    """Return (n, ceil(W * bits / 8)): each row of words (n, W) as one little-endian bit string.

    Words are uint16 if `bits` is at most 16, else uint64.
    """
    pack = _core.pack_bits if bits <= 16 else _core.pack_words
    packed = np.empty((words.shape[0], (words.shape[1] * bits + 7) // 8), np.uint8)
    if packed.size:
        split(lambda i, j: pack(words[i:j], bits, packed[i:j]), words.shape[0])
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> AnyWords:
    """Return words (n, count), the inverse of `pack_bits`."""
    unpack = _core.unpack_bits if bits <= 16 else _core.unpack_words
    words = np.empty((packed.shape[0], count), np.uint16 if bits <= 16 else np.uint64)
    if words.size:
        split(lambda i, j: unpack(packed[i:j], bits, words[i:j]), packed.shape[0])
    return words


def cholesky(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper triangular U (n, n) with a = U^T U; `a` is symmetric.

    Raises
    ------
    numpy.linalg.LinAlgError
        If `a` is not positive definite.
    """
    u = np.triu(a)
    n = len(u)
    for first in range(0, n, FACTOR_ROWS):
        last = min(first + FACTOR_ROWS, n)
        if _core.cholesky_rows(u, first, last):
            raise np.linalg.LinAlgError("the matrix is not positive definite")
        _subtract_products(u, first, last)
    return u


def _subtract_products(u: NDArray[np.float64], first: int, last: int) -> None:
    """Subtract the products with rows first to last from all rows below; long rows go with short ones."""
    n = len(u)
    half = (n - last) // 2

    def rows(i: int, j: int) -> None:
        _core.cholesky_update(u, first, last, last + i, last + j)
        _core.cholesky_update(u, first, last, n - j, n - i)

    split(rows, half)
    _core.cholesky_update(u, first, last, last + half, n - half)


def cholesky_solve(u: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (U^T U)^-1 b for U of `cholesky` and b (n, k)."""
    solution = np.array(b, order="C")
    _core.cholesky_solve(u, solution)
    return solution


def hadamard(x: Floats, signs: Floats, inverse: bool = False, out: Floats | None = None) -> Floats:
    """Return rows (n, d) after a randomised Hadamard transform, orthogonal, or its inverse.

    Parameters
    ----------
    x : array of shape (n, d)
    signs : array of shape (S, d), entries 1 and -1
        Step s multiplies by signs[s]. With w the largest power of two in d, an even step then adds and subtracts the
        halves of the row unless w = d, and transforms the first w entries; an odd step transforms the last w.
    inverse : bool
    out : array of shape (n, d), optional
        Where the result goes; may be `x`.
    """
    out = empty(*x.shape) if out is None else out
    split(lambda i, j: _core.hadamard(x[i:j], signs, out[i:j], inverse), len(x))
    return out
