"""Recall, bytes and speed of codes, beside those of FAISS trained in the same run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import ConfigError, InputError
from mcq.io import replacing
from mcq.quantizer import Progress, ignore_progress
from mcq.validate import as_matrix, in_range
from mcq_search.description import Description
from mcq_search.factory import build_index
from mcq_search.faiss_build import METRICS
from mcq_search.faiss_fill import code_size
from mcq_search.index import DEFAULT_NPROBE
from mcq_search.layout import Metric
from mcq_search.rows import CHUNK, Floats

#: A result counts if the true nearest neighbour is among the first so many.
RANKS = (1, 10, 100)
MAX_BYTES = 64
#: Of the picture: colours that the colour-blind can tell apart, strong ones first.
COLOURS = ("#0072b2", "#d55e00", "#7f7f7f", "#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "v", "D", "P")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mcq",
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 6,
}


@dataclass(frozen=True)
class Result:
    """What one code reached.

    Attributes
    ----------
    code : str
        Factory string.
    maker : "mcq" or "FAISS"
    size : int
        Bytes of a vector, its norm included.
    recall : tuple of float
        1-recall@R for R in `RANKS`: the share of queries whose true nearest neighbour is among the first R results.
    queries_per_second : float
    build_seconds : float
        Training and encoding.
    """

    code: str
    maker: str
    size: int
    recall: tuple[float, ...]
    queries_per_second: float
    build_seconds: float


class Built(NamedTuple):
    """An index to measure: queries -> rows found (m, 100), and bytes per vector."""

    search: Callable[[Floats], NDArray[np.int64]]
    size: int


def standard_codes(size: int, metric: Metric) -> tuple[list[str], list[str]]:
    """Return codes of mcq and codes of FAISS that take `size` bytes per vector, norms included.

    Examples
    --------
    >>> standard_codes(8, "l2")
    (['AQ7x8', 'RQ7x8'], ['PQ8x8', 'OPQ8,PQ8x8', 'RQ7x8_Nqint8', 'LSQ7x8_Nqint8'])
    """
    in_range(size, 2, MAX_BYTES, "bytes per vector")
    count, norm = (size - 1, "_Nqint8") if metric == "l2" else (size, "_Nnone")
    ours = [f"AQ{count}x8", f"RQ{count}x8"]
    return ours, [f"PQ{size}x8", f"OPQ{size},PQ{size}x8", f"RQ{count}x8{norm}", f"LSQ{count}x8{norm}"]


def bench(
    base: ArrayLike,
    queries: ArrayLike,
    codes: Sequence[str] = (),
    baselines: Sequence[str] = (),
    metric: Metric = "l2",
    *,
    learn: ArrayLike | None = None,
    nprobe: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Result]:
    """Build an index of `base` for each code, and search it.

    Parameters
    ----------
    base : array-like of shape (n, d)
    queries : array-like of shape (m, d)
    codes : sequence of str
        Factory strings of `build_index`.
    baselines : sequence of str
        Factory strings of FAISS.
    metric : "l2" or "ip"
    learn : array-like of shape (l, d), optional
        Vectors to learn codes from; default: `base`.
    nprobe : int, optional
        Lists to visit, where there are any; default: 16.
    seed : int
    progress : callable, optional
        Called as ``progress(done, total)`` after each code.

    Returns
    -------
    list of Result

    Raises
    ------
    ConfigError
        If a factory string cannot be built.
    InputError
        If an array is empty, not finite, of another width, or has less than 100 rows to find.

    Notes
    -----
    The truth is found by comparing all pairs, O(n m d). FAISS wants widths that its slices divide: both sides get the
    vectors padded with zeros for its sake, which changes no distance.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    >>> (result,) = bench(x, x[:20], ["RQ2x4"])
    >>> result.size, len(result.recall)
    (2, 3)
    """
    x, q = as_matrix(base, "base"), as_matrix(queries, "queries")
    if len(x) < RANKS[-1] or x.shape[1] != q.shape[1]:
        raise InputError(
            f"base must have at least {RANKS[-1]} rows, and queries as many columns, got {x.shape} and {q.shape}"
        )
    for code in codes:
        Description.parse(code).norm_for(metric)
    for code in baselines:
        _faiss_index(code, x.shape[1], metric)
    training = x if learn is None else as_matrix(learn, "learn")
    if training.shape[1] != x.shape[1]:
        raise InputError(f"learn must have the {x.shape[1]} columns of base, got shape {training.shape}")
    truth = faiss.knn(q, x, 1, metric=METRICS[metric])[1]
    results = []
    for maker, build, wanted in (("mcq", _ours, codes), ("FAISS", _theirs, baselines)):
        for code in wanted:
            results.append(_measure(code, maker, partial(build, code, training, x, metric, nprobe, seed), q, truth))
            (progress or ignore_progress)(len(results), len(codes) + len(baselines))
    return results


def table(results: Sequence[Result]) -> str:
    """Return results as a text table.

    Examples
    --------
    >>> print(table([Result("AQ7x8", "mcq", 8, (0.25, 0.75, 1.0), 1000.0, 2.0)]))
    code   maker  bytes  R@1    R@10   R@100  queries/s  build s
    AQ7x8  mcq        8  0.250  0.750  1.000       1000      2.0
    """
    width = max([len("code"), *(len(result.code) for result in results)])
    ranks = "".join(f"{f'R@{rank}':<7}" for rank in RANKS)
    lines = [f"{'code':<{width}}  maker  bytes  {ranks}queries/s  build s"]
    for result in results:
        recall = "".join(f"{value:<7.3f}" for value in result.recall)
        lines.append(
            f"{result.code:<{width}}  {result.maker:<5}  {result.size:>5}  {recall}"
            f"{result.queries_per_second:>9.0f}  {result.build_seconds:>7.1f}"
        )
    return "\n".join(lines)


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuse a picture that cannot be drawn, before the work that it is to show; errors as `plot`."""
    if find_spec("matplotlib") is None:
        raise ConfigError("a plot needs matplotlib; run: pip install 'multicodebook[plot]'")
    if not os.fspath(path).endswith(".svg"):
        raise InputError(f"a plot must be written to a file that ends in .svg, got {os.fspath(path)}")


