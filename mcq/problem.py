"""What a fit or an encode works on: data and metric, cut into groups and ordered for the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.metric import Identity, Metric
from mcq.validate import as_matrix

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """Rows cut into G groups of g entries, the heaviest groups first.

    The order serves error feedback: groups that come early leave their errors for later ones to mend, so the groups
    that weigh most should come first.

    Attributes
    ----------
    x : array of shape (n, G * g)
        The data in order, with zero columns where g does not divide d.
    metric : Metric
        H between the ordered columns, damped.
    group_size : int
    group_order : array of shape (G,)
        group_order[j] is the place in the data of the group that is searched as number j.
    """

    x: Floats
    metric: Metric
    group_size: int
    group_order: NDArray[np.intp]

    @classmethod
    def arrange(cls, x: ArrayLike, metric: Metric | None, group_size: int | None) -> Problem:
        """Check the data, cut them into groups and order the groups by descending weight."""
        matrix = as_matrix(x)
        n, d = matrix.shape
        metric = metric or Identity()
        metric.check_width(d)
        metric = metric.damped()
        g = group_size or d
        groups = -(-d // g)
        weight = np.zeros(groups * g)
        weight[:d] = metric.diagonal(d)
        order = np.argsort(-weight.reshape(groups, g).sum(1), kind="stable") if metric.couples else np.arange(groups)
        columns = (order[:, None] * g + np.arange(g)).ravel()
        padded = np.zeros((n, groups * g), np.float32)
        padded[:, :d] = matrix
        return cls(np.ascontiguousarray(padded[:, columns]), metric.arranged(columns, d), g, order)

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return len(self.group_order)

    def restore(self, per_group: NDArray) -> NDArray:
        """Put an array (n, G, ...) of the search back into the order of the data."""
        restored = np.empty_like(per_group)
        restored[:, self.group_order] = per_group
        return restored
