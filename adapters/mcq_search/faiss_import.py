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

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

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


class Inverted(NamedTuple):
    """The contents of an index with inverted lists, named as `to_faiss` names them.

    Attributes
    ----------
    quantizer : AdditiveQuantizer, ResidualQuantizer or ProductQuantizer
    codes : Codes
        Of n vectors, each relative to the centroid of its list; list by list, as FAISS holds them.
    coarse : array of shape (nlist, d), float32, or None
        The centroids, in the space of the vectors. None if codes are of the vectors themselves (`by_residual` off),
        which `to_faiss` takes for indexes without lists only.
    lists : array of shape (n,), int64
        The list of each vector, a row of `coarse`.
    ids : array of shape (n,), int64
    """

    quantizer: Quantizer
    codes: Codes
    coarse: Floats | None
    lists: Integers
    ids: Integers


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
        If mcq cannot hold what is in the index: codebooks of different sizes, another kind of code or of transform; or
        if it has inverted lists, which are for `from_faiss_ivf`.
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
    inner, matrix, _ = _unwrap(index)
    if isinstance(inner, faiss.IndexIVF):
        raise InputError(
            "codes in inverted lists are relative to centroids, which a quantizer and its codes do not tell; call "
            "from_faiss_ivf"
        )
    quantizer, row_bits = _quantizer(inner, matrix, index.d)
    packed = _without_norms(_flat_codes(inner), row_bits)
    return quantizer, _codes(quantizer, packed, index.d)


def from_faiss_ivf(index: Any) -> Inverted:
    """Return quantizer, codes, centroids, lists and ids of a FAISS index with inverted lists.

    Parameters
    ----------
    index : faiss.Index
        As `from_faiss` takes them, but with inverted lists.

    Returns
    -------
    Inverted
        A vector is about ``quantizer.decode(codes) + coarse[lists]``, and `to_faiss` makes an index of it again.

    Raises
    ------
    InputError
        As `from_faiss`, and if the index of centroids cannot tell them.
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
    >>> index = faiss.index_factory(8, "IVF4,RQ2x4")
    >>> index.train(x)
    >>> index.add(x)
    >>> found = from_faiss_ivf(index)
    >>> rebuilt = found.quantizer.decode(found.codes) + found.coarse[found.lists]
    >>> bool(np.square(rebuilt - x[found.ids]).sum() < np.square(x - x.mean(0)).sum())
    True
    """
    inner, matrix, id_map = _unwrap(index)
    if not isinstance(inner, faiss.IndexIVF):
        raise InputError(f"the index must have inverted lists, got {type(inner).__name__}; call from_faiss")
    quantizer, row_bits = _quantizer(inner, matrix, index.d)
    coarse = _centroids(inner, matrix, index.d) if inner.by_residual else None
    parts = [_list_codes(inner, number) for number in range(inner.nlist)]
    packed, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    lists = np.repeat(np.arange(inner.nlist), [len(own) for _, own in parts])
    return Inverted(
        quantizer,
        _codes(quantizer, _without_norms(packed, row_bits), index.d),
        coarse,
        lists,
        ids if id_map is None else id_map[ids],
    )


def _quantizer(inner: Any, matrix: Floats | None, d: int) -> tuple[Quantizer, int]:
    """Return the quantizer of an index of codes behind a rotation, for vectors of d columns, and bits of a row."""
    if not inner.is_trained:
        raise InputError("the index must be trained; call train on it first")
    tables, method = _tables_of(inner)
    splits, num_codebooks, k, _ = tables.shape
    bits = k.bit_length() - 1
    if splits == 1:
        cls = mcq.AdditiveQuantizer if method == "additive" else mcq.ResidualQuantizer
        quantizer: Quantizer = cls(num_codebooks, bits, group_size=None)
        rotation = None
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
        rotation = matrix
    quantizer.arrays = _arrays(tables, rotation)
    return quantizer, splits * num_codebooks * bits


def _centroids(index: Any, matrix: Floats | None, d: int) -> Floats:
    """Return the centroids (nlist, d) of inverted lists behind a rotation, in the space before it."""
    try:
        coarse = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)[:, :d]
    except RuntimeError as error:
        raise InputError(f"the index of centroids must tell them: {str(error).splitlines()[-1]}") from None
    return np.ascontiguousarray(coarse if matrix is None else coarse @ matrix)


def _codes(quantizer: Any, packed: Bytes, d: int) -> Codes:
    config = quantizer.config
    splits = config.num_splits if isinstance(quantizer, mcq.ProductQuantizer) else 1
    return Codes(packed, (len(packed), d), splits, config.num_codebooks, config.codebook_bits)


def _unwrap(index: Any) -> tuple[Any, Floats | None, Integers | None]:
    """Return the index of codes, the rows (d_in, d_in) of a rotation in front of it, and the ids of its rows."""
    index, matrix, ids = faiss.downcast_index(index), None, None
    while isinstance(index, (*WRAPPERS, faiss.IndexPreTransform)):
        if isinstance(index, faiss.IndexPreTransform):
            matrix = _matrix_of(index, matrix)
        if isinstance(index, faiss.IndexIDMap):
            own = faiss.vector_to_array(index.id_map)
            ids = own if ids is None else ids[own]
        index = faiss.downcast_index(index.base_index if isinstance(index, faiss.IndexRefine) else index.index)
    return index, matrix, ids


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


def _flat_codes(index: Any) -> Bytes:
    """Return the codes of all vectors, with their norms."""
    if isinstance(index, faiss.IndexFastScan):
        _require_block(index)
        size = -(-index.ntotal // BLOCK) * 16 * index.M2
        return unpack_blocks(faiss.vector_to_array(index.codes)[:size].reshape(-1, 16 * index.M2), index.ntotal)
    return faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)


def _list_codes(index: Any, number: int) -> tuple[Bytes, Integers]:
    """Return the codes in one list, with their norms, and their ids."""
    inverted: Any = faiss.downcast_InvertedLists(index.invlists)
    n = inverted.list_size(number)
    is_fast = isinstance(index, faiss.IndexIVFFastScan)
    if n == 0:
        return np.zeros((0, index.M2 // 2 if is_fast else index.code_size), np.uint8), np.zeros(0, np.int64)
    ids = faiss.rev_swig_ptr(inverted.get_ids(number), n).copy()
    if is_fast:
        _require_block(index)
        count = -(-n // BLOCK)
        blocks = faiss.rev_swig_ptr(inverted.get_codes(number), count * 16 * index.M2)
        return unpack_blocks(blocks.reshape(count, -1), n), ids
    return faiss.rev_swig_ptr(inverted.get_codes(number), n * index.code_size).reshape(n, -1).copy(), ids


def _require_block(index: Any) -> None:
    if index.bbs != BLOCK:
        raise InputError(
            f"a fast scan must have blocks of {BLOCK} vectors, got bbs={index.bbs}; build it with bbs={BLOCK}"
        )


def _without_norms(packed: Bytes, row_bits: int) -> Bytes:
    """Return the codes alone, as mcq packs them: both begin with the lowest bit."""
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
