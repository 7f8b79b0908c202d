"""From a quantizer and its codes to an index that FAISS searches alone. docs/design/faiss.md has the layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mcq.codes import Codes
from mcq.quantizer import Quantizer
from mcq_search.codebooks import Codebooks
from mcq_search.faiss_build import empty_index, with_ids, with_transforms
from mcq_search.faiss_fill import calibration_of, fill, stored_norms
from mcq_search.layout import Kind, Layout, Metric, Norm, as_integers, list_numbers


def to_faiss(
    quantizer: Quantizer,
    codes: Codes | None = None,
    *,
    kind: Kind = "flat",
    metric: Metric = "l2",
    norm: Norm | None = None,
    coarse: ArrayLike | None = None,
    lists: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    calibration: ArrayLike | None = None,
) -> Any:
    """Return a FAISS index that holds `codes`, and that FAISS searches, writes and reads without mcq.

    Parameters
    ----------
    quantizer : AdditiveQuantizer, ResidualQuantizer or ProductQuantizer
        Fitted with ``group_size=None`` and ``scale="none"``.
    codes : Codes, optional
        Of n vectors; an empty index if left out.
    kind : "flat", "ivf", "fastscan" or "ivf_fastscan"
        Compare all vectors, or those in the nearest lists; fast scans need codebooks of 4 bits.
    metric : "l2" or "ip"
        Squared distance, or inner product.
    norm : str, optional
        How the norm of a vector is stored, which additive codes need under "l2": "float", "qint8", "qint4", "cqint8",
        "cqint4" (uniform steps, or learned values, of so many bits), "lsq2x4" or "rq2x4" (two 4-bit tables; fast scans
        need one of these), "lut" (not stored but summed up from tables; flat and IVF indexes of a `ResidualQuantizer`),
        "decompress" (not stored; vectors are decoded) or "none" (under "ip"). Default: "qint8", in a fast scan "rq2x4",
        and "none" under "ip". Plain product codes need no norm.
    coarse : array-like of shape (nlist, d), for IVF kinds
        Centroids; codes are those of ``x - coarse[list]``.
    lists : array-like of shape (n,), integers, for IVF kinds
        The centroid of each vector.
    ids : array-like of shape (n,), integers, optional
        What a search returns; default: 0, 1, 2, ...
    calibration : array-like of shape (m,), optional
        Squared norms to which the norm encoding is fitted; default: those of `codes`.

    Returns
    -------
    faiss.Index

    Raises
    ------
    ConfigError
        If the options contradict each other, or FAISS cannot search what they say.
    InputError
        If an array has the wrong shape or values, or FAISS cannot express the quantizer.

    Notes
    -----
    Costs O(n (d M + bytes)). Same codes, same index, up to what FAISS learns of norms.

    References
    ----------
    Douze et al., The Faiss library, 2024.

    Examples
    --------
    >>> import mcq
    >>> x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    >>> q = mcq.ResidualQuantizer(num_codebooks=2, codebook_bits=4, group_size=None)
    >>> index = to_faiss(q, q.fit_encode(x), norm="float")
    >>> distances, found = index.search(x[:3], 1)
    >>> index.ntotal, found.shape
    (200, (3, 1))
    """
    codebooks = Codebooks.of(quantizer, None if codes is None else codes.shape[1])
    layout = Layout.of(codebooks, kind, metric, norm, coarse)
    n = 0 if codes is None else len(codes)
    numbered = list_numbers(layout, lists, n)
    numbers = None if ids is None else as_integers(ids, n, "ids")
    if codes is not None:
        codebooks.check(codes)
        if calibration is None and n > 0:
            calibration = calibration_of(stored_norms(codebooks, codes, layout.norm_centroids, numbered))
    inner = empty_index(layout, calibration)
    native = np.arange(n) if numbers is None else numbers
    if codes is not None:
        fill(inner, codebooks, codes, numbered, native)
    index = with_transforms(inner, codebooks)
    return index if numbers is None or layout.coarse is not None else with_ids(index, numbers)
