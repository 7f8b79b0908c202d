"""The kernels of pyramids and shells in NumPy: what each of them computes, addition by addition.

Every function has a twin of the same name and signature in `mcq_ext.cpu_lattice`, where the parameters are described.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Points = NDArray[np.int16]
Ranks = NDArray[np.uint64]
Gains = NDArray[np.uint8]

#: Newton steps of a search in a pyramid, and the pulses that it moves one by one.
SHIFT_STEPS = 8
FEW_PULSES = 2
FAR = np.float32(1e30)
#: What is worse than anything.
PAD_COST = np.float32(3.0e38)
HALF = np.float32(0.5)


def pyramid_search(x: Floats, inverse: Floats, gains: Floats, weights: Floats, pulses: int) -> tuple[Points, Gains]:
    """See `mcq_ext.cpu_lattice.pyramid_search`."""
    scaled = np.abs(x) * inverse[:, None]
    candidates = [_nearest_in_pyramid(scaled * _reciprocal(s), weights, pulses) for s in gains]
    return _take_best(x, scaled, gains, weights, candidates)


def _nearest_in_pyramid(a: Floats, weights: Floats, pulses: int) -> Floats:
    """Return magnitudes: a shifted rounding, then one pulse at a time where it costs least."""
    spread, shift = np.float32(1) / weights, np.zeros(len(a), np.float32)
    low = np.full(len(a), -FAR)
    high = -low
    y, left, slope = _shifted_rounding(a, spread, shift, pulses)
    for _ in range(SHIFT_STEPS):
        low, high = np.where(left > 0, shift, low), np.where(left < 0, shift, high)
        step = shift + left / (slope + np.float32(1))
        step = np.where((low < step) & (step < high), step, (low + high) * HALF)
        shift = np.where(np.abs(left) > FEW_PULSES, step, shift)
        y, left, slope = _shifted_rounding(a, spread, shift, pulses)
    rows = np.arange(len(a))
    while left.any():
        step = np.sign(left)[:, None]
        gained = weights * (step * (a - y) - HALF)
        gained[y + step < 0] = -PAD_COST
        y[rows, gained.argmax(1)] += step[:, 0]
        left -= step[:, 0]
    return y


def _shifted_rounding(a: Floats, spread: Floats, shift: Floats, pulses: int) -> tuple[Floats, Floats, Floats]:
    y = np.trunc(np.clip(a + shift[:, None] * spread + HALF, 0, pulses)).astype(np.float32)
    slope = np.zeros(len(a), np.float32)
    for column, rate in zip(y.T, spread, strict=True):
        slope += np.where(column > 0, rate, np.float32(0))
    return y, pulses - y.sum(1), slope


def _reciprocal(gain: np.float32) -> np.float32:
    return np.float32(1) / gain if gain > 0 else np.float32(0)


def _take_best(
    x: Floats, scaled: Floats, gains: Floats, weights: Floats, candidates: list[Floats]
) -> tuple[Points, Gains]:
    """Return, of one candidate for each gain, those that cost least, signed as `x`; costs lack sum w x^2."""
    costs = []
    for gain, y in zip(gains, candidates, strict=True):
        a, cost = scaled * _reciprocal(gain), np.zeros(len(x), np.float32)
        for i, w in enumerate(weights):
            cost += w * (y[:, i] * (y[:, i] - np.float32(2) * a[:, i]))
        costs.append(cost * (gain * gain))
    best = np.array(costs).argmin(0)
    magnitudes = np.array(candidates)[best, np.arange(len(x))]
    return np.copysign(magnitudes, x).astype(np.int16), best.astype(np.uint8)


def leader_search(x: Floats, leaders: Floats, factor: Floats) -> tuple[Points, Floats]:
    """See `mcq_ext.cpu_lattice.leader_search`."""
    a, place = np.abs(x), np.tile(np.arange(x.shape[1]), (len(x), 1))
    for i, j in _exchanges(x.shape[1]):
        swap = (a[:, j] > a[:, i])[:, None]
        a[:, [i, j]] = np.where(swap, a[:, [j, i]], a[:, [i, j]])
        place[:, [i, j]] = np.where(swap, place[:, [j, i]], place[:, [i, j]])
    products = np.zeros((len(x), len(leaders)), np.float32)
    for i, column in enumerate(leaders.T):
        products += a[:, i, None] * column
    chosen = (products * factor).argmax(1)
    y = np.empty(x.shape, np.float32)
    np.put_along_axis(y, place, leaders[chosen], axis=1)
    return np.copysign(y, x).astype(np.int16), products[np.arange(len(x)), chosen]


def _exchanges(size: int) -> list[tuple[int, int]]:
    """Return the comparisons of Batcher's sorting network (Knuth, volume 3, algorithm 5.2.2M)."""
    top = 1
    while 2 * top < size:
        top *= 2
    pairs, p = [], top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(size - d) if i & p == r]
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2
    return pairs


