"""The kernels in NumPy: what each of them computes, addition by addition. Also a slow backend.

Every function has a twin of the same name and signature in `mcq_ext.cpu`, which calls the C kernels. Sums
that decide codes are loops over float32 additions in the order of the kernels, so both return the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
AnyWords = NDArray[Any]  # uint16 or uint64

#: Entries of a table, rounded up to a multiple of this, and the cost of the empty places behind them.
PAD = 16
PAD_COST = np.float32(3.0e38)
#: Entries of the first codebook that a sweep with `starts` goes on from.
STARTS = 8


def matmul(a: Floats, b: Floats, out: Floats | None = None, alpha: float = 1.0, accumulate: bool = False) -> Floats:
    """Return ``a @ (alpha * b)`` (n, k), added to `out` if `accumulate`; inner axis in ascending order."""
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), np.float32)
    if not accumulate:
        out[:] = 0
    for column, row in zip(a.T, np.float32(alpha) * b, strict=True):
        out += column[:, None] * row
    return out


def assign(x: Floats, codebook: Floats, quad: Floats) -> tuple[Words, Floats]:
    """Return codes (n,) = argmin_k quad_k - 2 x.c_k, the lowest k on a tie, and the minima (n,)."""
    unary = unary_table(x, codebook, quad)
    return unary.argmin(1).astype(np.uint16), unary.min(1)


def unary_table(x: Floats, codebook: Floats, quad: Floats) -> Floats:
    """Return the table (n, K) of quad_k - 2 x.c_k."""
    start = np.tile(quad, (len(x), 1))
    return matmul(np.float32(-2) * x, codebook.T, out=start, accumulate=True)


def pair_table(codebook_a: Floats, codebook_b: Floats, h: Floats) -> Floats:
    """Return the table (K, K) of 2 a^T H b for the entries a and b of two codebooks."""
    return matmul(matmul(codebook_a, h, alpha=2.0), codebook_b.T)


def pair_search(unary_a: Floats, unary_b: Floats, pair: Floats) -> tuple[Words, Floats]:
    """Return codes (n, 2) = argmin over (a, b) of (unary_b + pair[a, b]) + unary_a, and the minima (n,).

    The lowest a, then the lowest b wins a tie.
    """
    codes, value = np.empty((len(unary_a), 2), np.uint16), np.empty(len(unary_a), np.float32)
    for i, (ua, ub) in enumerate(zip(unary_a, unary_b, strict=True)):
        sums = ub + pair
        # Adding unary_a may round different sums to equal ones: b is the best for a before that.
        cost = sums.min(1) + ua
        a = cost.argmin()
        codes[i] = a, sums[a].argmin()
        value[i] = cost[a]
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
        Pairs of codebooks that are chosen jointly, in this order; equal numbers mean that codebook alone.
    fresh : bool
        Choose from nothing: a move sees only codebooks that the moves before it chose. The moves must cover
        all codebooks. Otherwise every move improves on the codes given.
    beam_width : int
        Before the moves, replace the codes of a group by those of a beam of this width over all its codebooks
        if they cost less; 0 for no beam. From two codebooks on.
    starts : bool
        The same without tables of pairs, for codebooks too large to have them: the eight best entries of the
        first codebook each go on greedily, one codebook after another.
    """
    g = codebooks.shape[2]
    for j, group in enumerate(_groups(codebooks, h)):
        own = slice(j * g, (j + 1) * g)
        # A row whose scale is zero decodes to zeros whatever its codes.
        inverse = np.divide(1, scale[:, j], out=np.zeros(len(codes), np.float32), where=scale[:, j] != 0)
        old = group.decode(codes[:, j])
        target = matmul(old, group.h, out=gradient[:, own] * inverse[:, None], accumulate=True)
        if beam_width > 0:
            _propose_by_beam(group, target, codes[:, j], beam_width, fresh)
        if starts:
            _propose_by_starts(group, target, codes[:, j], fresh)
        chosen = [] if fresh and not beam_width and not starts else list(range(len(codebooks)))
        for first, second in moves.tolist():
            _move(group, target, codes[:, j], first, second, chosen)
            chosen += [first, second]
        change = scale[:, j, None] * (group.decode(codes[:, j]) - old)
        error[:, own] -= change
        matmul(change, h[own], out=gradient, alpha=-1.0, accumulate=True)


