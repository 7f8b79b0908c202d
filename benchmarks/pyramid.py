"""Pyramids and shells: error on normal and Laplacian entries, and entries a second of each step on one core."""

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import mcq
import mcq_ext
from mcq.lattices import nearest_direction

PYRAMID, SHELL = mcq.PyramidQuantizer, mcq.ShellQuantizer
LAYERS = {"self_attn.q_proj": "attn_in", "mlp.gate_proj": "mlp_in", "mlp.down_proj": "down_in"}
ADDITIVE = mcq.AdditiveQuantizer
FOR_LAYERS = [
    (ADDITIVE, (2, 8, 8)),
    (PYRAMID, (16, 11, 1)),
    (SHELL, (8, 12, 1)),
    (SHELL, (16, 19, 1)),
    (SHELL, (24, 27, 1)),
    (ADDITIVE, (3, 8, 8)),
    (SHELL, (16, 76, 3)),
]
SETTINGS = [
    ("normal", PYRAMID, (16, 11, 1)),
    ("normal", PYRAMID, (16, 23, 3)),
    ("normal", PYRAMID, (16, 48, 4)),
    ("normal", PYRAMID, (24, 16, 2)),
    ("normal", SHELL, (8, 12, 1)),
    ("normal", SHELL, (16, 19, 1)),
    ("normal", SHELL, (24, 27, 1)),
    ("normal", SHELL, (16, 39, 2)),
    ("normal", SHELL, (16, 76, 3)),
    ("laplace", PYRAMID, (16, 11, 1)),
    ("laplace", PYRAMID, (24, 16, 2)),
    ("laplace", PYRAMID, (16, 23, 3)),
    ("laplace", SHELL, (24, 27, 1)),
]


def rate(count: int, repeats: int, function: Callable[..., object], *arguments: object) -> float:
    """Return millions of `count` a second of processor time, the best of some calls after one to warm up."""
    function(*arguments)
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        function(*arguments)
        times.append(time.thread_time() - start)
    return count / min(times) / 1e6


def plain_greedy(folder: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """Compile greedy.c and return the search."""
    library = Path(folder) / "greedy.so"
    source = Path(__file__).with_name("greedy.c")
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    function = ctypes.CDLL(str(library)).greedy_search

    def search(x: np.ndarray, pulses: int) -> np.ndarray:
        y = np.empty(x.shape, np.int16)
        pointers = x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p)
        function(*pointers, ctypes.c_size_t(len(x)), ctypes.c_size_t(x.shape[1]), pulses)
        return y

    return search


def print_settings(rng: np.random.Generator, entries: int, repeats: int) -> None:
    print("encode and decode in M entries/s; D with gains learned, and with those of theory")
    print(f"{'source':>8} {'setting':>22} {'bits':>6} {'D':>8} {'theory':>8} {'dB':>5} {'encode':>7} {'decode':>7}")
    for source, kind, options in SETTINGS:
        shape = entries // options[0], options[0]
        x = rng.standard_normal(shape) if source == "normal" else rng.laplace(scale=2**-0.5, size=shape)
        x = x.astype(np.float32)
        q, theory = kind(*options), kind(*options, gains="theory")
        codes = q.fit_encode(x)
        error = mcq.Identity().distortion(x, q.decode(codes)) / x.size
        other = mcq.Identity().distortion(x, theory.decode(theory.fit_encode(x))) / x.size
        speeds = rate(x.size, repeats, q.encode, x), rate(x.size, repeats, q.decode, codes)
        print(
            f"{source:>8} {f'{q.kind} {options}':>22} {q.rate:6.3f} {error:8.5f} {other:8.5f} "
            f"{10 * np.log10(error * 4**q.rate):5.2f} {speeds[0]:7.1f} {speeds[1]:7.1f}"
        )


def print_steps(rng: np.random.Generator, entries: int, repeats: int) -> None:
    print("\nM entries/s of each step")
    for kind, options in ((PYRAMID, (16, 11, 1)), (SHELL, (16, 19, 1)), (SHELL, (24, 27, 1))):
        lattice = kind(*options).lattice
        x = rng.standard_normal((entries // lattice.group_size, lattice.group_size), np.float32)
        inverse, gains = np.ones(len(x), np.float32), np.array([0.8, 1.1], np.float32)
        y, _ = lattice.nearest(x, inverse, gains)
        ranks = lattice.rank(y)
        for level in mcq_ext.simd_levels():
            mcq_ext.set_simd_level(level)
            search = rate(x.size, repeats, lattice.nearest, x, inverse, gains)
            rank, unrank = rate(x.size, repeats, lattice.rank, y), rate(x.size, repeats, lattice.unrank, ranks)
            print(f"{kind.kind:>8} {options} {level:>9}  search {search:6.1f}  rank {rank:6.1f}  unrank {unrank:6.1f}")


def print_angles(rng: np.random.Generator, entries: int, repeats: int) -> None:
    print("\nM vectors/s by angle, and the mean of 1 - cos^2")
    with tempfile.TemporaryDirectory() as folder:
        for name, search in (("exact", nearest_direction), ("greedy, plain C", plain_greedy(folder))):
            for size, pulses in ((16, 8), (16, 11), (16, 16)):
                x = rng.standard_normal((entries // size, size), np.float32)
                y = search(x, pulses).astype(np.float64)
                cosine2 = (x * y).sum(1) ** 2 / np.square(x, dtype=np.float64).sum(1) / np.square(y).sum(1)
                speed = rate(len(x), repeats, search, x, pulses)
                print(f"{name:>16} ({size}, {pulses}) {speed:6.2f} {1 - cosine2.mean():.5f}")


def print_layers(path: str) -> None:
    """Relative errors of real weights under their Grams, as they are and rotated, beside additive codes."""
    print("\nrelative error of a layer, all-in bits, seconds of the fit")
    data = np.load(path)
    for layer, inputs in LAYERS.items():
        weight, metric = data[f"{layer}.weight"].astype(np.float32), mcq.Gram(data[f"gram.{inputs}"])
        rotation = mcq.Hadamard(weight.shape[1], seed=0)
        rotated, rotated_metric = rotation.apply(weight), rotation.apply_metric(metric)
        for kind, options in FOR_LAYERS:
            quantizer, start = kind(*options, scale="row"), time.perf_counter()
            codes = quantizer.fit_encode(weight, metric)
            seconds, bits = time.perf_counter() - start, quantizer.bits(codes).all_in
            error = metric.relative_error(weight, quantizer.decode(codes))
            codes = quantizer.fit_encode(rotated, rotated_metric)
            other = rotated_metric.relative_error(rotated, quantizer.decode(codes))
            name = f"{kind.kind} {options}"
            print(f"{layer:>17} {name:>21} {error:.4f} rotated {other:.4f} {bits:.2f} {seconds:6.2f}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", help="the .npz of layers.py")
    options = parser.parse_args()
    mcq_ext.set_num_threads(1)
    rng = np.random.default_rng(0)
    print_settings(rng, options.entries, options.repeats)
    print_steps(rng, options.entries, options.repeats)
    print_angles(rng, options.entries, options.repeats)
    if options.layers:
        print_layers(options.layers)


if __name__ == "__main__":
    main()
