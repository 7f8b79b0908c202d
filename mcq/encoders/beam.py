"""Beam search over the codebooks of one group, on tables only.

Keeps the `width` cheapest partial choices after each codebook, in their order, so that every prefix of the result is a
sensible code: the encoder of residual quantizers (Liu et al. 2015; Babenko and Lempitsky 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mcq.energy import Energy
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Rows searched at once; bounds the unary tables to ROWS * K floats.
ROWS = 4096


def beam_search(energy: Energy, target: Floats, width: int) -> Words:
    """Return codes (n, M) for targets (n, g), already multiplied by the metric.

    Notes
    -----
    Costs O(n M^2 K width / 2) and memory O(M K^2) for one pair table.
    """
    num_codebooks = len(energy.codebooks)
    pairs = [energy.pair(m) for m in range(num_codebooks)]
    out = np.empty((len(target), num_codebooks), np.uint16)
    for start in range(0, len(target), ROWS):
        rows = target[start : start + ROWS]
        codes, cost = np.empty((len(rows), 1, 0), np.uint16), np.zeros((len(rows), 1), np.float32)
        for m in range(num_codebooks):
            parent, entry, cost = cpu.beam_step(energy.unary(rows, m), pairs[m], codes, cost, width)
            chosen = np.take_along_axis(codes, parent[:, :, None].astype(np.intp), axis=1)
            codes = np.concatenate([chosen, entry[:, :, None]], axis=2)
        out[start : start + ROWS] = codes[:, 0]
    return out
