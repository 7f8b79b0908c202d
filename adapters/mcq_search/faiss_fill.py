"""Putting codes into an index, byte by byte as FAISS would; used for whole indexes and for what is added later."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mcq.codes import Codes
from mcq_search.codebooks import Codebooks, Floats
from mcq_search.fastscan import BLOCK, pack_blocks, unpack_blocks

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]

#: Vectors that are decoded at a time.
CHUNK = 1 << 14
#: Quantiles to which norm encodings are fitted.
CALIBRATION_SIZE = 1025


def quantizer_of(index: Any) -> Any:
    """Return the quantizer of an index that is not wrapped."""
    for name in ("pq", "rq", "lsq", "prq", "plsq"):
        if hasattr(index, name):
            return getattr(index, name)
    raise TypeError(f"{type(index).__name__} has no quantizer")


def code_size(index: Any) -> int:
    """Return the bytes that an index stores for a vector, ids apart."""
    inner: Any = faiss.downcast_index(index)  # owns nothing: `index` must stay
    if isinstance(inner, faiss.IndexRefine):
        return code_size(inner.base_index) + code_size(inner.refine_index)
    if isinstance(inner, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return code_size(inner.index)
    return int(inner.code_size)


def stored_norms(codebooks: Codebooks, codes: Codes, centroids: Floats | None, lists: Integers | None) -> Floats:
    """Return the squared norms (n,) of what `codes` stand for, the centroid (of width S * w) of its list included."""
    norms = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), CHUNK):
        rows = slice(start, start + CHUNK)
        vectors = codebooks.decode(codes[rows].unpack())
        if centroids is not None and lists is not None:
            vectors += centroids[lists[rows]]
        norms[rows] = np.einsum("nd,nd->n", vectors, vectors)
    return norms


def calibration_of(norms: Floats) -> Floats:
    """Return quantiles of `norms`, from the least to the largest: all that norm encodings need to know of them."""
    return np.quantile(norms, np.linspace(0, 1, CALIBRATION_SIZE)).astype(np.float32)


def fill(index: Any, codebooks: Codebooks, codes: Codes, lists: Integers | None, ids: Integers) -> None:
    """Append `codes` (n vectors) to an index that is not wrapped; `ids` count in inverted lists only."""
    if len(codes) == 0:
        return
    is_fast = isinstance(index, (faiss.IndexFastScan, faiss.IndexIVFFastScan))
    packed = _with_norms(index, codebooks, codes, lists, is_fast)
    if lists is not None:
        _fill_lists(index, packed, lists, ids, is_fast)
    elif is_fast:
        _fill_blocks(index, packed)
    else:
        index.add_sa_codes(packed)


def _with_norms(index: Any, codebooks: Codebooks, codes: Codes, lists: Integers | None, is_fast: bool) -> Bytes:
    """Return flat codes (n, code size): those of mcq, followed by the encoded norm if the index stores one."""
    quantizer = quantizer_of(index)
    if codebooks.family == "PQ" or quantizer.norm_bits == 0:
        return codes.packed
    # A fast scan over lists sums up distances to whole vectors, any other one distances to residuals.
    centroids = index.quantizer.reconstruct_n(0, index.nlist) if lists is not None and is_fast else None
    norms = stored_norms(codebooks, codes, centroids, lists)
    words = codes.unpack().reshape(len(codes), -1).astype(np.int32)
    packed = np.zeros((len(codes), quantizer.code_size), np.uint8)
    quantizer.pack_codes(len(codes), faiss.swig_ptr(words), faiss.swig_ptr(packed), -1, faiss.swig_ptr(norms), None)
    return packed


def _fill_lists(index: Any, packed: Bytes, lists: Integers, ids: Integers, is_fast: bool) -> None:
    inverted: Any = faiss.downcast_InvertedLists(index.invlists)
    order = np.argsort(lists, kind="stable")
    numbers, starts = np.unique(lists[order], return_index=True)
    for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
        entries = np.ascontiguousarray(packed[rows])
        if is_fast:
            entries = pack_blocks(entries, index.M2)
        own_ids = np.ascontiguousarray(ids[rows])
        inverted.add_entries(int(number), len(rows), faiss.swig_ptr(own_ids), faiss.swig_ptr(entries))
    index.ntotal = inverted.compute_ntotal()


def _fill_blocks(index: Any, packed: Bytes) -> None:
    """Append to the blocks of a flat fast scan; the last one is taken out and filled up."""
    whole, rest = divmod(index.ntotal, BLOCK)
    size = 16 * index.M2
    if rest:
        last = faiss.rev_swig_ptr(index.codes.get(), (whole + 1) * size)[-size:]
        packed = np.concatenate([unpack_blocks(last[None], rest)[:, : packed.shape[1]], packed])
    blocks = pack_blocks(packed, index.M2)
    index.codes.resize((whole + len(blocks)) * size)
    faiss.rev_swig_ptr(index.codes.get(), (whole + len(blocks)) * size)[whole * size :] = blocks.ravel()
    index.ntotal = whole * BLOCK + len(packed)
    index.ntotal2 = (whole + len(blocks)) * BLOCK
