"""Unary and pair tables: the waist between metrics and encoders.

For a group with target t (already multiplied by the metric of the group) the cost of entries k_1..k_M is, up to a
constant,

    sum_m unary[m, k_m] + sum_{m < m'} pair[m, k_m, m', k_m'],
    unary[m, k] = c^T H c - 2 c.t,    pair[m, k, m', k'] = 2 c^T H c'.

Encoders see nothing else, so metrics and encoders do not multiply.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq_ext import cpu

Floats = NDArray[np.float32]

#: Pair tables larger than this, each or together, are not built: searches then choose one codebook at a time.
MAX_PAIR_BYTES = 1 << 26
MAX_ALL_PAIRS_BYTES = 1 << 29


def has_pair_tables(num_codebooks: int, num_entries: int) -> bool:
    """Return whether the pair tables of so many codebooks of so many entries are small enough to be built."""
    size = 4 * num_entries**2
    return size <= MAX_PAIR_BYTES and size * num_codebooks * (num_codebooks - 1) // 2 <= MAX_ALL_PAIRS_BYTES


class Energy:
    """The tables of one group.

    Parameters
    ----------
    codebooks : array of shape (M, K, g)
    h : array of shape (g, g)
        The metric between the entries of the group.
    """

    def __init__(self, codebooks: Floats, h: Floats) -> None:
        self.codebooks = codebooks
        self.h = np.ascontiguousarray(h)
        num_codebooks, k, g = codebooks.shape
        weighted = cpu.matmul(codebooks.reshape(-1, g), self.h).reshape(num_codebooks, k, g)
        self.quad = np.einsum("mkg,mkg->mk", weighted, codebooks)

    def unary(self, target: Floats, m: int) -> Floats:
        """Return the costs (n, K) of the entries of codebook `m` for targets (n, g)."""
        return cpu.unary_table(target, self.codebooks[m], self.quad[m])

    def pair(self, m: int) -> Floats:
        """Return the pair costs (m * K, K) between all entries of the codebooks before `m` and those of `m`."""
        before = self.codebooks[:m].reshape(-1, self.codebooks.shape[2])
        return cpu.pair_table(before, self.codebooks[m], self.h)
