"""Memory that kernels work in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Floats of a cache line, and what tables of entries are padded to.
PAD = 16


def empty(*shape: int) -> NDArray[np.float32]:
    """Allocate on a cache line: 512-bit loads that straddle two lines halve the speed of the searches."""
    size = math.prod(shape)
    raw = np.empty(size + PAD, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)
