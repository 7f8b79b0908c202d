"""The vectors that an index keeps beside their codes, to look again at what a search found."""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from mcq.errors import InputError

Refine = Literal["none", "float", "SQ8"]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def new_store(refine: Refine, d: int, metric: int, training: Floats | None = None) -> Any:
    """Return an empty FAISS index of flat codes, its ranges learned from `training` (n, d); None for "none".

    Parameters
    ----------
    refine : "none", "float" or "SQ8"
        Whether to keep vectors, as float32, or as a byte per entry between the least and largest of each column.
    d : int
    metric : int
        FAISS' number of the metric.
    training : array of shape (n, d), float32, optional
        Without it, SQ8 is not usable until `restore` gave it ranges.
    """
    if refine == "none":
        return None
    if refine == "float":
        return faiss.IndexFlat(d, metric)
    store = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, metric)
    if training is not None:
        store.train(training)
    return store


def contents(store: Any) -> dict[str, NDArray[Any]]:
    """Return what must be saved of a store: its rows as bytes, and the ranges of SQ8."""
    arrays = {"vectors": faiss.vector_to_array(store.codes).reshape(store.ntotal, store.code_size)}
    if isinstance(store, faiss.IndexScalarQuantizer):
        arrays["ranges"] = faiss.vector_to_array(store.sq.trained)
    return arrays


def restore(store: Any, vectors: Bytes, ranges: Floats | None) -> None:
    """Give a new store what `contents` returned.

    Raises
    ------
    InputError
        If the arrays have other shapes or types.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    >>> store = new_store("SQ8", 4, faiss.METRIC_L2, x)
    >>> store.add(x)
    >>> again = new_store("SQ8", 4, faiss.METRIC_L2)
    >>> restore(again, **contents(store))
    >>> np.array_equal(again.reconstruct_n(0, 5), store.reconstruct_n(0, 5))
    True
    """
    if vectors.dtype != np.uint8 or vectors.ndim != 2 or vectors.shape[1] != store.code_size:
        raise InputError(
            f"stored vectors must be bytes of shape (n, {store.code_size}), got {vectors.dtype} of {vectors.shape}"
        )
    if isinstance(store, faiss.IndexScalarQuantizer):
        if ranges is None or ranges.dtype != np.float32 or ranges.shape != (2 * store.d,):
            raise InputError(f"ranges of stored vectors must be float32 of shape ({2 * store.d},)")
        faiss.copy_array_to_vector(ranges, store.sq.trained)
        store.is_trained = True
    if len(vectors):
        store.add_sa_codes(np.ascontiguousarray(vectors))
