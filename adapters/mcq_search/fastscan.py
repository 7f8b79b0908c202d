"""The order of 4-bit codes that FAISS scans with one shuffle instruction per table.

A block holds 32 vectors. For every pair of codes, that is for every byte of the flat code, it holds 16 bytes for the
first code and then 16 for the second. Byte j of these has the code of vector ``ORDER[j]`` in its low half and that of
vector ``ORDER[j] + 16`` in its high half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq.errors import InputError

BLOCK = 32
#: 0, 8, 1, 9, ...: what the 16-bit lanes of two halves of a register hold after they were widened.
ORDER = np.arange(16).reshape(2, 8).T.ravel()

Bytes = NDArray[np.uint8]


def pack_blocks(packed: Bytes, num_columns: int) -> Bytes:
    """Return flat 4-bit codes in blocks of 32 vectors.

    Parameters
    ----------
    packed : array of shape (n, b), uint8
        Two codes to a byte, the first in its low half.
    num_columns : int
        Codes of a vector in a block, even, at least those in `packed`; what is missing is zero.

    Returns
    -------
    array of shape (ceil(n / 32), 16 * num_columns), uint8

    Raises
    ------
    InputError
        If `num_columns` is odd or too small.

    References
    ----------
    Andre, Kermarrec and Le Scouarnec, Cache locality is not enough: high-performance nearest neighbor search with
    product quantization fast scan, VLDB 2015.

    Examples
    --------
    >>> blocks = pack_blocks(np.full((1, 1), 0x21, np.uint8), 2)
    >>> blocks.shape, blocks[0, 0], blocks[0, 16]
    ((1, 32), np.uint8(1), np.uint8(2))
    """
    n, size = packed.shape
    if num_columns % 2 or num_columns < 2 * size:
        raise InputError(
            f"blocks of codes of {size} bytes need an even number of at least {2 * size} columns, got {num_columns}"
        )
    count = -(-n // BLOCK)
    padded = np.zeros((count * BLOCK, num_columns // 2), np.uint8)
    padded[:n, :size] = packed
    halves = np.stack([padded & 15, padded >> 4], axis=-1).reshape(count, 2, 16, num_columns // 2, 2)
    low, high = halves[:, 0, ORDER], halves[:, 1, ORDER]
    return np.ascontiguousarray(np.moveaxis(low | high << 4, 1, -1)).reshape(count, -1)


def unpack_blocks(blocks: Bytes, n: int) -> Bytes:
    """Return the flat codes (n, num_columns / 2) of `blocks`, as `pack_blocks` takes them.

    Examples
    --------
    >>> packed = np.arange(80, dtype=np.uint8).reshape(40, 2)
    >>> np.array_equal(unpack_blocks(pack_blocks(packed, 4), 40), packed)
    True
    """
    count = len(blocks)
    codes = np.moveaxis(blocks.reshape(count, -1, 2, 16), -1, 1)
    halves = np.empty((count, 2, *codes.shape[1:]), np.uint8)
    halves[:, 0, ORDER], halves[:, 1, ORDER] = codes & 15, codes >> 4
    rows = halves.reshape(count * BLOCK, -1, 2)[:n]
    return np.ascontiguousarray(rows[..., 0] | rows[..., 1] << 4)