@dataclass(frozen=True)
class _Group:
    """One group of a block: codebooks (M, K, g), its metric (g, g), and c^T H c for the entries (M, K)."""

    codebooks: Floats
    h: Floats
    quad: Floats

    def decode(self, codes: Words, which: list[int] | None = None) -> Floats:
        """Return the sums (n, g) of the entries of all codebooks, or of some."""
        total = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for m in range(len(self.codebooks)) if which is None else which:
            total += self.codebooks[m, codes[:, m]]
        return total

    def without(self, target: Floats, codes: Words, which: list[int]) -> Floats:
        """Return the targets (n, g) that some codebooks leave to the others."""
        return matmul(self.decode(codes, which), self.h, out=target.copy(), alpha=-1.0, accumulate=True)

    def unary(self, target: Floats, m: int) -> Floats:
        return unary_table(target, self.codebooks[m], self.quad[m])

    def pair(self, a: int, b: int) -> Floats:
        return pair_table(self.codebooks[a], self.codebooks[b], self.h)


def _groups(codebooks: Floats, h: Floats) -> list[_Group]:
    num_codebooks, k, g = codebooks.shape
    groups = len(h) // g
    diagonal = np.concatenate([h[j * g : (j + 1) * g, j * g : (j + 1) * g] for j in range(groups)], axis=1)
    products = matmul(codebooks.reshape(-1, g), diagonal).reshape(num_codebooks, k, groups, g)
    # NumPy chooses the order of these sums: the same expression, for the same bits.
    quad = np.einsum("mkjc,mkc->jmk", products, codebooks)
    return [_Group(codebooks, diagonal[:, j * g : (j + 1) * g], quad[j]) for j in range(groups)]


def _move(group: _Group, target: Floats, codes: Words, first: int, second: int, chosen: list[int]) -> None:
    """Choose one or two codebooks of a group, given the others among those `chosen`."""
    target = group.without(target, codes, sorted(set(chosen) - {first, second}))
    if first == second:
        codes[:, first], _ = assign(target, group.codebooks[first], group.quad[first])
    else:
        unary = group.unary(target, first), group.unary(target, second)
        codes[:, [first, second]], _ = pair_search(*unary, group.pair(first, second))


def _propose_by_beam(group: _Group, target: Floats, codes: Words, width: int, fresh: bool) -> None:
    """Replace the codes of a group by those of a beam, unless they are known and cost no more."""
    n, num_codebooks = codes.shape
    held, cost = np.empty((n, 1, 0), np.uint16), np.zeros((n, 1), np.float32)
    now = np.zeros(n, np.float32)
    for m in range(num_codebooks):
        unary, pairs = group.unary(target, m), [group.pair(o, m) for o in range(m)]
        stacked = np.concatenate(pairs) if pairs else np.empty((0, unary.shape[1]), np.float32)
        parent, entry, cost = beam_step(unary, stacked, held, cost, width)
        held = np.concatenate([np.take_along_axis(held, parent[:, :, None], 1), entry[:, :, None]], axis=2)
        now += unary[np.arange(n), codes[:, m]]
        for o, pair in enumerate(pairs):
            now += pair[codes[:, o], codes[:, m]]
    better = (cost[:, 0] < now) | fresh
    codes[better] = held[better, 0]


