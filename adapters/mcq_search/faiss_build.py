"""FAISS indexes with given codebooks and no vectors yet, and what is wrapped around them."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import InputError
from mcq_search.codebooks import Codebooks, Floats
from mcq_search.faiss_fill import CALIBRATION_SIZE, calibration_of, quantizer_of
from mcq_search.layout import MAX_PRODUCT_BYTES, Layout, Norm, product_bytes

METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT}
SEARCH_TYPES = {"decompress": "ST_decompress", "none": "ST_LUT_nonorm", "lut": "ST_norm_from_LUT"}
#: Norm encodings that FAISS finds by k-means, the squared norms that it can take without leaving float32, and how far
#: apart they are set, relative to the largest, where too few are different.
LEARNED = ("cqint8", "cqint4", "lsq2x4", "rq2x4")
LEAST_NORM, MOST_NORM = 1e-15, 1e17
SPREAD = 1e-3
UNCALIBRATED = ("decompress", "none", "lut", "float")


def empty_index(layout: Layout, calibration: ArrayLike | None) -> Any:
    """Return an index without vectors, in the space of the codebooks; norms are fitted to `calibration`."""
    codebooks, _, _, norm, coarse = layout
    index = _index_of_type(layout)
    if coarse is not None:
        index.quantizer.add(codebooks.project(coarse))
    _set_tables(index, codebooks, norm)
    if codebooks.family == "PQ":
        if coarse is not None:
            index.precompute_table()
        return index
    _calibrate(quantizer_of(index), norm, calibration)
    return index


def _index_of_type(layout: Layout) -> Any:
    """Return an untrained index of the FAISS class for `layout`; names and arguments of these classes are regular."""
    codebooks, _, metric, norm, coarse = layout
    slices, num_codebooks = codebooks.tables.shape[:2]
    is_plain = codebooks.family == "PQ"
    is_product = slices > 1 and not is_plain
    name = f"{'Product' if is_product else ''}{codebooks.family}{'FastScan' if layout.is_fast else ''}"
    sizes = (*((slices,) if is_product or is_plain else ()), *(() if is_plain else (num_codebooks,)), codebooks.bits)
    rest = (METRICS[metric], *(() if is_plain else (search_type_of(norm),)))
    if coarse is None:
        return getattr(faiss, f"Index{name}")(codebooks.width, *sizes, *rest)
    quantizer: Any = faiss.IndexFlat(codebooks.width, METRICS[metric])
    index = getattr(faiss, f"IndexIVF{name}")(quantizer, codebooks.width, len(coarse), *sizes, *rest)
    index.by_residual = True
    # So that the index outlives the Python object of its quantizer, however it is wrapped.
    quantizer.this.disown()
    index.own_fields = True
    return index


def with_transforms(index: Any, codebooks: Codebooks) -> Any:
    """Return `index` behind the rotation and the padding that lead into the space of its codebooks."""
    if not codebooks.is_transformed:
        return index
    index = faiss.IndexPreTransform(index)
    if codebooks.d < codebooks.width:
        # Not uniform: entries stay where they are, and what is added is zero.
        index.prepend_transform(faiss.RemapDimensionsTransform(codebooks.d, codebooks.width, False))  # type: ignore[arg-type]
    if codebooks.rotation is not None:
        rotation = faiss.LinearTransform(codebooks.d, codebooks.d, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(codebooks.rotation.T).ravel(), rotation.A)
        rotation.is_trained = True
        rotation.set_is_orthonormal()
        index.prepend_transform(rotation)
    return index


def with_ids(index: Any, ids: NDArray[np.int64]) -> Any:
    """Return `index` so that a search answers with `ids` instead of row numbers."""
    count, index.ntotal = index.ntotal, 0  # the constructor wants to see no vectors
    mapped = faiss.IndexIDMap2(index)
    index.ntotal = mapped.ntotal = count
    faiss.copy_array_to_vector(ids, mapped.id_map)
    mapped.construct_rev_map()
    return mapped


def search_type_of(norm: Norm) -> int:
    """Return the number that FAISS has for a norm encoding."""
    return int(getattr(faiss.AdditiveQuantizer, SEARCH_TYPES.get(norm, f"ST_norm_{norm}")))


def _set_tables(index: Any, codebooks: Codebooks, norm: Norm) -> None:
    quantizer = quantizer_of(index)
    if codebooks.family == "PQ":
        faiss.copy_array_to_vector(codebooks.tables.ravel(), quantizer.centroids)
    else:
        faiss.copy_array_to_vector(codebooks.tables.ravel(), quantizer.codebooks)
        quantizer.is_trained = True
        parts = [quantizer]
        if len(codebooks.tables) > 1:
            parts = [
                faiss.downcast_Quantizer(  # type: ignore[attr-defined]
                    quantizer.subquantizer(s)
                )
                for s in range(len(codebooks.tables))
            ]
            for part, tables in zip(parts, codebooks.tables, strict=True):
                faiss.copy_array_to_vector(tables.ravel(), part.codebooks)
                part.is_trained = True
        if codebooks.family == "ResidualQuantizer":
            for part in parts:
                _set_products(part, codebooks, norm)
    index.is_trained = True


def _set_products(residual: Any, codebooks: Codebooks, norm: Norm) -> None:
    residual.max_beam_size = codebooks.beam_width
    if norm == "lut":
        residual.compute_codebook_tables()
    elif product_bytes(codebooks.tables.shape[1], codebooks.bits) > MAX_PRODUCT_BYTES:
        residual.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables


def _calibrate(quantizer: Any, norm: Norm, calibration: ArrayLike | None) -> None:
    if norm in UNCALIBRATED:
        return
    if calibration is None:
        raise InputError(
            f'norm="{norm}" is fitted to the norms of codes, got none; give codes, or calibration, or norm="float"'
        )
    norms = np.ascontiguousarray(calibration, np.float32)
    if norms.ndim != 1 or norms.size == 0 or not np.isfinite(norms).all():
        raise InputError(f"calibration must be finite squared norms of shape (m,), m > 0, got shape {norms.shape}")
    if norm in LEARNED:
        norms = _for_kmeans(norms, norm)
    quantizer.train_norm(len(norms), faiss.swig_ptr(norms))


def _for_kmeans(norms: Floats, norm: Norm) -> Floats:
    """Return norms that FAISS's k-means can take, which fails where there are fewer values than centroids."""
    largest = float(norms.max())
    if largest != 0 and not LEAST_NORM <= largest <= MOST_NORM:
        raise InputError(
            f'norm="{norm}" is learned by FAISS, which needs squared norms from {LEAST_NORM:g} to {MOST_NORM:g}, got '
            f'{largest:g}; multiply the vectors by a constant, or take norm="float"'
        )
    if len(np.unique(norms)) > CALIBRATION_SIZE // 4:
        return norms
    return calibration_of(norms) + np.linspace(0, SPREAD * (largest or 1), CALIBRATION_SIZE, dtype=np.float32)
