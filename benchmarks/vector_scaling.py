"""Seconds and memory of encoding whole vectors against their number: time must grow linearly, memory stay bounded."""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mcq
import mcq_ext
from mcq.quantizer import Quantizer

Floats = NDArray[np.float32]
#: Standard deviation of the noise on rows that are repeated, relative to that of the data.
NOISE = 0.05
CHUNK = 1 << 14
MAKERS: dict[str, Callable[[int, int], Quantizer]] = {
    "additive": lambda count, bits: mcq.AdditiveQuantizer(count, bits, None, rounds=1),
    "residual": lambda count, bits: mcq.ResidualQuantizer(count, bits, None, rounds=1),
    "product": lambda count, bits: mcq.ProductQuantizer(count, 1, bits, rounds=1),
}


def main() -> None:
    """Print one line for each quantizer, size and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("learn", type=Path, help=".npy of shape (n, d)")
    parser.add_argument("base", type=Path, help=".npy; rows are repeated with noise where more are wanted")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sizes", nargs="+", default=["8x8", "4x12"], help="codebooks x bits")
    parser.add_argument("--kinds", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    options = parser.parse_args()
    learn = np.load(options.learn).astype(np.float32)
    print(f"threads {mcq_ext.num_threads()}; memory beyond the vectors themselves")
    print(f"{'':16}{'size':>6}{'vectors':>10}{'seconds':>10}{'vectors/s':>11}{'extra MB':>10}", flush=True)
    for size in options.sizes:
        count, bits = map(int, size.split("x"))
        for kind in options.kinds:
            quantizer = MAKERS[kind](count, bits).fit(learn)
            for n in options.rows:
                seconds, extra = measure(quantizer, repeated(np.load(options.base), n))
                print(f"{kind:16}{size:>6}{n:10}{seconds:10.1f}{n / seconds:11.0f}{extra / 1e6:10.0f}", flush=True)


def repeated(base: NDArray[np.generic], n: int) -> Floats:
    """Return n rows of `base` in turn, in float32, with noise that tells them apart."""
    rng, out = np.random.default_rng(0), np.empty((n, base.shape[1]), np.float32)
    noise = np.float32(NOISE * base.std())
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n))
        out[rows] = base[rows % len(base)] + noise * rng.standard_normal((len(rows), base.shape[1]), np.float32)
    return out


def measure(quantizer: Quantizer, x: Floats) -> tuple[float, int]:
    """Return the seconds of an encode, and the bytes that the process had beyond what it had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = status("VmRSS"), time.perf_counter()
    quantizer.encode(x)
    return time.perf_counter() - start, status("VmHWM") - before


def status(name: str) -> int:
    """Return a number of bytes that Linux tells of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
