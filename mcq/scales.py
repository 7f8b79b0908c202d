"""Scales: one factor for a row or a group, stored in float16 in units of a power of two."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcq.problem import Problem
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Scale = Literal["none", "row", "group"]


def rms(x: Floats) -> float:
    """Return the root of the mean square of all entries."""
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64))))


def power_of_two_near(value: float) -> float:
    """Return the power of two nearest to `value` on a logarithmic scale; 1 for zero."""
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0


def start_scale(problem: Problem, scale: Scale, gain: float) -> Floats:
    """Return factors of shape (n, 1) or, for groups, (n, G): root mean squares, or `gain` for "none"."""
    n = len(problem.x)
    if scale == "none":
        return np.full((n, 1), gain, np.float32)
    parts = problem.x.reshape(n, 1 if scale == "row" else problem.num_groups, -1)
    return stored_scale(np.sqrt(np.mean(np.square(parts, dtype=np.float64), axis=2)), gain)


def stored_scale(scale: NDArray[np.floating], gain: float) -> Floats:
    """Round factors to what float16 holds in units of `gain`."""
    units = np.clip(scale / gain, -FLOAT16_MAX, FLOAT16_MAX)
    return units.astype(np.float16).astype(np.float32) * np.float32(gain)


def refit_scale(problem: Problem, codes: Words, codebooks: Floats, scale: Floats, kind: Scale) -> Floats:
    """Return the factors that minimise the distortion for given codes and codebooks, of the shape of `scale`."""
    if kind == "none":
        return scale
    return (_refit_rows if kind == "row" else _refit_groups)(problem, codes, codebooks, scale)


FLOAT16_MAX = float(np.finfo(np.float16).max)


def _refit_rows(problem: Problem, codes: Words, codebooks: Floats, scale: Floats) -> Floats:
    """All factors in closed form."""
    x_hat = cpu.decode(codes, codebooks, np.broadcast_to(scale, codes.shape[:2]))
    weighted = problem.metric.apply(x_hat)
    slope = np.einsum("nd,nd->n", problem.x, weighted)[:, None]
    curvature = np.einsum("nd,nd->n", x_hat, weighted)[:, None]
    return scale * np.divide(slope, curvature, out=np.ones_like(slope), where=curvature > 0)


def _refit_groups(problem: Problem, codes: Words, codebooks: Floats, scale: Floats) -> Floats:
    """Each factor optimal given the others, one group after another."""
    g, scale = problem.group_size, scale.copy()
    error = problem.x - cpu.decode(codes, codebooks, scale)
    shape = cpu.decode(codes, codebooks, np.broadcast_to(np.float32(1), scale.shape))
    for j in range(problem.num_groups):
        own = slice(j * g, (j + 1) * g)
        weighted = cpu.matmul(shape[:, own], problem.metric.block(own))
        curvature = np.einsum("ng,ng->n", shape[:, own], weighted)
        slope = np.einsum("ng,ng->n", shape[:, own], problem.metric.apply(error, own))
        step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        scale[:, j] += step
        error[:, own] -= step[:, None] * shape[:, own]
    return scale
