"""Trellis codes: error on normal entries and entries a second, by bits, state bits and length of rows; real layers."""

import argparse
import time

import numpy as np
from pyramid import LAYERS, rate

import mcq
import mcq_ext

BITS = (1, 1.5, 2, 2.5, 3, 4)
STATE_BITS = (10, 12, 14, 16)
LENGTHS = (32, 64, 128, 256, 576, 1536)
FOR_LAYERS = [(2, 12, 256), (2, 16, 64), (2, 16, 256), (2, 16, 1024), (3, 16, 256)]


def error_of(quantizer: mcq.TrellisQuantizer, x: np.ndarray) -> float:
    return mcq.Identity().distortion(x, quantizer.decode(quantizer.fit_encode(x))) / x.size


def print_settings(rng: np.random.Generator, entries: int, repeats: int) -> None:
    print("unit normal, rows of 4096: D, dB above the limit, encode and decode in M entries/s of one core")
    x = rng.standard_normal((entries // 4096, 4096), np.float32)
    for bits in BITS:
        for state_bits in STATE_BITS:
            quantizer = mcq.TrellisQuantizer(bits, state_bits)
            error = error_of(quantizer, x)
            few, codes = x[:2], quantizer.encode(x)
            speeds = rate(few.size, repeats, quantizer.encode, few), rate(x.size, repeats, quantizer.decode, codes)
            decibels = 10 * np.log10(error * 4**bits)
            print(f"{bits:4} {state_bits:3} {error:8.5f} {decibels:5.2f} {speeds[0]:7.2f} {speeds[1]:7.1f}", flush=True)


def print_lengths(rng: np.random.Generator, entries: int) -> None:
    print("\nunit normal, 12 bits a state: D times 4^bits by length of rows")
    for bits in (1, 2, 3, 4):
        errors = [
            error_of(mcq.TrellisQuantizer(bits, 12), rng.standard_normal((entries // d, d), np.float32)) * 4**bits
            for d in LENGTHS
        ]
        print(bits, " ".join(f"{d}: {error:.3f}" for d, error in zip(LENGTHS, errors, strict=True)), flush=True)


def print_layers(path: str) -> None:
    print("\nrelative error of a layer with row scales, as it is and rotated, all-in bits, seconds of a fit")
    data = np.load(path)
    for layer, inputs in LAYERS.items():
        weight, metric = data[f"{layer}.weight"].astype(np.float32), mcq.Gram(data[f"gram.{inputs}"])
        rotation = mcq.Hadamard(weight.shape[1], seed=0)
        for bits, state_bits, width in FOR_LAYERS:
            quantizer = mcq.TrellisQuantizer(bits, state_bits, "row", width)
            errors = []
            for x, h in ((weight, metric), (rotation.apply(weight), rotation.apply_metric(metric))):
                start = time.thread_time()
                codes = quantizer.fit_encode(x, h)
                seconds = time.thread_time() - start
                errors.append(h.relative_error(x, quantizer.decode(codes)))
            options, all_in = f"{bits} bits, {state_bits} a state, {width} paths", quantizer.bits(codes).all_in
            print(
                f"{layer:>17} {options}: {errors[0]:.4f} rotated {errors[1]:.4f} {all_in:.2f} {seconds:6.1f}",
                flush=True,
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1 << 18)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", help="the .npz of layers.py")
    options = parser.parse_args()
    mcq_ext.set_num_threads(1)
    rng = np.random.default_rng(0)
    print_settings(rng, options.entries, options.repeats)
    print_lengths(rng, options.entries)
    if options.layers:
        print_layers(options.layers)


if __name__ == "__main__":
    main()
