"""Codes of vectors, beside those of FAISS trained in the same run: error, recall, seconds, encoding rate."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

import mcq
import mcq_ext

Floats = NDArray[np.float32]
#: Beam width and search steps of an encode, from fast to thorough.
EFFORTS = ((2, 0), (4, 0), (16, 0), (4, 1), (16, 1), (16, 3), (16, 16))
RECALL_AT = (1, 10, 100)


class Data(NamedTuple):
    """Rows to learn from, rows to code, queries, and the row nearest to each query."""

    learn: Floats
    base: Floats
    queries: Floats
    nearest: NDArray[np.int64]


def main() -> None:
    """Print one line per codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("learn", type=Path, help=".npy of shape (n, d)")
    parser.add_argument("base", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--rounds", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--encode", type=int, default=20_000, help="rows that encoding is timed on")
    parser.add_argument("--skip-lsq", action="store_true", help="FAISS LSQ takes minutes")
    options = parser.parse_args()
    arrays = [
        np.ascontiguousarray(np.load(path), np.float32) for path in (options.learn, options.base, options.queries)
    ]
    data = Data(*arrays, nearest=search(arrays[1], arrays[2], 1)[:, 0])
    print(f"{len(data.learn)} rows to learn, {len(data.base)} to code, threads {mcq_ext.num_threads()}", flush=True)
    print(
        f"{'':32}{'train s':>9}{'vectors/s':>11}{'error':>10}{'relative':>10}"
        + "".join(f"{f'R@{r}':>8}" for r in RECALL_AT)
    )
    for rounds in options.rounds:
        ours(data, options, rounds)
    theirs(data, options)


def ours(data: Data, options: argparse.Namespace, rounds: int) -> None:
    start = time.perf_counter()
    fitted = mcq.AdditiveQuantizer(options.codebooks, group_size=None, rounds=rounds).fit(data.learn)
    seconds = time.perf_counter() - start
    for beam_width, search_steps in EFFORTS:
        quantizer = mcq.AdditiveQuantizer(
            options.codebooks, group_size=None, rounds=rounds, beam_width=beam_width, search_steps=search_steps
        )
        quantizer.arrays = fitted.arrays
        name = f"mcq, {rounds} rounds, search {beam_width}/{search_steps}"
        line(name, seconds, data, options, lambda x, q=quantizer: q.encode(x), quantizer.decode)


def theirs(data: Data, options: argparse.Namespace) -> None:
    d, size = data.learn.shape[1], options.codebooks
    makers: dict[str, Callable[[], Any]] = {}
    if d % size == 0:
        makers["FAISS PQ"] = lambda: faiss.IndexPQ(d, size, 8)
        makers["FAISS OPQ"] = lambda: faiss.index_factory(d, f"OPQ{size},PQ{size}x8")
    for beam in (5, 16):
        makers[f"FAISS RQ beam {beam}"] = lambda beam=beam: residual(d, size, beam)
    if not options.skip_lsq:
        makers["FAISS LSQ"] = lambda: faiss.IndexLocalSearchQuantizer(d, size, 8)
    for name, make in makers.items():
        index, start = make(), time.perf_counter()
        index.train(data.learn)
        line(name, time.perf_counter() - start, data, options, index.sa_encode, index.sa_decode)


def residual(d: int, size: int, beam: int) -> Any:
    index = faiss.IndexResidualQuantizer(d, size, 8)
    index.rq.max_beam_size = beam
    return index


def line(name: str, seconds: float, data: Data, options: argparse.Namespace, encode: Any, decode: Any) -> None:
    start = time.perf_counter()
    encode(data.base[: options.encode])
    rate = options.encode / (time.perf_counter() - start)
    decoded = decode(encode(data.base))
    error = np.square(data.base - decoded, dtype=np.float64).sum(1).mean()
    spread = np.square(data.base - data.base.mean(0), dtype=np.float64).sum(1).mean()
    found = search(decoded, data.queries, max(RECALL_AT)) == data.nearest[:, None]
    recalls = "".join(f"{found[:, :r].any(1).mean():8.3f}" for r in RECALL_AT)
    print(f"{name:32}{seconds:9.1f}{rate:11.0f}{error:10.4g}{error / spread:10.4f}{recalls}", flush=True)


def search(base: Floats, queries: Floats, k: int) -> NDArray[np.int64]:
    index = faiss.IndexFlatL2(base.shape[1])
    index.add(base)
    return index.search(queries, k)[1]


if __name__ == "__main__":
    main()
