"""The kernels of trellis codes in NumPy: what each of them computes, addition by addition.

Every function has a twin of the same name and signature in `mcq_ext.cpu_trellis`, where the parameters are described.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Offsets = NDArray[np.uint32]

BLOCK, WINDOW = 16, 48
LARGEST_TARGET = np.float32(1e15)


def trellis_search(x: Floats, inverse: Floats, offset: Offsets, value: Floats, weight: Floats) -> Bytes:
    """See `mcq_ext.cpu_trellis.trellis_search`."""
    (n, d), states, rows = x.shape, len(value), np.arange(len(x))
    cost = np.full((n, states), np.inf, np.float32)
    cost[:, 0] = 0
    base, member = np.zeros(n, np.float32), [np.empty(0)] * d
    target = np.clip(x * inverse[:, None], -LARGEST_TARGET, LARGEST_TARGET)
    widths = np.diff(offset.astype(np.intp))
    for j in reversed(range(d)):
        members = cost.reshape(n, 1 << widths[j], states >> widths[j])
        member[j], best = members.argmin(1), members.min(1)
        error = target[:, j, None] - value
        cost = np.repeat(best - base[:, None], 1 << widths[j], axis=1) + weight[j] * (error * error)
        base = best.min(1) - base
    state, codes = cost.argmin(1), np.empty((n, d), np.intp)
    for j, k in enumerate(widths):
        codes[:, j], group = state & ((1 << k) - 1), state >> k
        state = group | member[j][rows, group] * (states >> k)
    return _packed(codes, offset)


def trellis_beam(
    x: Floats, inverse: Floats, offset: Offsets, value: Floats, weight: Floats, feedback: Floats, width: int
) -> Bytes:
    """See `mcq_ext.cpu_trellis.trellis_beam`."""
    codes, widths = np.empty(x.shape, np.intp), (offset[1:] - offset[:-1]).astype(np.intp)
    for row, (x_row, factor) in enumerate(zip(x, inverse, strict=True)):
        entries = np.clip(x_row * factor, -LARGEST_TARGET, LARGEST_TARGET)
        codes[row] = _beam(entries, widths, value, weight, feedback, width)
    return _packed(codes, offset)


def _beam(
    x: Floats, widths: NDArray[np.intp], value: Floats, weight: Floats, feedback: Floats, width: int
) -> NDArray[np.intp]:
    """Return the codes of one row. Paths keep all their codes and errors, entries in the order of the row."""
    d = len(x)
    cost, state = np.zeros(1, np.float32), np.zeros(1, np.intp)
    codes, error = np.zeros((1, d), np.intp), np.zeros((1, d), np.float32)
    for p, j in enumerate(reversed(range(d))):
        if p % BLOCK == 0:
            if p > WINDOW:
                oldest = slice(d - p + WINDOW, d)
                agree = (codes[:, oldest] == codes[cost.argmin(), oldest]).all(1)
                cost[~agree] = np.inf
            block = slice(max(0, j + 1 - BLOCK), j + 1)
            fed = np.zeros((len(cost), block.stop - block.start), np.float32)
            for i in reversed(range(j + 1, d)):
                fed += error[:, i, None] * feedback[i, block]
        k = widths[j]
        target = np.clip(x[j] + fed[:, j - block.start], -LARGEST_TARGET, LARGEST_TARGET)
        follower = ((state << k) & (len(value) - 1))[:, None] + np.arange(1 << k)
        part = target[:, None] - value[follower]
        candidate = (cost[:, None] + weight[j] * (part * part)).ravel()
        chosen = np.sort(candidate.argsort(kind="stable")[:width])
        path = chosen >> k
        cost, state = candidate[chosen] - candidate.min(), follower.ravel()[chosen]
        codes, error = codes[path], error[path]
        codes[:, j], error[:, j] = chosen & ((1 << k) - 1), x[j] - value[state]
        fed = fed[path] + error[:, j, None] * feedback[j, block]
    return codes[cost.argmin()]


def trellis_decode(packed: Bytes, offset: Offsets, value: Floats, scale: Floats) -> Floats:
    """See `mcq_ext.cpu_trellis.trellis_decode`."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : int(offset[-1])]
    window = len(value).bit_length() - 1
    bits = np.pad(bits, ((0, 0), (0, window))).astype(np.intp)
    place = offset[:-1, None] + np.arange(window)
    return value[bits[:, place] @ (1 << np.arange(window))] * scale[:, None]


def _packed(codes: NDArray[np.intp], offset: Offsets) -> Bytes:
    bits = np.zeros((len(codes), int(offset[-1])), np.uint8)
    for j, (start, stop) in enumerate(zip(offset, offset[1:], strict=False)):
        bits[:, start:stop] = codes[:, j, None] >> np.arange(stop - start) & 1
    return np.packbits(bits, axis=1, bitorder="little")
