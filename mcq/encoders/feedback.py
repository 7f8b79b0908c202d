"""Error feedback: groups in order, each coded so that the groups after it can mend what it leaves.

With the block factorisation H = U U^T, U upper triangular, the error costs |U^T e|^2 = sum_j |(U^T e)_j|^2, and part j
holds groups up to j only. Coding group j to minimise its own part alone is the sequential coding of GPTQ and LDLQ
(Frantar et al. 2023, Chee et al. 2023), here with vector codes. Part j expands to a quadratic form in e_j with metric
U_jj U_jj^T and with cross terms U_ij U_jj^T to the groups before: exactly what a local-search sweep does under the
block-triangular matrix of these blocks. So error feedback is that sweep under another matrix, and needs no kernel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq.metric import Metric
from mcq_ext import cpu

Floats = NDArray[np.float32]

#: Fraction of the mean of the diagonal that makes the factorisation safe; results hardly change from 1e-4 to 1e-1.
DAMPING = 1e-2


def damped(metric: Metric, d: int) -> NDArray[np.float64]:
    """Return H (d, d), lightly damped."""
    h = metric.block(slice(0, d)).astype(np.float64)
    h[np.diag_indices(d)] += DAMPING * (np.trace(h) / d or 1.0)
    return h


def upper_factor(metric: Metric, d: int) -> NDArray[np.float64]:
    """Return the upper triangular U (d, d) with U U^T = H, lightly damped."""
    return cpu.cholesky(damped(metric, d)[::-1, ::-1]).T[::-1, ::-1]


class Triangular:
    """The block upper triangular matrix of error feedback; a sweep under it, from nothing, is sequential coding.

    Parameters
    ----------
    metric : Metric
    d, group_size : int
        Columns, and columns of a group.

    Notes
    -----
    Costs O(d^3) time and O(d^2) memory, in float64.
    """

    def __init__(self, metric: Metric, d: int, group_size: int) -> None:
        upper = upper_factor(metric, d)
        self.matrix = np.zeros((d, d), np.float32)
        for start in range(0, d, group_size):
            own = slice(start, start + group_size)
            self.matrix[: own.stop, own] = upper[: own.stop, own] @ upper[own, own].T

    def apply(self, x: Floats, columns: slice) -> Floats:
        """Return ``x @ T[:, columns]``; rows of T below the block are zero and left out."""
        return cpu.matmul(x[:, : columns.stop], self.matrix[: columns.stop, columns])

    def block(self, columns: slice) -> Floats:
        """Return ``T[columns, columns]``."""
        return np.ascontiguousarray(self.matrix[columns, columns])
