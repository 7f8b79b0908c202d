"""Scales: one factor for a row or a group, stored in float16."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcq.problem import Problem
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Scale = Literal["none", "row", "group"]

FLOAT16_MAX = float(np.finfo(np.float16).max)


def start_scale(problem: Problem, kind: Scale) -> Floats:
    """Return factors of shape (n, 1) or, for groups, (n, G): root mean squares, or ones for "none"."""
    n = len(problem.x)
    if kind == "none":
        return np.ones((n, 1), np.float32)
    parts = problem.x.reshape(n, 1 if kind == "row" else problem.num_groups, -1)
    return stored_scale(np.sqrt(np.mean(np.square(parts, dtype=np.float64), axis=2)))


def stored_scale(scale: NDArray[np.floating]) -> Floats:
    """Round factors to what float16 holds."""
    return to_float16(scale).astype(np.float32)


def to_float16(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """Round to float16; what is beyond its range goes to its end."""
    return np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)


def reciprocal(values: Floats) -> Floats:
    """Return 1 / values, and 0 where they are 0: what has no size is divided by nothing."""
    return np.divide(1, values, out=np.zeros_like(values), where=values != 0)


def refit_scale(problem: Problem, codes: Words, codebooks: Floats, scale: Floats, kind: Scale) -> Floats:
    """Return the factors that minimise the distortion for given codes and codebooks, of the shape of `scale`."""
    if kind == "none":
        return scale
    if kind == "row":
        return rescaled_rows(problem, cpu.decode(codes, codebooks, np.broadcast_to(scale, codes.shape[:2])), scale)
    return _refit_groups(problem, codes, codebooks, scale)


def rescaled_rows(problem: Problem, x_hat: Floats, scale: Floats) -> Floats:
    """Return the factors of rows (n, 1) that minimise the distortion, where `scale` gave the reconstruction `x_hat`."""
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
