"""Held-out error per entry on a unit Gaussian in groups of 8; the rate-distortion limit at b bits is 4 ** -b."""

import argparse
import time

import numpy as np

import mcq


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=400_000)
    parser.add_argument("--held-out", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    train = rng.standard_normal((options.train, 8), dtype=np.float32)
    held_out = rng.standard_normal((options.held_out, 8), dtype=np.float32)
    print(f"{'codebooks':>10} {'quantizer':>10} {'held out':>9} {'limit':>8} {'fit s':>7} {'encode rows/s':>14}")
    for num_codebooks in (1, 2, 3, 4):
        for kind in (mcq.AdditiveQuantizer, mcq.ResidualQuantizer):
            start = time.perf_counter()
            quantizer = kind(num_codebooks, 8, 8, rounds=options.rounds).fit(train)
            fitted = time.perf_counter()
            codes = quantizer.encode(held_out)
            encoded = time.perf_counter()
            error = mcq.Identity().distortion(held_out, quantizer.decode(codes)) / held_out.size
            print(
                f"{num_codebooks:>10} {quantizer.kind:>10} {error:9.5f} {4.0**-num_codebooks:8.5f} "
                f"{fitted - start:7.1f} {options.held_out / (encoded - fitted):14.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