def _propose_by_starts(group: _Group, target: Floats, codes: Words, fresh: bool) -> None:
    """Replace the codes of a group by the best of some greedy choices, unless they are known and cost no more."""
    n, num_codebooks = codes.shape
    unary = group.unary(target, 0)
    first = unary.argsort(axis=1, kind="stable")[:, :STARTS]
    cost = np.take_along_axis(unary, first, 1)
    proposed = np.zeros((n, first.shape[1], num_codebooks), np.uint16)
    proposed[:, :, 0] = first
    now = np.zeros(n, np.float32)
    for m in range(num_codebooks):
        before = list(range(m))
        for start in range(first.shape[1]) if m else ():
            rest = group.without(target, proposed[:, start], before)
            proposed[:, start, m], value = assign(rest, group.codebooks[m], group.quad[m])
            cost[:, start] += value
        now += group.quad[m, codes[:, m]]
        rest = group.without(target, codes, before)
        for column, entries in zip(rest.T, group.codebooks[m, codes[:, m]].T, strict=True):
            now -= np.float32(2) * column * entries
    best = cost.argmin(1)
    better = (cost.min(1) < now) | fresh
    codes[better] = proposed[np.arange(n), best][better]


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
    extended = np.repeat(unary[:, None], cost.shape[1], axis=1)
    for o in range(codes.shape[2]):
        extended += pair[o * k + codes[:, :, o].astype(np.intp)]
    extended += cost[:, :, None]
    extended[cost >= PAD_COST] = np.inf
    flat = extended.reshape(n, -1)
    best = flat.argsort(axis=1, kind="stable")[:, :width]
    best_cost = np.take_along_axis(flat, best, 1)
    best[best_cost == np.inf] = 0

    parent, entry = np.zeros((n, width), np.int32), np.zeros((n, width), np.uint16)
    new_cost = np.full((n, width), PAD_COST)
    found = best.shape[1]
    parent[:, :found], entry[:, :found] = np.divmod(best, k)
    new_cost[:, :found] = np.minimum(best_cost, PAD_COST)
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
    width = -(-k // PAD) * PAD
    unary = np.full((g + 1, num_codebooks, width), PAD_COST, np.float32)
    unary[:g] = 0
    unary[:g, :, :k] = -2 * codebooks.transpose(2, 0, 1)
    unary[g, :, :k] = np.einsum("mkg,mkg->mk", codebooks, codebooks)
    couples = [(a, b) for b in range(num_codebooks) for a in range(b)]
    pair = np.zeros((1 + transposed, len(couples), k, width), np.float32)
    for i, (a, b) in enumerate(couples):
        pair[0, i, :, :k] = matmul(codebooks[a], codebooks[b].T, alpha=2.0)
        if transposed:
            pair[1, i, :, :k] = pair[0, i, :, :k].T
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
    n, num_codebooks, _ = unary.shape
    k = pair.shape[2]
    codes, cost = np.empty((n, 1, 0), np.uint16), np.zeros((n, 1), np.float32)
    for m in range(num_codebooks):
        first = m * (m - 1) // 2
        stacked = pair[0, first : first + m, :, :k].reshape(-1, k)
        parent, entry, cost = beam_step(unary[:, m, :k], stacked, codes, cost, width)
        codes = np.concatenate([np.take_along_axis(codes, parent[:, :, None], 1), entry[:, :, None]], axis=2)
    return codes[:, 0], cost[:, 0]


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
    k = pair.shape[2]
    for first, second in moves.tolist():
        free = (first, second)
        if first == second:
            codes[:, first] = _conditional(unary, pair, codes, first, free).argmin(1)
        else:
            a, b = (_conditional(unary, pair, codes, m, free) for m in free)
            codes[:, free], _ = pair_search(a, b, pair[0, second * (second - 1) // 2 + first, :, :k])
    return _table_cost(unary, pair, codes)


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
    rows, k, weight = np.arange(len(unary)), pair.shape[2], np.float32(extra)

    def error(free: int | None) -> Floats:
        """Return what the codes have along the row beyond its length, one codebook left out."""
        rest = -length
        for m in range(unary.shape[1]):
            if m != free:
                rest = rest + along[rows, m, codes[:, m]]
        return rest

    for m, _ in moves.tolist():
        own, rest = along[:, m, :k], error(m)[:, None]
        costs = _conditional(unary, pair, codes, m, (m, m)) + weight * (own * (own + 2 * rest))
        codes[:, m] = costs.argmin(1)
    rest = error(None)
    return _table_cost(unary, pair, codes) + weight * (rest * rest)


def _conditional(unary: Floats, pair: Floats, codes: Words, m: int, free: tuple[int, int]) -> Floats:
    """Return the costs (n, K) of the entries of codebook m, given those of all others that are not free."""
    k = pair.shape[2]
    costs = unary[:, m, :k].copy()
    for o in range(unary.shape[1]):
        if o not in free:
            low, high = min(o, m), max(o, m)
            costs += pair[int(o > m), high * (high - 1) // 2 + low, codes[:, o], :k]
    return costs


def _table_cost(unary: Floats, pair: Floats, codes: Words) -> Floats:
    """Return the costs (n,) of codes."""
    rows = np.arange(len(unary))
    cost = np.zeros(len(unary), np.float32)
    for m in range(unary.shape[1]):
        cost += unary[rows, m, codes[:, m]]
        for o in range(m):
            cost += pair[0, m * (m - 1) // 2 + o, codes[:, o], codes[:, m]]
    return cost


def decode(codes: Words, codebooks: Floats, scale: Floats) -> Floats:
    """Return (n, G * g): sums of the entries that `codes` (n, G, M) choose times `scale` (n, G)."""
    n, groups, num_codebooks = codes.shape
    total = codebooks[0, codes[:, :, 0]]
    for m in range(1, num_codebooks):
        total += codebooks[m, codes[:, :, m]]
    return (total * scale[:, :, None]).reshape(n, groups * codebooks.shape[2])


def scatter_add(codes: Words, values: Floats, scale: Floats, num_entries: int) -> NDArray[np.float64]:
    """Return sums (M, K, g) of scale * values over the groups that use an entry: the adjoint of `decode`."""
    groups, num_codebooks = codes.shape[1:]
    g = values.shape[1] // groups
    scaled = scale[:, :, None].astype(np.float64) * values.reshape(-1, groups, g)
    sums = np.zeros((num_codebooks, num_entries, g))
    for m in range(num_codebooks):
        np.add.at(sums[m], codes[:, :, m], scaled)
    return sums


def pack_bits(words: AnyWords, bits: int) -> NDArray[np.uint8]:
    """Return (n, ceil(W * bits / 8)): each row of words (n, W) as one little-endian bit string.

    Words are uint16 if `bits` is at most 16, else uint64.
    """
    digits = (words[:, :, None] >> np.arange(bits, dtype=words.dtype) & 1).astype(np.uint8)
    return np.packbits(digits.reshape(len(words), words.shape[1] * bits), axis=1, bitorder="little")


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> AnyWords:
    """Return words (n, count), the inverse of `pack_bits`."""
    dtype: Any = np.uint16 if bits <= 16 else np.uint64
    digits = np.unpackbits(packed, axis=1, count=count * bits, bitorder="little")
    digits = digits.reshape(len(packed), count, bits).astype(dtype)
    return (digits << np.arange(bits, dtype=dtype)).sum(2, dtype=dtype)


def cholesky(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """See `mcq_ext.cpu.cholesky`; every element is one chain of subtractions in ascending order."""
    u = np.triu(a)
    for p in range(len(u)):
        if not u[p, p] > 0:
            raise np.linalg.LinAlgError("the matrix is not positive definite")
        u[p, p] = np.sqrt(u[p, p])
        u[p, p + 1 :] /= u[p, p]
        u[p + 1 :, p + 1 :] -= np.triu(np.outer(u[p, p + 1 :], u[p, p + 1 :]))
    return u


def cholesky_solve(u: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """See `mcq_ext.cpu.cholesky_solve`."""
    x = np.array(b, order="C")
    for p in range(len(u)):
        x[p] /= u[p, p]
        x[p + 1 :] -= u[p, p + 1 :, None] * x[p]
    for p in reversed(range(len(u))):
        for i in range(p + 1, len(u)):
            x[p] -= u[p, i] * x[i]
        x[p] /= u[p, p]
    return x


def hadamard(x: Floats, signs: Floats, inverse: bool = False, out: Floats | None = None) -> Floats:
    """See `mcq_ext.cpu.hadamard`."""
    out = np.empty_like(x) if out is None else out
    out[:] = x
    d = x.shape[1]
    w = 1 << (d.bit_length() - 1)
    for step in reversed(range(len(signs))) if inverse else range(len(signs)):
        first = step % 2 == 0
        if not inverse:
            out *= signs[step]
        if not inverse and first and w < d:
            _butterfly(out[:, : d // 2], out[:, d - d // 2 :], np.sqrt(np.float32(0.5)))
        block = np.ascontiguousarray(out[:, :w] if first else out[:, d - w :])
        block *= np.float32(1) / np.sqrt(np.float32(w))
        for level in range(w.bit_length() - 1):
            pairs = block.reshape(len(x), -1, 2, 1 << level)
            _butterfly(pairs[:, :, 0], pairs[:, :, 1])
        out[:, slice(w) if first else slice(d - w, d)] = block
        if inverse and first and w < d:
            _butterfly(out[:, : d // 2], out[:, d - d // 2 :], np.sqrt(np.float32(0.5)))
        if inverse:
            out *= signs[step]
    return out


def _butterfly(a: Floats, b: Floats, factor: np.float32 | float = 1.0) -> None:
    """Replace (a, b) by their sum and their difference, times `factor`."""
    a[...], b[...] = (a + b) * factor, (a - b) * factor
