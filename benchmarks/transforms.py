"""Milliseconds of the randomised Hadamard transform beside a copy of the same array, out of place.

Into given memory: the kernel beside a copy that as many threads share. Into new memory: `Hadamard.apply`, which also
checks its input and makes its signs, beside `x.copy()`. Calls take turns; ratios are medians over the turns.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import mcq_ext
from mcq.transforms import Hadamard
from mcq_ext import cpu
from mcq_ext.threads import split


def milliseconds(repeats: int, *calls: Callable[[], object]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least time of each of some calls, and the median of its ratio to the first."""
    times = np.empty((repeats + 1, len(calls)))
    for row in times:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[i] = 1e3 * (time.perf_counter() - start)
    times = times[1:]
    return times.min(0), np.median(times / times[:, :1], axis=0)


def print_width(level: str, rows: int, width: int, repeats: int) -> None:
    """Print a line of the table."""
    rotation = Hadamard(width)
    x = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
    signs, out = rotation.signs, cpu.hadamard(x, rotation.signs)
    (copy, there, back), (_, ratio, back_ratio) = milliseconds(
        repeats,
        lambda: split(lambda i, j: np.copyto(out[i:j], x[i:j]), rows),
        lambda: cpu.hadamard(x, signs, False, out),
        lambda: cpu.hadamard(x, signs, True, out),
    )
    (new_copy, apply), (_, apply_ratio) = milliseconds(repeats, x.copy, lambda: rotation.apply(x))
    given = f"{copy:6.2f} {there:6.2f} {ratio:5.1f} {back:6.2f} {back_ratio:5.1f}"
    print(f"{level:>9} {width:>6} | {given} | {new_copy:6.2f} {apply:6.2f} {apply_ratio:5.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 1024, 1536, 4096, 11008, 16384])
    options = parser.parse_args()
    mcq_ext.set_num_threads(options.threads)
    print(f"{'':16} |   copy rotate ratio   undo ratio |   copy  apply ratio")
    for level in mcq_ext.simd_levels():
        mcq_ext.set_simd_level(level)
        for width in options.widths:
            print_width(level, options.rows, width, options.repeats)


if __name__ == "__main__":
    main()
