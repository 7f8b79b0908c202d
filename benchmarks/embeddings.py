"""Codes of embeddings that learn from no data, beside RaBitQ and scalar codes of FAISS: recall by inner products."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

import mcq
import mcq_ext

Floats = NDArray[np.float32]
#: Longer groups lose less, and take words of at most 64 bits.
LONGEST_GROUP, WORD_BITS = 24, 64
RECALL_AT = (1, 10)


def main() -> None:
    """Print one line per code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help=".npy of shape (n, d); rows are brought to length 1")
    parser.add_argument("queries", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--num-queries", type=int, default=500)
    parser.add_argument("--bits", type=float, nargs="+", default=[2, 3, 4])
    parser.add_argument("--seeds", type=int, default=3, help="rotations that each line is a mean over")
    options = parser.parse_args()
    mcq_ext.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    base, queries = normalized(options.base, options.rows), normalized(options.queries, options.num_queries)
    print(f"{base.shape[0]} rows of {base.shape[1]} entries, {len(queries)} queries")
    print(f"{'':22}{'bytes':>7}{'vectors/s':>11}{'slope':>8}" + "".join(f"{f'R@{r}':>8}" for r in RECALL_AT))
    for bits in options.bits:
        for code in (shell(base.shape[1], bits), mcq.TrellisQuantizer(bits, scale="row")):
            for unbiased in (False, True):
                name = f"{code.kind} {bits:g} bits{', unbiased' if unbiased else ''}"
                show(name, base, queries, options.seeds, lambda seed, c=code, u=unbiased: ours(base, c, u, seed))
        if bits == int(bits):
            show(f"RaBitQ {bits:g} bits", base, queries, options.seeds, lambda seed, b=bits: rabitq(base, int(b), seed))
    for kind in ("4bit", "8bit"):
        show(f"SQ {kind}", base, queries, 1, lambda _, k=kind: scalar(base, k))


def normalized(path: Path, rows: int) -> Floats:
    x = np.load(path, mmap_mode="r")[:rows].astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def show(name: str, base: Floats, queries: Floats, seeds: int, make: Callable[[int], tuple[float, float, Any]]) -> None:
    """Print the means over seeds of what `make` returns: bytes, seconds, and a function from queries to products."""
    true = queries @ base.T
    nearest = true.argmax(1)[:, None]
    rows = []
    for seed in range(seeds):
        size, seconds, score = make(seed)
        found = score(queries)
        order = np.argsort(-found, axis=1)[:, : max(RECALL_AT)] == nearest
        # Products of random pairs are near zero: the best ones of each query tell whether they are too small.
        top = np.argsort(-true, axis=1)[:, :10]
        best, estimated = np.take_along_axis(true, top, 1), np.take_along_axis(found, top, 1)
        slope = float((best * estimated).sum() / np.square(best).sum())
        rows.append((size, len(base) / seconds, slope, *(order[:, :r].any(1).mean() for r in RECALL_AT)))
    size, rate, slope, *recalls = np.mean(rows, axis=0)
    print(f"{name:22}{size:7.1f}{rate:11.0f}{slope:8.3f}" + "".join(f"{recall:8.3f}" for recall in recalls), flush=True)


def ours(base: Floats, code: mcq.Quantizer, unbiased: bool, seed: int) -> tuple[float, float, Any]:
    quantizer = mcq.RotatedQuantizer(code, unbiased).fit_normal(base.shape[1], seed=seed)
    start = time.perf_counter()
    codes = quantizer.encode(base)
    seconds = time.perf_counter() - start
    decoded = quantizer.decode(codes)
    return codes.bits().all_in * base.shape[1] / 8, seconds, lambda queries: queries @ decoded.T


def shell(d: int, bits: float) -> mcq.ShellQuantizer:
    """Return the quantizer whose groups fill up rows best and are as long as `bits` allow."""
    groups = -(-d // min(LONGEST_GROUP, int(WORD_BITS / bits)))
    size = -(-d // groups)
    return mcq.ShellQuantizer.of_rate(bits * d / (groups * size), size, "row")


def rabitq(base: Floats, bits: int, seed: int) -> tuple[float, float, Any]:
    d = base.shape[1]
    code = faiss.IndexRaBitQ(d, faiss.METRIC_INNER_PRODUCT, bits)
    code.qb = 0  # queries stay as they are
    rotation = faiss.RandomRotationMatrix(d, d)
    rotation.init(seed)
    return faiss_scores(faiss.IndexPreTransform(rotation, code), code.code_size, base)


def scalar(base: Floats, kind: str) -> tuple[float, float, Any]:
    quantizer = getattr(faiss.ScalarQuantizer, f"QT_{kind}")
    index = faiss.IndexScalarQuantizer(base.shape[1], quantizer, faiss.METRIC_INNER_PRODUCT)
    return faiss_scores(index, index.code_size, base)


def faiss_scores(index: Any, size: int, base: Floats) -> tuple[float, float, Any]:
    index.train(base)
    start = time.perf_counter()
    index.add(base)
    seconds = time.perf_counter() - start

    def score(queries: Floats) -> Floats:
        products, ids = index.search(queries, len(base))
        scores = np.empty_like(products)
        np.put_along_axis(scores, ids, products, 1)
        return scores

    return size, seconds, score


if __name__ == "__main__":
    main()