def shell_search(x: Floats, inverse: Floats, gains: Floats, weights: Floats, squared_norm: int) -> tuple[Points, Gains]:
    """See `mcq_ext.cpu_lattice.shell_search`."""
    scaled = np.abs(x) * inverse[:, None]
    candidates = [_nearest_in_shell(scaled * _reciprocal(s), weights, squared_norm) for s in gains]
    return _take_best(x, scaled, gains, weights, candidates)


def _nearest_in_shell(a: Floats, weights: Floats, squared_norm: int) -> Floats:
    """Return magnitudes by a table of the least cost of the first entries for every budget."""
    n, width = a.shape
    least = np.full((n, squared_norm + 1), PAD_COST)
    least[:, 0] = 0
    chosen = np.zeros((width, n, squared_norm + 1), np.intp)
    for i, w in enumerate(weights):
        rest = least.copy()
        for m in range(1, int(squared_norm**0.5) + 1):
            size = np.float32(m)
            cost = w * (size * (size - np.float32(2) * a[:, i]))
            candidate = rest[:, : squared_norm + 1 - m * m] + cost[:, None]
            better = candidate < least[:, m * m :]
            least[:, m * m :][better] = candidate[better]
            chosen[i, :, m * m :][better] = m
    y, rows, budget = np.empty(a.shape, np.float32), np.arange(n), np.full(n, squared_norm)
    for i in reversed(range(width)):
        y[:, i] = m_chosen = chosen[i, rows, budget]
        budget -= m_chosen**2
    return y


def budget_search(x: Floats, inverse: Floats, factor: Floats, budget: int, squared: bool) -> Points:
    """See `mcq_ext.cpu_lattice.budget_search`."""
    n, width = x.shape
    spent = [m for m in (m * m if squared else m for m in range(budget + 1)) if m <= budget]
    cost = np.full((n, budget + 1), PAD_COST)
    cost[:, 0] = 0
    fed, chosen = np.zeros((n, budget + 1, width), np.float32), np.zeros((width, n, budget + 1), np.float32)
    limit = np.float32(1e15)
    target = np.clip(x * inverse[:, None], -limit, limit)
    for i, row in enumerate(factor):
        centre = target[:, i, None] + fed[:, :, i] / row[i]
        best = np.full((n, budget + 1), np.inf, np.float32)
        source = np.zeros((n, budget + 1), np.intp)
        for m, used in enumerate(spent):
            distance = np.abs(centre[:, : budget + 1 - used]) - np.float32(m)
            candidate = cost[:, : budget + 1 - used] + row[i] * row[i] * (distance * distance)
            better = candidate < best[:, used:]
            best[:, used:][better] = candidate[better]
            chosen[i, :, used:][better] = m
            source[:, used:][better] = np.broadcast_to(np.arange(budget + 1 - used), better.shape)[better]
        y = np.where(np.take_along_axis(centre, source, 1) < 0, -chosen[i], chosen[i])
        fed = np.take_along_axis(fed, source[:, :, None], 1) + row * (target[:, i, None] - y)[:, :, None]
        chosen[i], cost = y, best
    points, left, rows = np.empty(x.shape, np.int16), np.full(n, budget), np.arange(n)
    for i in reversed(range(width)):
        points[:, i] = chosen[i, rows, left]
        size = np.abs(points[:, i].astype(np.intp))
        left -= size**2 if squared else size
    return points


def lattice_rank(y: Points, before: Ranks, budget: int, squared: bool) -> Ranks:
    """See `mcq_ext.cpu_lattice.lattice_rank`."""
    rank, left = np.zeros(len(y), np.uint64), np.full(len(y), budget)
    for i, column in enumerate(y.T.astype(np.intp)):
        table, size = before[y.shape[1] - i], np.abs(column)
        rank += table[left, size + 1] + np.where(column < 0, table[left, 0], np.uint64(0))
        left -= size**2 if squared else size
    return rank


def lattice_unrank(rank: Ranks, before: Ranks, budget: int, squared: bool) -> Points:
    """See `mcq_ext.cpu_lattice.lattice_unrank`."""
    width = before.shape[0] - 1
    y = np.empty((len(rank), width), np.int16)
    rest, left, rows = rank.copy(), np.full(len(rank), budget), np.arange(len(rank))
    for i in range(width):
        table = before[width - i][left]
        negative = rest >= table[:, 0]
        rest -= np.where(negative, table[:, 0], np.uint64(0))
        size = (table[:, 1:] > rest[:, None]).sum(1)
        rest -= table[rows, size + 1]
        left -= size**2 if squared else size
        y[:, i] = np.where(negative, -size, size)
    return y
