"""A small thread pool that splits rows.

No OpenMP: its runtimes clash between wheels (torch, faiss, scikit-learn each ship one). Kernels release the GIL, so
Python threads are enough; a round trip costs some ten microseconds, hence small work stays on the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

#: Rows are cut at multiples of this, the tile of the search kernels.
TILE = 8

_pool: ThreadPoolExecutor | None = None
_num_threads = 0


def num_threads() -> int:
    """Return the number of threads that kernels use."""
    global _num_threads
    if _num_threads == 0:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted = os.environ.get("MCQ_NUM_THREADS") or str(available)
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"MCQ_NUM_THREADS must be an integer of at least 1, got {wanted!r}")
        set_num_threads(int(wanted))
    return _num_threads


def set_num_threads(n: int) -> None:
    """Set the number of threads that kernels use; results do not depend on it.

    Raises
    ------
    ValueError
        If `n` is less than 1.
    """
    global _num_threads, _pool
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    if _pool is not None:
        _pool.shutdown(wait=True)
    _pool = None
    _num_threads = n


def split(work: Callable[[int, int], None], count: int) -> None:
    """Call ``work(start, stop)`` over ``range(count)`` cut into one part per thread, each at least `TILE` long."""
    global _pool
    parts = min(num_threads(), max(1, count // TILE))
    if parts == 1:
        work(0, count)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="mcq")
    tiles = -(-count // TILE)
    bounds = [min(count, tiles * p // parts * TILE) for p in range(parts + 1)]
    others = [_pool.submit(work, a, b) for a, b in zip(bounds[1:], bounds[2:], strict=False) if a < b]
    work(bounds[0], bounds[1])
    for future in others:
        future.result()


def _forget_pool() -> None:
    """Drop the pool in a forked child, whose threads did not survive the fork."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
