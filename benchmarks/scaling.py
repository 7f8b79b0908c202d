"""Seconds of a fit against the number of rows and of layers: both must grow linearly, columns with a Gram faster."""

import argparse
import time

import numpy as np

import mcq


def seconds(rows: int, columns: int, layers: int = 1) -> float:
    """Return the time of fitting `layers` random matrices under a random Gram."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2 * columns, columns), dtype=np.float32)
    metric = mcq.Gram(inputs.T @ inputs)
    weights = [rng.standard_normal((rows, columns), dtype=np.float32) for _ in range(layers)]
    start = time.perf_counter()
    for weight in weights:
        mcq.AdditiveQuantizer(2, 8, 8, "row").fit_encode(weight, metric)
    return time.perf_counter() - start


def main() -> None:
    """Print three tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    seconds(512, 512)
    for title, cases in {
        "rows": [(n, 512, 1) for n in (512, 1024, 2048, 4096, 8192)],
        "layers": [(512, 512, count) for count in (1, 2, 4, 8)],
        "columns": [(1024, d, 1) for d in (256, 512, 1024, 2048)],
    }.items():
        print(f"{title:>8} {'seconds':>8} {'per million weights':>20}")
        for rows, columns, layers in cases:
            taken = seconds(rows, columns, layers)
            value = {"rows": rows, "layers": layers, "columns": columns}[title]
            print(f"{value:>8} {taken:8.2f} {taken / (rows * columns * layers) * 1e6:20.3f}", flush=True)


if __name__ == "__main__":
    main()
