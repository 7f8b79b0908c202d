"""Error and seconds of scalar, companded and grid quantizers on real layers under their input Grams.

The input is that of ``layers.py``: an .npz with weights ``<layer>.weight`` (out, in) and Gram matrices ``gram.*``.
"""

import argparse
import time

import numpy as np

import mcq

GRAMS = {"q_proj": "attn_in", "gate_proj": "mlp_in", "down_proj": "down_in"}
QUANTIZERS = {
    "rounded, 3 bits": mcq.ScalarQuantizer(3, 128, feedback=False),
    "rounded, clipped": mcq.ScalarQuantizer(3, 128, feedback=False, clip=True),
    "GPTQ, 3 bits": mcq.ScalarQuantizer(3, 128),
    "GPTQ, clipped": mcq.ScalarQuantizer(3, 128, clip=True),
    "companded": mcq.CompandedQuantizer(3.15, grid="companded"),
    "uniform": mcq.CompandedQuantizer(3.15, grid="uniform"),
    "Lloyd-Max": mcq.CompandedQuantizer(3.15, grid="lloyd"),
    "best of three": mcq.CompandedQuantizer(3.15),
    "grid 1 x 8": mcq.GridQuantizer(1, 8),
    "grid 2 x 64": mcq.GridQuantizer(2, 64),
    "grid 4 x 4096": mcq.GridQuantizer(4, 4096),
    "GPTQ, 2 bits, clipped": mcq.ScalarQuantizer(2, 128, clip=True),
    "best of three, 2.15": mcq.CompandedQuantizer(2.15),
    "grid 4 x 256": mcq.GridQuantizer(4, 256),
}


def measure(quantizer: mcq.Quantizer, weight: np.ndarray, metric: mcq.Metric, repeats: int) -> tuple[float, ...]:
    """Return all-in bits, relative error, and the least seconds of a fit."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        codes = quantizer.fit_encode(weight, metric)
        times.append(time.perf_counter() - start)
    return quantizer.bits(codes).all_in, metric.relative_error(weight, quantizer.decode(codes)), min(times)


def rotated(quantizer: mcq.Quantizer, weight: np.ndarray, metric: mcq.Metric) -> float:
    """Return the relative error after a two-sided rotation."""
    n, d = weight.shape
    rotation = mcq.Composition([mcq.Hadamard(d), mcq.Hadamard(n, seed=1, axis="rows")])
    turned = rotation.apply_metric(metric)
    decoded = quantizer.decode(quantizer.fit_encode(rotation.apply(weight), turned))
    return metric.relative_error(weight, rotation.invert(decoded))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'layer':>10} {'quantizer':>22} {'all-in':>7} {'error':>8} {'rotated':>8} {'s':>6}")
    with np.load(options.data) as data:
        for layer, gram in GRAMS.items():
            name = next(name for name in data.files if name.endswith(f"{layer}.weight"))
            weight, metric = data[name].astype(np.float32), mcq.Gram(data[f"gram.{gram}"])
            for label, quantizer in QUANTIZERS.items():
                bits, error, seconds = measure(quantizer, weight, metric, options.repeats)
                turned = "" if label.startswith("grid") else f"{rotated(quantizer, weight, metric):.5f}"
                print(f"{layer:>10} {label:>22} {bits:7.3f} {error:8.5f} {turned:>8} {seconds:6.2f}", flush=True)


if __name__ == "__main__":
    main()
