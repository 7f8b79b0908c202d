"""From a FAISS index of additive or product codes to a quantizer and codes of mcq."""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

import mcq
from mcq.codes import Codes
from mcq.errors import InputError
from mcq.product import Method
from mcq.quantizer import Quantizer
from mcq_search.codebooks import Floats
from mcq_search.faiss_fill import quantizer_of
from mcq_search.fastscan import BLOCK, unpack_blocks

WRAPPERS = (faiss.IndexIDMap, faiss.IndexRefine)
#: Method of mcq whose codes a FAISS quantizer holds.
METHODS: dict[type, Method] = {
    faiss.ResidualQuantizer: "residual",
    faiss.ProductResidualQuantizer: "residual",
    faiss.LocalSearchQuantizer: "additive",
    faiss.ProductLocalSearchQuantizer: "additive",
    faiss.ProductQuantizer: "additive",
}


class Found(NamedTuple):
    """What a FAISS quantizer says: tables (S, M, K, w) and how codes were chosen."""

    tables: Floats
    method: Method


def from_faiss(index: Any) -> tuple[Quantizer, Codes]:
    """Return the quantizer of a flat FAISS index, and the codes of its vectors in the order in which they were added.

    Parameters
    ----------
    index : faiss.Index
        Of residual, local-search or product codes, or of products of the former, in a fast scan or not, behind
        rotations, ids or re-ranking or not. Ids and stored norms stay behind.

    Returns
    -------
    quantizer : AdditiveQuantizer, ResidualQuantizer or ProductQuantizer
        Its codebooks are those of FAISS rounded to float16.
    codes : Codes

    Raises
    ------
    InputError
        If mcq cannot hold what is in the index: codebooks of different sizes, inverted lists, another kind of code or
        of transform.
    ConfigError
        If it has more codebooks, or more bits, than mcq allows.

    Notes
    -----
    Costs O(bytes of the index).

    References
    ----------
    Douze et al., The Faiss library, 2024.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    >>> index = faiss.index_factory(8, "RQ2x4")
    >>> index.train(x)
    >>> index.add(x)
    >>> quantizer, codes = from_faiss(index)
    >>> type(quantizer).__name__, np.allclose(quantizer.decode(codes), index.reconstruct_n(0, 600), atol=0.01)
    ('ResidualQuantizer', True)
    """
    inner, matrix = _unwrap(index)
    if not inner.is_trained:
        raise InputError("the index must be trained; call train on it first")
    tables, method = _tables_of(inner)
    splits, num_codebooks, k, _ = tables.shape
    bits = k.bit_length() - 1
    if splits == 1:
        cls = mcq.AdditiveQuantizer if method == "additive" else mcq.ResidualQuantizer
        quantizer: Quantizer = cls(num_codebooks, bits, group_size=None)
        d, rotation = index.d, None
        # Codebooks of whole rows can be turned themselves.
        tables = (tables[0] if matrix is None else tables[0] @ matrix)[..., :d]
    else:
        quantizer = mcq.ProductQuantizer(
            num_splits=splits,
            num_codebooks=num_codebooks,
            codebook_bits=bits,
            method=method,
            rotation="none" if matrix is None else "learned",
        )
        d, rotation = index.d, matrix
    quantizer.arrays = _arrays(tables, rotation)
    packed = _flat_codes(inner, splits * num_codebooks * bits)
    return quantizer, Codes(packed, (len(packed), d), splits, num_codebooks, bits)


def _unwrap(index: Any) -> tuple[Any, Floats | None]:
    """Return the index of codes, and the rows (d_in, d_in) of a rotation in front of it."""
    index, matrix = faiss.downcast_index(index), None
    while isinstance(index, (*WRAPPERS, faiss.IndexPreTransform)):
        if isinstance(index, faiss.IndexPreTransform):
            matrix = _matrix_of(index, matrix)
        index = faiss.downcast_index(index.base_index if isinstance(index, faiss.IndexRefine) else index.index)
    if isinstance(index, faiss.IndexIVF):
        raise InputError(
            "inverted lists hold codes relative to centroids, which one quantizer cannot express; pass a flat index"
        )
    return index, matrix


def _matrix_of(index: Any, matrix: Floats | None) -> Floats | None:
    """Return the product of all transforms of `index` after `matrix`; padding with zeros may come last."""
    for position in range(index.chain.size()):
        transform = faiss.downcast_VectorTransform(index.chain.at(position))
        if isinstance(transform, faiss.RemapDimensionsTransform):
            places = faiss.vector_to_array(transform.map)
            kept = np.arange(transform.d_in)
            if position == index.chain.size() - 1 and np.array_equal(places[: transform.d_in], kept):
                continue
        elif isinstance(transform, faiss.LinearTransform) and transform.d_in == transform.d_out:
            if transform.is_orthonormal and not transform.have_bias:
                own = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
                matrix = own if matrix is None else own @ matrix
                continue
        raise InputError(
            f"mcq holds rotations and padding with zeros, got {type(transform).__name__}; export without it"
        )
    return matrix


def _tables_of(index: Any) -> Found:
    try:
        quantizer = quantizer_of(index)
    except TypeError:
        raise InputError(
            f"the index must hold residual, local-search or product codes, got {type(index).__name__}"
        ) from None
    method = METHODS[type(quantizer)]
    if isinstance(quantizer, faiss.ProductQuantizer):
        centroids = faiss.vector_to_array(quantizer.centroids)
        return Found(centroids.reshape(quantizer.M, 1, quantizer.ksub, quantizer.dsub), method)
    bits = faiss.vector_to_array(quantizer.nbits)
    if len(set(bits.tolist())) != 1:
        raise InputError(f"all codebooks must have equally many bits, got {bits.tolist()}")
    splits = getattr(quantizer, "nsplits", 1)
    shape = (splits, quantizer.M // splits, 1 << int(bits[0]), quantizer.d // splits)
    return Found(faiss.vector_to_array(quantizer.codebooks).reshape(shape), method)


def _flat_codes(index: Any, row_bits: int) -> NDArray[np.uint8]:
    """Return the codes alone, without norms, as mcq packs them: both begin with the lowest bit."""
    if isinstance(index, faiss.IndexFastScan):
        size = -(-index.ntotal // BLOCK) * 16 * index.M2
        blocks = faiss.vector_to_array(index.codes)[:size].reshape(-1, 16 * index.M2)
        packed = unpack_blocks(blocks, index.ntotal)
    else:
        packed = faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)
    packed = np.ascontiguousarray(packed[:, : -(-row_bits // 8)])
    if row_bits % 8:
        packed[:, -1] &= (1 << row_bits % 8) - 1
    return packed


def _arrays(tables: Floats, rotation: Floats | None) -> dict[str, NDArray[Any]]:
    """Return tables as mcq stores them: in float16, in units of a power of two.

    They are made large, up to 2^10, so that small entries that came from float16 stay what they are.
    """
    gain = np.exp2(np.ceil(np.log2(max(float(np.abs(tables).max()), 1e-30))) - 10).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {"codebooks": (tables / gain).astype(np.float16), "gain": gain.reshape(1)}
    if rotation is not None:
        arrays["rotation"] = np.ascontiguousarray(rotation.T)
    return arrays
