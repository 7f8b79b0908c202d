"""Throughput of the kernels on one thread, at each SIMD level of this machine."""

import time
from collections.abc import Callable

import numpy as np

import mcq_ext
from mcq_ext import cpu


def best_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Return the least processor time of some calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    mcq_ext.set_num_threads(1)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    a, h = normal(1536, 576), normal(576, 576)
    unary_a, unary_b, pair = normal(4096, 256), normal(4096, 256), normal(256, 256)
    x, codebook = normal(100_000, 8), normal(256, 8)
    quad = np.einsum("kg,kg->k", codebook, codebook)
    codes = rng.integers(256, size=(1536, 72, 2)).astype(np.uint16)
    books, ones = normal(2, 256, 8), np.ones((1536, 72), np.float32)
    words = codes.reshape(1536, -1)
    packed = cpu.pack_bits(words, 11)
    work = {
        "pair_search: 1e9 candidates/s": (lambda: cpu.pair_search(unary_a, unary_b, pair), 4096 * 65536),
        "assign: 1e9 distances/s": (lambda: cpu.assign(x, codebook, quad), 100_000 * 256),
        "matmul: 1e9 multiply-adds/s": (lambda: cpu.matmul(a, h), 1536 * 576 * 576),
        "decode: 1e9 entries/s": (lambda: cpu.decode(codes, books, ones), 1536 * 576),
        "scatter_add: 1e9 entries/s": (lambda: cpu.scatter_add(codes, a, ones, 256), 1536 * 576),
        "pack_bits (11): 1e9 words/s": (lambda: cpu.pack_bits(words, 11), words.size),
        "unpack_bits (11): 1e9 words/s": (lambda: cpu.unpack_bits(packed, 11, words.shape[1]), words.size),
    }
    levels = mcq_ext.simd_levels()
    print(f"{'kernel':<32}" + "".join(f"{level:>10}" for level in levels))
    for name, (call, amount) in work.items():
        rates = []
        for level in levels:
            mcq_ext.set_simd_level(level)
            rates.append(amount / best_seconds(call) / 1e9)
        print(f"{name:<32}" + "".join(f"{rate:10.2f}" for rate in rates))


if __name__ == "__main__":
    main()