def plot(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Draw recall against bytes and against queries per second to an .svg file.

    Codes that differ in their sizes only are joined by a line.

    Raises
    ------
    ConfigError
        If matplotlib is missing.
    InputError
        If `path` does not end in .svg.
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), replacing(path) as temporary:
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, (name, group) in enumerate(_series(results).items()):
            is_ours = group[0].maker == "mcq"
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            style |= {"linestyle": "-", "linewidth": 2} if is_ours else {"linestyle": "--", "markerfacecolor": "white"}
            recall = [result.recall[0] for result in group]
            left.plot([result.size for result in group], recall, label=name, **style)
            right.plot([result.queries_per_second for result in group], recall, **style)
        left.set(xlabel="bytes per vector", ylabel="1-recall@1")
        left.set_xticks(sorted({result.size for result in results}))
        right.set(xlabel="queries per second")
        right.set_xlim(left=0)
        right.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _series(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return what is joined by a line under its name: codes of one maker that differ in their sizes only."""
    series: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.size):
        alike = [other for other in results if _family(other) == _family(result)]
        is_line = len({other.size for other in alike}) == len(alike) > 1
        series.setdefault(_family(result) if is_line else f"{result.maker} {result.code}", []).append(result)
    return {name: series[name] for name in sorted(series, key=lambda name: series[name][0].maker != "mcq")}


def _family(result: Result) -> str:
    """Return maker and code without sizes and norm."""
    return f"{result.maker} {re.sub(r'[0-9]+(x[0-9]+)*', '', result.code.partition('_')[0])}"


def _ours(code: str, learn: Floats, x: Floats, metric: Metric, nprobe: int | None, seed: int) -> Built:
    index = build_index(x, code, metric, seed, learn=learn)
    visited = None if index.lists is None else nprobe
    return Built(lambda queries: index.search(queries, RANKS[-1], nprobe=visited)[1], index.bytes_per_vector)


def _theirs(code: str, learn: Floats, x: Floats, metric: Metric, nprobe: int | None, seed: int) -> Built:
    index = _faiss_index(code, x.shape[1], metric)
    x = _padded(x, index.d)
    index.train(_padded(learn, index.d))
    # In parts, because residual quantizers of FAISS take memory for all rows at once.
    for start in range(0, len(x), CHUNK):
        index.add(x[start : start + CHUNK])
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.nprobe = min(nprobe or DEFAULT_NPROBE, inverted.nlist)
    return Built(lambda queries: index.search(_padded(queries, index.d), RANKS[-1])[1], code_size(index))


def _faiss_index(code: str, d: int, metric: Metric) -> Any:
    """Return an untrained index, wide enough to be cut into as many slices as `code` says."""
    slices = re.search(r"PQ(\d+)|P(?:RQ|LSQ)(\d+)x\d+x", code)
    parts = int(slices[1] or slices[2]) if slices else 1
    try:
        return faiss.index_factory(-(-d // parts) * parts, code, METRICS[metric])
    except RuntimeError as error:
        raise ConfigError(f"FAISS cannot build {code!r}: {str(error).splitlines()[-1]}") from None


def _padded(x: Floats, width: int) -> Floats:
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def _measure(code: str, maker: str, build: Callable[[], Built], queries: Floats, truth: NDArray[np.int64]) -> Result:
    start = time.perf_counter()
    search, size = build()
    build_seconds = time.perf_counter() - start
    search(queries[:1])  # an index may put itself together at the first search
    start = time.perf_counter()
    found = search(queries)
    seconds = time.perf_counter() - start
    recall = tuple(float((found[:, :rank] == truth).any(axis=1).mean()) for rank in RANKS)
    return Result(code, maker, size, recall, len(queries) / seconds, build_seconds)
