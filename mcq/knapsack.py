"""One option of each class at the least total loss within a budget: the multiple-choice knapsack problem.

With a multiplier v, a price of loss per unit of cost, the classes part: each takes the option of least loss + v cost.
The best multiplier is one of the slopes between neighbours on the lower convex hulls of the classes, so it is found by
sorting the slopes, exactly and without iterations. It bounds the optimum from below, and with r >= 0 for what an
option loses against the best of its class, every choice costs

    total loss = bound + sum of r + v (budget - total cost).

Whatever is worth less than the gap between the bound and a known solution can therefore be left out: of 1,000 classes a
handful stays open. These are settled by dynamic programming over pairs of cost and loss of which none is worse in both
(Nemhauser and Ullmann 1969, with the bounds of Pisinger 1995). It works on the costs as they are: a table over all
costs would have as many columns as the budget has bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.int64]
Losses = NDArray[np.float64]
Indices = NDArray[np.intp]

#: Partial solutions that are kept after each class; only if there are more can the optimum be missed.
MAX_PARTIAL = 4096
#: What rounding may add up to, and the gap at which a search that had to leave something out ends; both relative to the
#: sum of the largest losses.
ROUNDING = 1e-13
ENOUGH = 1e-6


class Choice(NamedTuple):
    """A solution.

    Attributes
    ----------
    options : array of int
        The option of each class.
    multiplier : float
        Loss that one more unit of cost would save, by the convex hulls.
    gap : float
        How much less the loss of the optimum may be; 0 where the solution is known to be optimal.
    """

    options: Indices
    multiplier: float
    gap: float


def hull(cost: Costs, loss: Losses) -> list[int]:
    """Return which points of a curve of rising cost and falling loss lie on its lower convex hull.

    Examples
    --------
    >>> hull(np.array([1, 2, 3]), np.array([9.0, 8.0, 0.0]))
    [0, 2]
    """
    kept: list[int] = []
    costs, losses = cost.tolist(), loss.tolist()
    for i in range(len(costs)):
        while len(kept) > 1:
            a, b = kept[-2:]
            if (losses[a] - losses[b]) * (costs[i] - costs[a]) > (losses[a] - losses[i]) * (costs[b] - costs[a]):
                break
            kept.pop()
        kept.append(i)
    return kept


def choose(costs: Sequence[Costs], losses: Sequence[Losses], budget: int) -> Choice:
    """Return the options of least total loss whose costs add up to `budget` at most.

    Parameters
    ----------
    costs, losses : sequences of arrays
        Of the options of each class, in order of rising cost and falling loss, without ties.
    budget : int
        No less than the sum of the least costs.

    Notes
    -----
    Exact as long as no more than `MAX_PARTIAL` partial solutions are of interest at a time. Where there are more, those
    of least bound are kept, and `gap` bounds what was lost. Costs O(N log N) for N options, and O(MAX_PARTIAL) for
    each option that is left open.

    Examples
    --------
    >>> costs, losses = [np.array([1, 2]), np.array([1, 3])], [np.array([5.0, 1.0]), np.array([9.0, 0.0])]
    >>> choose(costs, losses, budget=4).options.tolist()
    [0, 1]
    """
    start, multiplier = _by_slopes(costs, losses, budget)
    spare = budget - sum(int(cost[i]) for cost, i in zip(costs, start, strict=True))
    if multiplier == 0:
        return Choice(start, 0.0, 0.0)
    moves = [
        _Moves.of(number, cost, loss, i, multiplier)
        for number, (cost, loss, i) in enumerate(zip(costs, losses, start, strict=True))
        if len(cost) > 1
    ]
    moves.sort(key=lambda move: (move.next_best, move.number))
    search = _Search(spare, multiplier, size=sum(float(np.abs(loss).max()) for loss in losses))
    search.run(moves)
    options = start.copy()
    for number, option in search.best_moves():
        options[number] = option
    return Choice(options, multiplier, max(0.0, search.best) if search.cut else 0.0)


def _by_slopes(costs: Sequence[Costs], losses: Sequence[Losses], budget: int) -> tuple[Indices, float]:
    """Return the solution that takes steps along the hulls, steepest first, until one does not fit, and its slope."""
    steps = []
    for number, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        corners = hull(cost, loss)
        for a, b in zip(corners, corners[1:], strict=False):
            slope = float(loss[a] - loss[b]) / int(cost[b] - cost[a])
            steps.append((-slope, number, int(cost[b] - cost[a]), b))
    steps.sort()
    options = np.zeros(len(costs), np.intp)
    left = budget - sum(int(cost[0]) for cost in costs)
    for falling, number, extra, option in steps:
        if extra > left:
            return options, -falling
        options[number], left = option, left - extra
    return options, 0.0


class _Moves(NamedTuple):
    """What a class can do instead of its option in the first solution, which comes first: extra costs, and r >= 0."""

    number: int
    options: Indices
    cost: Costs
    lost: Losses

    @classmethod
    def of(cls, number: int, cost: Costs, loss: Losses, start: int, multiplier: float) -> _Moves:
        cost, loss = cost - cost[start], loss - loss[start]
        lost = np.maximum(loss + multiplier * cost, 0.0)
        order = np.argsort(lost, kind="stable")
        order = np.concatenate([[start], order[order != start]])
        return cls(number, order, cost[order], lost[order])

    @property
    def next_best(self) -> float:
        return float(self.lost[1])

    def within(self, gap: float) -> _Moves:
        kept = self.lost <= gap
        return self._replace(options=self.options[kept], cost=self.cost[kept], lost=self.lost[kept])


class _Search:
    """Partial solutions: how much of the budget they leave, what they lose, and where they came from."""

    def __init__(self, spare: int, multiplier: float, size: float) -> None:
        self.multiplier, self.rounding, self.enough = multiplier, ROUNDING * size, ENOUGH * size
        self.spare = np.array([spare], np.int64)
        self.lost = np.zeros(1)
        self.cut = False
        self.best, self._best_at = multiplier * spare, (0, 0)
        self._steps: list[tuple[_Moves, Indices, Indices]] = []

    def run(self, moves: list[_Moves]) -> None:
        """Settle one class after another, those whose second option is nearly as good as the first one first."""
        remaining = self._remaining(moves)
        for move, (most_back, most_spent) in zip(moves, remaining, strict=True):
            if move.next_best > self.best + self.rounding or (self.cut and self.best < self.enough):
                break
            self._settle(move.within(self.best + self.rounding), most_back, most_spent)

    def best_moves(self) -> list[tuple[int, int]]:
        """Return the class and the option of each step of the best solution."""
        depth, state = self._best_at
        found = []
        for move, parent, taken in reversed(self._steps[:depth]):
            found.append((move.number, int(move.options[taken[state]])))
            state = int(parent[state])
        return found

    def _remaining(self, moves: list[_Moves]) -> list[tuple[int, int]]:
        """Return how much the classes after each one can give back, and how much they can spend, at most."""
        open_moves = [move.within(self.best + self.rounding) for move in moves]
        low = np.array([move.cost.min() for move in open_moves][1:] + [0], np.int64)
        high = np.array([move.cost.max() for move in open_moves][1:] + [0], np.int64)
        back, spent = -low[::-1].cumsum()[::-1], high[::-1].cumsum()[::-1]
        return list(zip(back.tolist(), spent.tolist(), strict=True))

    def _settle(self, move: _Moves, most_back: int, most_spent: int) -> None:
        """Extend all partial solutions by the options of a class and drop those that cannot lead to the optimum."""
        spare = (self.spare[:, None] - move.cost).ravel()
        lost = (self.lost[:, None] + move.lost).ravel()
        total = lost + self.multiplier * spare  # the loss beyond the bound if nothing else changes
        # sum of r + v * (budget that must stay unused)
        bound = lost + self.multiplier * np.maximum(spare - most_spent, 0)
        least = min(self.best, float(total[spare >= 0].min(initial=np.inf)))
        kept = np.flatnonzero((spare >= -most_back) & (bound <= least + self.rounding))
        kept = kept[np.lexsort((total[kept], -spare[kept]))]
        # In order of falling spare budget, a solution is of use only if it loses less than all before it.
        before = np.minimum.accumulate(np.concatenate([[np.inf], total[kept]]))[:-1]
        kept = kept[total[kept] < before]
        best = kept[np.count_nonzero(spare[kept] >= 0) - 1]
        if len(kept) > MAX_PARTIAL:
            kept = np.union1d(kept[np.argsort(bound[kept], kind="stable")[: MAX_PARTIAL - 1]], [best])
            self.cut = True
        if spare[best] >= 0 and total[best] < self.best:
            self.best, self._best_at = float(total[best]), (len(self._steps) + 1, int(np.flatnonzero(kept == best)[0]))
        parent, taken = np.divmod(kept, len(move.cost))
        self._steps.append((move, parent, taken))
        self.spare, self.lost = spare[kept], lost[kept]
