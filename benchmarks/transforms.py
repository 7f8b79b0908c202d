"""Seconds of the randomised Hadamard transform beside a copy of the same array, out of place, on one thread."""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import mcq_ext
from mcq.transforms import Hadamard
from mcq_ext import cpu


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the least time of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    mcq_ext.set_num_threads(1)
    print(f"{'level':>9} {'width':>6} {'copy ms':>8} {'rotate ms':>10} {'ratio':>6} {'undo ms':>8}")
    for level in mcq_ext.simd_levels():
        mcq_ext.set_simd_level(level)
        for width in (576, 1024, 1536, 4096, 11008, 16384):
            x = np.random.default_rng(0).standard_normal((options.rows, width), dtype=np.float32)
            signs = Hadamard(width).signs
            out = cpu.hadamard(x, signs)
            copy = best_seconds(partial(np.copyto, out, x), options.repeats)
            there = best_seconds(partial(cpu.hadamard, x, signs, False, out), options.repeats)
            back = best_seconds(partial(cpu.hadamard, x, signs, True, out), options.repeats)
            print(
                f"{level:>9} {width:>6} {1e3 * copy:8.2f} {1e3 * there:10.2f} {there / copy:6.1f} {1e3 * back:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
