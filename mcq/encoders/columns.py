"""Columns coded one after another, each so that the columns after it can mend what it leaves.

With H = U U^T, U upper triangular, the distortion of an error e is sum_j (U^T e)_j^2, and part j is
U_jj^2 (e_j + sum over k < j of e_k U_kj / U_jj)^2. So entry j is best rounded from x_j plus that sum. This is the
sequential rounding of GPTQ (Frantar et al. 2023), which finds the same numbers from the inverse of H.

Arrays are transposed, so that columns of the matrix are contiguous, and hold all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mcq.encoders.feedback import upper_factor
from mcq.metric import Metric
from mcq_ext import cpu

Floats = NDArray[np.float32]
Begin = Callable[[slice, Floats], None]
Choose = Callable[[int, Floats], Floats]

#: Columns whose errors reach each other one by one; between blocks they travel by a matrix product.
BLOCK = 32


class Feedback:
    """How the errors of columns reach those after them, under a metric that couples them.

    Attributes
    ----------
    mixing : array of shape (d, d), or None
        U_kj / U_jj at (j, k), k < j; None if the columns are strangers.
    weights : array of shape (d,)
        U_jj^2, what a squared error of column j costs once the columns after it have mended what they can.

    Notes
    -----
    Costs O(d^3) time and O(d^2) memory in float64 for a metric that couples columns.
    """

    def __init__(self, metric: Metric, d: int, enabled: bool = True) -> None:
        self.mixing: Floats | None = None
        self.weights: Floats = np.array(metric.diagonal(d))
        if enabled and metric.couples:
            upper = upper_factor(metric, d)
            pivots = np.diagonal(upper)
            self.mixing = (upper / pivots).T.astype(np.float32)
            self.weights = (pivots**2).astype(np.float32)

    def run(self, x: Floats, group_size: int, begin: Begin, choose: Choose) -> None:
        """Choose column after column of x (d, n).

        Parameters
        ----------
        x : array of shape (d, n)
        group_size : int
            Columns for which `begin` is called together; the last group may be shorter.
        begin : callable
            ``begin(columns, targets)`` sees the targets (g, n) of a group, mended up to the group before.
        choose : callable
            ``choose(j, target)`` returns what is rebuilt of column j, (n,), for its target (n,).

        Notes
        -----
        Costs O(n d^2).
        """
        error = np.zeros_like(x)
        for start in range(0, len(x), group_size):
            group = slice(start, min(start + group_size, len(x)))
            targets = self._mended(x[group], error, group, slice(0, start))
            begin(group, targets)
            for first in range(group.start, group.stop, BLOCK):
                block = slice(first, min(first + BLOCK, group.stop))
                part = self._mended(targets[first - start : block.stop - start], error, block, slice(start, first))
                for j in range(block.start, block.stop):
                    error[j] = x[j] - choose(j, part[j - first])
                    if self.mixing is not None:
                        part[j + 1 - first :] += self.mixing[j + 1 : block.stop, j, None] * error[j]

    def _mended(self, targets: Floats, error: Floats, columns: slice, before: slice) -> Floats:
        """Return `targets` of some columns plus what the errors of other columns ask of them."""
        out = targets.copy()
        if self.mixing is not None and before.stop > before.start:
            mixing = np.ascontiguousarray(self.mixing[columns, before])
            cpu.matmul(mixing, error[before], out=out, accumulate=True)
        return out
