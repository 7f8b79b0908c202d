"""Error against bits on real layers: relaxed codebooks, codebooks in 8 bits, outliers, a budget shared by all layers.

The input is that of `layers.py`. "Loss" is the relative error times 4 to the power of the bits per entry: equal for
codes that are equally good at different sizes, as a bit more per entry divides the error by about four.
"""

import argparse
import time

import numpy as np
from layers import GRAMS

import mcq

HEADER = (
    f"{'layer':>10} {'codes':>34} {'payload':>8} {'all-in':>7} {'error':>9} {'loss, payload':>14} {'loss, all-in':>13}"
)


def settings() -> dict[str, mcq.Quantizer]:
    """Return quantizers by name: groups of 8 and row scales."""
    found: dict[str, mcq.Quantizer] = {}
    for dtype in ("float16", "int8"):
        for size, bits in [(1, 8), (1, 9), (2, 6), (2, 8), (3, 6), (3, 7)]:
            found[f"{size} x {bits}, {dtype}"] = mcq.AdditiveQuantizer(size, bits, 8, "row", codebook_dtype=dtype)
        for extents in [(1, 0.1), (1, 0.25), (1, 0.05, 0.05), (1, 0.1, 0.02)]:
            name = f"{len(extents)} x 8, extents {', '.join(map(str, extents))}, {dtype}"
            found[name] = mcq.RelaxedQuantizer(len(extents), 8, 8, "row", extents=extents, codebook_dtype=dtype)
    for fraction in (0.0025, 0.005, 0.01):
        inner = mcq.AdditiveQuantizer(1, 8, 8, "row", codebook_dtype="int8")
        found[f"1 x 8, int8, outliers {fraction}"] = mcq.OutlierQuantizer(inner, fraction)
    return found


def compare(layer: str, weight: np.ndarray, metric: mcq.Metric) -> None:
    """Print a line for each setting."""
    for name, quantizer in settings().items():
        codes = quantizer.fit_encode(weight, metric)
        bits, error = quantizer.bits(codes), metric.relative_error(weight, quantizer.decode(codes))
        losses = f"{error * 4**bits.payload:14.4f} {error * 4**bits.all_in:13.4f}"
        print(f"{layer:>10} {name:>34} {bits.payload:8.3f} {bits.all_in:7.3f} {error:9.5f} {losses}", flush=True)


def share(layers: dict[str, tuple[np.ndarray, mcq.Metric]], most: int) -> None:
    """Print what allocation gains over equally many codebooks for all layers, at budgets of these."""
    units = []
    for layer, (weight, metric) in layers.items():
        quantizer = mcq.ResidualQuantizer(most, 8, 8, "row")
        codes = quantizer.fit_encode(weight, metric)
        weight_of_layer = 1 / metric.distortion(weight, np.zeros_like(weight))
        units.append(mcq.residual_curve(layer, quantizer, codes, weight, metric, weight=weight_of_layer))
    entries = sum(weight.size for weight, _ in layers.values())
    for m in range(1, most - 1):
        budget = sum(unit.cost[m] for unit in units)
        start = time.perf_counter()
        found = mcq.allocate(units, budget)
        seconds = time.perf_counter() - start
        print(f"\nall layers in {budget / entries:.2f} bits per entry, all in ({seconds * 1e3:.0f} ms)\n{found}")
        print(" ".join(f"{name} {chosen.setting}" for name, chosen in found.chosen.items()), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--layers", nargs="+", default=["q_proj", "gate_proj"], help="of the first table")
    parser.add_argument("--codebooks", type=int, default=4, help="most codebooks of a layer, in the second table")
    options = parser.parse_args()
    data = np.load(options.data)
    layers = {
        layer: (data[name], mcq.Gram(data[f"gram.{gram}"]))
        for layer, gram in GRAMS.items()
        for name in data
        if f"{layer}.weight" in name
    }
    print(HEADER)
    for layer in options.layers:
        compare(layer, *layers[layer])
    share(layers, options.codebooks)


if __name__ == "__main__":
    main()
