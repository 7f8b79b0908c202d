"""What decides the type of a FAISS index, and which choices go together."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq.errors import ConfigError, InputError
from mcq.validate import as_matrix, one_of
from mcq_search.codebooks import Codebooks, Family, Floats

Kind = Literal["flat", "ivf", "fastscan", "ivf_fastscan"]
Metric = Literal["l2", "ip"]
Norm = Literal["decompress", "none", "lut", "float", "qint8", "qint4", "cqint8", "cqint4", "lsq2x4", "rq2x4"]

#: Bytes of products between codebooks that an index may hold; FAISS computes them anew when it loads one.
MAX_PRODUCT_BYTES = 1 << 28


class Layout(NamedTuple):
    """What decides the type of an index and of all in it, apart from the codes."""

    codebooks: Codebooks
    kind: Kind
    metric: Metric
    norm: Norm
    coarse: Floats | None

    @classmethod
    def of(
        cls, codebooks: Codebooks, kind: Kind, metric: Metric, norm: Norm | None, coarse: ArrayLike | None
    ) -> Layout:
        """Check a choice, and put the best norm for `metric` where `norm` is None; errors as `to_faiss`."""
        one_of(kind, get_args(Kind), "kind")
        sizes = (*codebooks.tables.shape[:2], codebooks.bits)
        norm = choose_norm(codebooks.family, sizes, kind, metric, norm)
        if (coarse is not None) != kind.startswith("ivf"):
            raise ConfigError(f"coarse centroids are for kind='ivf' and 'ivf_fastscan', and needed there, got {kind=}")
        centroids = None if coarse is None else as_matrix(coarse, "coarse")
        if centroids is not None and centroids.shape[1] != codebooks.d:
            raise InputError(f"coarse must have the {codebooks.d} columns of the vectors, got shape {centroids.shape}")
        return cls(codebooks, kind, metric, norm, centroids)

    @property
    def is_fast(self) -> bool:
        """Whether codes are scanned in blocks of 32 vectors."""
        return self.kind.endswith("fastscan")

    @property
    def is_relative(self) -> bool:
        """Whether FAISS leaves the squared norm of the query, the same for all vectors, out of its distances."""
        return self.is_fast and self.metric == "l2" and self.codebooks.family != "PQ"

    @property
    def norm_centroids(self) -> Floats | None:
        """Centroids that count in stored norms: a fast scan over lists sums up distances to whole vectors."""
        if self.coarse is None or self.kind != "ivf_fastscan":
            return None
        return self.codebooks.project(self.coarse)


def choose_norm(family: Family, sizes: tuple[int, int, int], kind: Kind, metric: Metric, norm: Norm | None) -> Norm:
    """Return the norm encoding; refuse those with which FAISS would fail or rank wrongly.

    Parameters
    ----------
    family : str
        As in `Codebooks`.
    sizes : (int, int, int)
        Slices, codebooks of a slice, bits of a code.
    kind, metric, norm : str
        As in `to_faiss`.

    Raises
    ------
    ConfigError
        If `norm` does not go together with the rest, or a fast scan has not codes of 4 bits.
    """
    splits, num_codebooks, bits = sizes
    one_of(metric, get_args(Metric), "metric")
    is_fast = kind.endswith("fastscan")
    if is_fast and bits != 4:
        raise ConfigError(f"a fast scan needs codebooks of 4 bits, got {bits}; fit with codebook_bits=4")
    if family == "PQ":
        return one_of("none" if norm is None else norm, ("none",), "the norm of plain product codes")
    if norm is None:
        norm = "none" if metric == "ip" else "rq2x4" if is_fast else "qint8"
    if is_fast:
        allowed: tuple[Norm, ...] = ("none",) if metric == "ip" else ("rq2x4", "lsq2x4")
        return one_of(norm, allowed, f"the norm in a fast scan under {metric!r}")
    one_of(norm, get_args(Norm), "norm")
    if norm == "none" and metric == "l2":
        raise ConfigError('norm="none" ranks wrongly under "l2", where norms count; store them, as norm="qint8" does')
    holds_products = family == "ResidualQuantizer" and splits == 1
    if norm == "lut" and not (holds_products and product_bytes(num_codebooks, bits) <= MAX_PRODUCT_BYTES):
        raise ConfigError(
            f'norm="lut" needs a ResidualQuantizer whose products of codebooks take at most {MAX_PRODUCT_BYTES} bytes: '
            'FAISS aborts the process where a loaded index lacks them; take norm="qint8"'
        )
    return norm


def list_numbers(layout: Layout, lists: ArrayLike | None, n: int) -> NDArray[np.int64] | None:
    """Return checked `lists` of n vectors, None if there are no lists; errors as `to_faiss`."""
    if layout.coarse is None:
        if lists is not None:
            raise ConfigError(f"lists are for kind='ivf' and 'ivf_fastscan', got kind={layout.kind!r}")
        return None
    if n == 0:
        return np.zeros(0, np.int64)
    if lists is None:
        raise ConfigError(f"kind={layout.kind!r} needs lists: for each code, the row of coarse to which it is relative")
    numbers = as_integers(lists, n, "lists")
    if numbers.min() < 0 or numbers.max() >= len(layout.coarse):
        raise InputError(
            f"lists must be rows of coarse, 0 to {len(layout.coarse) - 1}, got {numbers.min()} to {numbers.max()}"
        )
    return numbers


def as_integers(values: ArrayLike, n: int, name: str) -> NDArray[np.int64]:
    """Return one integer for each of n codes."""
    array = np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(f"{name} must be {n} integers, one for each code, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def product_bytes(num_codebooks: int, bits: int) -> int:
    """Return the bytes of all products between entries of two codebooks, float32."""
    return 2 * num_codebooks * (num_codebooks - 1) << 2 * bits
