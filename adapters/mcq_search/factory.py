"""Building an index of vectors in one call."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike

from mcq.errors import ConfigError, InputError
from mcq.quantizer import Progress
from mcq.validate import in_range
from mcq_search.codebooks import Codebooks, Floats
from mcq_search.description import Description
from mcq_search.faiss_build import METRICS
from mcq_search.faiss_fill import calibration_of, stored_norms
from mcq_search.index import Index, nearest
from mcq_search.layout import Layout, Metric
from mcq_search.rows import Rows, as_rows, sample_rows
from mcq_search.store import new_store

#: Rows from which an index learns, at least this number and at least so many per inverted list.
TRAINING_ROWS = 1 << 16
ROWS_PER_LIST = 64
KMEANS_ROUNDS = 20


def build_index(
    x: Rows | ArrayLike,
    factory: str,
    metric: Metric = "l2",
    seed: int = 0,
    *,
    ids: ArrayLike | None = None,
    learn: Rows | ArrayLike | None = None,
    training_rows: int | None = None,
    progress: Progress | None = None,
) -> Index:
    """Learn an index from vectors and put them in it.

    Parameters
    ----------
    x : array-like of shape (n, d)
        Anything that gives rows for a slice, such as an array, a memory map, or what `open_vectors` returns.
    factory : str
        What to build, see `Description.parse`: for instance ``"IVF1024,AQ8x8"``.
    metric : "l2" or "ip"
        Squared distance, or inner product (of normalised vectors: the cosine).
    seed : int
    ids : array-like of shape (n,), integers, optional
        Default: 0, 1, 2, ...
    learn : array-like of shape (m, d), optional
        Vectors from which centroids and codebooks are learned; default: `x`.
    training_rows : int, optional
        How many of these rows, chosen at random; default: 65,536, or 64 per list.
    progress : callable, optional
        Called as ``progress(done, total)`` with the rows that are in the index.

    Raises
    ------
    ConfigError
        If `factory` cannot be built.
    InputError
        If `x` or `learn` is empty, not finite or of another width than the other, or `ids` repeat.

    Notes
    -----
    Time and memory of learning are bounded by `training_rows`; everything after it is one pass over the rows.

    References
    ----------
    Jegou, Douze and Schmid, Product quantization for nearest neighbor search, TPAMI 2011.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    >>> index = build_index(x, "IVF4,RQ2x6,Refine")
    >>> distances, ids = index.search(x[:2], k=3, nprobe=4, rerank=50)
    >>> len(index), ids[:, 0].tolist()
    (500, [0, 1])
    """
    description = Description.parse(factory)
    norm = description.norm_for(metric)
    rows, seed = as_rows(x), in_range(seed, 0, (1 << 31) - 1, "seed")
    if training_rows is None:
        training_rows = max(TRAINING_ROWS, ROWS_PER_LIST * (description.lists or 0))
    source, name = (rows, "x") if learn is None else (as_rows(learn, name="learn"), "learn")
    if source.shape[1] != rows.shape[1]:
        raise InputError(f"learn must have the {rows.shape[1]} columns of x, got shape {tuple(source.shape)}")
    training = sample_rows(source, in_range(training_rows, 1, None, "training_rows"), np.random.default_rng(seed), name)
    coarse = None
    residuals, lists = training, None
    if description.lists is not None:
        coarse = _centroids(training, description.lists, seed)
        lists = nearest(training, coarse)
        residuals = training - coarse[lists]
    quantizer = description.quantizer()
    codes = quantizer.fit_encode(residuals, seed=seed)
    layout = Layout.of(Codebooks.of(quantizer, training.shape[1]), description.kind, metric, norm, coarse)
    norms = stored_norms(layout.codebooks, codes, layout.norm_centroids, lists)
    store = new_store(description.refine, training.shape[1], METRICS[metric], training)
    index = Index(description, layout, quantizer, calibration_of(norms), store)
    index.add(rows, ids, progress=progress)
    return index


def _centroids(x: Floats, count: int, seed: int) -> Floats:
    if not 1 <= count <= len(x):
        raise ConfigError(f"IVF{count} needs at least {count} vectors to learn from and a list at least, got {len(x)}")
    kmeans: Any = faiss.Kmeans(
        x.shape[1], count, niter=KMEANS_ROUNDS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    kmeans.train(x)
    return kmeans.centroids
