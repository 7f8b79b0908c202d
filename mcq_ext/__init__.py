"""Kernels of the multi-codebook quantization library: arrays and integers only, no idea of quantizers.

`cpu` and `reference` have the same functions; the former calls the C kernels, the latter is their slow specification.
"""

import os

from mcq_ext import _core
from mcq_ext.threads import num_threads, set_num_threads

__all__ = ["num_threads", "set_num_threads", "set_simd_level", "simd_level", "simd_levels"]


def simd_levels() -> list[str]:
    """Return the names of the SIMD levels that this build has and this CPU runs, slowest first."""
    return list(_core.levels())


def simd_level() -> str:
    """Return the name of the SIMD level in use."""
    return simd_levels()[_core.level()]


def set_simd_level(name: str) -> None:
    """Use the kernels of one SIMD level; results do not depend on it.

    Raises
    ------
    ValueError
        If this build or this CPU does not have the level.
    """
    available = simd_levels()
    if name not in available:
        raise ValueError(f"SIMD level must be one of {available} on this machine, got {name!r}")
    _core.set_level(available.index(name))


set_simd_level(os.environ.get("MCQ_SIMD") or simd_levels()[-1])
