"""Least-squares codebooks from sums over rows: sums of parts of the data add up to those of the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Weight of the old codebooks in a refit, as a fraction of the mean diagonal of the normal matrix.
RIDGE = 1e-4


class NormalEquations:
    """Sums over rows from which codebooks (M, K, g) follow by least squares, under the identity.

    Attributes
    ----------
    normal : array of shape (M * K, M * K), float64
        B^T B, where B has a group's scale for every entry that it uses; filled on and above the diagonal blocks.
    right : array of shape (M * K, g), float64
        B^T X.

    References
    ----------
    Martinez et al., LSQ++, ECCV 2018, for the blocks of B^T B as counts of pairs of codes.
    """

    def __init__(self, num_codebooks: int, num_entries: int, group_size: int) -> None:
        self.num_entries = num_entries
        self.normal = np.zeros((num_codebooks * num_entries,) * 2)
        self.right = np.zeros((num_codebooks * num_entries, group_size))

    def add(self, codes_nGM: Words, values: Floats, scale: Floats | None = None) -> None:  # noqa: N803
        """Count rows with codes (n, G, M), values (n, G * g) and scales (n, G), which may be broadcast."""
        n, groups, num_codebooks = codes_nGM.shape
        k = self.num_entries
        scale = np.broadcast_to(np.float32(1) if scale is None else scale, (n, groups))
        self.right += cpu.scatter_add(codes_nGM, values, scale, k).reshape(self.right.shape)
        entries = codes_nGM.reshape(-1, num_codebooks).astype(np.intp)
        weight = np.square(scale.ravel(), dtype=np.float64)
        for a in range(num_codebooks):
            for b in range(a, num_codebooks):
                counts = np.bincount(entries[:, a] * k + entries[:, b], weights=weight, minlength=k * k)
                self.normal[a * k : (a + 1) * k, b * k : (b + 1) * k] += counts.reshape(k, k)

    def merge(self, other: NormalEquations) -> None:
        """Add the sums over other rows."""
        self.normal += other.normal
        self.right += other.right

    def solve(self, old: Floats) -> NDArray[np.float64]:
        """Return the codebooks (M, K, g) of least squared error, drawn to the old ones by a small ridge."""
        error = self.right - self._whole() @ old.reshape(self.right.shape)
        return old + self.solve_change(error).reshape(old.shape)

    def solve_change(self, error: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the change (M * K, g) of the codebooks for sums ``B^T (X - B C)`` of what the old ones leave."""
        normal = self._whole()
        size = len(normal)
        normal[np.diag_indices(size)] += RIDGE * (np.trace(normal) / size or 1.0)  # all scales may be zero
        return cpu.cholesky_solve(cpu.cholesky(normal), error)

    def solve_in_turn(self, old: Floats) -> NDArray[np.float64]:
        """Return codebooks each of which is the mean of what those before it leave; unused entries stay."""
        new, k = old.astype(np.float64).reshape(self.right.shape), self.num_entries
        for start in range(0, len(new), k):
            own = slice(start, start + k)
            left = self.right[own] - self.normal[:start, own].T @ new[:start]
            uses = self.normal.diagonal()[own, None]
            np.divide(left, uses, out=new[own], where=uses > 0)
        return new.reshape(old.shape)

    def _whole(self) -> NDArray[np.float64]:
        return np.triu(self.normal) + np.triu(self.normal, 1).T
