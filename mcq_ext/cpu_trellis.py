"""The kernels of trellis codes on the CPU; see `mcq_ext.cpu` for what all of them share.

Every function has a twin of the same name and signature in `mcq_ext.reference_trellis`. A row of d entries is coded in
one string of bits, little-endian; `offset` (d + 1,), uint32, tells at which bit the L bits begin that entry j depends
on. Entry j adds offset[j + 1] - offset[j] bits of its own, 1 to 5, the lowest of these L; offset[0] is 0. `value`
(2^L,), float32, has the value of every state, as these L bits are called; L is at least 9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq_ext import _core
from mcq_ext.scratch import PAD, empty
from mcq_ext.threads import split

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Offsets = NDArray[np.uint32]

#: Columns whose feedback a beam sums together, and how many older ones its paths may disagree in.
BLOCK, WINDOW = 16, 48


def trellis_search(x: Floats, inverse: Floats, offset: Offsets, value: Floats, weight: Floats) -> Bytes:
    """Return the codes (n, bytes) that minimise sum_j w_j (inverse x_j - v_j)^2 for the values v of their states.

    Parameters
    ----------
    x : array of shape (n, d)
    inverse : array of shape (n,)
        One over the scale of each row.
    offset : array of shape (d + 1,)
    value : array of shape (2^L,)
    weight : array of shape (d,)
    """
    packed = _rows_of(len(x), offset)
    fewest = int(np.diff(offset).min())

    def rows(i: int, j: int) -> None:
        scratch, member = empty(2 * len(value)), np.empty((x.shape[1], len(value) >> fewest), np.uint8)
        _core.trellis_search(x[i:j], inverse[i:j], offset, value, weight, packed[i:j], scratch, member)

    if len(x):
        split(rows, len(x))
    return packed


def trellis_beam(
    x: Floats, inverse: Floats, offset: Offsets, value: Floats, weight: Floats, feedback: Floats, width: int
) -> Bytes:
    """Return codes (n, bytes) for which sum_j w_j (e_j + sum over i > j of e_i f_ij)^2 is small, e = inverse x - v.

    Parameters
    ----------
    x, inverse, offset, value, weight
        As in `trellis_search`.
    feedback : array of shape (d, d)
        f, of which entries below the diagonal count.
    width : int
        Paths that are kept, at most 65,535.
    """
    packed, d = _rows_of(len(x), offset), x.shape[1]
    reversed_ = np.zeros((d, -(-d // PAD) * PAD), np.float32)
    reversed_[:, :d] = feedback[::-1, ::-1]

    def rows(i: int, j: int) -> None:
        scratch = empty(width * (4 * BLOCK + 3 * WINDOW + 2 * 32 + 4) + d + 2 * PAD)
        _core.trellis_beam(x[i:j], inverse[i:j], offset, value, weight, reversed_, width, packed[i:j], scratch)

    if len(x):
        split(rows, len(x))
    return packed


def trellis_decode(packed: Bytes, offset: Offsets, value: Floats, scale: Floats) -> Floats:
    """Return the values (n, d) of codes (n, bytes), times `scale` (n,)."""
    out = np.empty((len(packed), len(offset) - 1), np.float32)

    def rows(i: int, j: int) -> None:
        scratch = np.empty(packed.shape[1] + 4, np.uint8)
        _core.trellis_decode(packed[i:j], offset, value, scale[i:j], out[i:j], scratch)

    if len(packed):
        split(rows, len(packed))
    return out


def _rows_of(n: int, offset: Offsets) -> Bytes:
    return np.empty((n, -(-int(offset[-1]) // 8)), np.uint8)
