"""A searchable set of vectors: codes are kept, FAISS searches them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.codes import Codes
from mcq.errors import ConfigError, InputError
from mcq.quantizer import Progress, Quantizer, ignore_progress
from mcq.validate import as_matrix, in_range
from mcq_search.codebooks import Codebooks, Floats
from mcq_search.description import Description
from mcq_search.faiss_build import METRICS, empty_index, with_ids, with_transforms
from mcq_search.faiss_export import to_faiss
from mcq_search.faiss_fill import code_size, fill
from mcq_search.growing import Growing
from mcq_search.ids import Ids, Integers
from mcq_search.layout import Layout, Metric, list_numbers
from mcq_search.rows import Rows, as_rows, chunks
from mcq_search.store import contents, new_store, restore

Bytes = NDArray[np.uint8]

#: Lists visited, and candidates looked at again per result, where a search does not say.
DEFAULT_NPROBE = 16
DEFAULT_RERANK = 4


@io.register("vector_index")
class Index:
    """Vectors as codes, under ids of the user's choice; `build_index` makes one.

    What is saved are codes, ids and all that was learned. The FAISS index that searches them is made when the first
    search needs it, and what is added later is appended to it; after a removal it is made anew.

    Attributes
    ----------
    description : Description
        What the factory string says.
    metric : "l2" or "ip"
    d : int
        Columns of the vectors.
    quantizer : Quantizer

    Examples
    --------
    >>> from mcq_search.factory import build_index
    >>> x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    >>> index = build_index(x, "AQ2x5", ids=np.arange(1000, 1300))
    >>> index.remove([1000, 1001])
    >>> _ = index.add(x[:1], ids=[7])
    >>> len(index), index.reconstruct([7]).shape
    (299, (1, 8))
    """

    def __init__(
        self, description: Description, layout: Layout, quantizer: Quantizer, calibration: Floats, store: Any
    ) -> None:
        """Take over what was learned; `store` is a FAISS index of flat codes, or None without re-ranking."""
        self.description = description
        self.metric: Metric = layout.metric
        self.d = layout.codebooks.d
        self.quantizer = quantizer
        splits, num_codebooks = layout.codebooks.tables.shape[:2]
        none = np.zeros((0, splits, num_codebooks), np.uint16)
        self._no_codes = Codes.pack(none, codebook_bits=layout.codebooks.bits, d=self.d)
        self._packed = Growing(self._no_codes.packed)
        self._ids = Ids(np.zeros(0, np.int64), 0)
        self._lists = None if layout.coarse is None else Growing(np.zeros(0, np.int64))
        self._layout = layout
        self._calibration = calibration
        self._store = store
        self._inner: Any = None  # the FAISS index of the codes, with row numbers for ids
        self._searcher: Any = None  # the same behind transforms and re-ranking

    @property
    def codes(self) -> Codes:
        """Codes of the n vectors, or of their differences from the centroids of their lists."""
        packed = self._packed.rows
        return dataclasses.replace(self._no_codes, packed=packed, shape=(len(packed), self.d))

    @property
    def ids(self) -> Integers:
        """Id of each vector, shape (n,)."""
        return self._ids.values

    @property
    def lists(self) -> Integers | None:
        """The inverted list of each vector, shape (n,), or None."""
        return None if self._lists is None else self._lists.rows

    def add(self, x: Rows | ArrayLike, ids: ArrayLike | None = None, *, progress: Progress | None = None) -> Integers:
        """Encode vectors and append them; all or, if something is wrong with them, none.

        Parameters
        ----------
        x : array-like of shape (n, d)
        ids : array-like of shape (n,), integers, optional
            Default: those after the largest id so far.
        progress : callable, optional
            Called as ``progress(done, total)`` with the rows that are encoded.

        Returns
        -------
        array of shape (n,), int64
            The ids.

        Raises
        ------
        InputError
            If `x` is empty, not finite or of another width, or an id is negative, repeats, or is in the index already.

        Notes
        -----
        O(n) with one copy of the codes of `x`, however many vectors are in the index: batches may be small.
        """
        rows = as_rows(x, self.d)
        n = rows.shape[0]
        new_ids = self._ids.new(ids, n)
        packed, lists, kept = [], [], []
        for part, vectors in chunks(rows):
            if self._store is not None:
                kept.append(self._store.sa_encode(vectors))
            if self._layout.coarse is not None:
                own = nearest(vectors, self._layout.coarse)
                lists.append(own)
                vectors = vectors - self._layout.coarse[own]
            packed.append(self.quantizer.encode(vectors).packed)
            (progress or ignore_progress)(part.stop, n)
        self._packed.append(packed)
        self._ids.append(new_ids)
        if self._lists is not None:
            self._lists.append(lists)
        for part in kept:
            self._store.add_sa_codes(part)
        return new_ids

    def remove(self, ids: ArrayLike) -> None:
        """Remove vectors.

        Raises
        ------
        InputError
            If an id is not in the index, or repeats; then nothing is removed.
        """
        rows = self._ids.rows_of(ids)
        if len(np.unique(rows)) < len(rows):
            raise InputError(f"ids to remove must not repeat, got {len(rows)} with {len(np.unique(rows))} different")
        keep = np.ones(len(self), bool)
        keep[rows] = False
        self._packed.keep(keep)
        self._ids.keep(keep)
        if self._lists is not None:
            self._lists.keep(keep)
        if self._store is not None:
            self._store.remove_ids(rows)
        self._inner = self._searcher = None

    def search(
        self, queries: ArrayLike, k: int, *, nprobe: int | None = None, rerank: int | None = None
    ) -> tuple[Floats, Integers]:
        """Find the k nearest vectors of each query.

        Parameters
        ----------
        queries : array-like of shape (m, d)
        k : int
            At most len(self).
        nprobe : int, optional, for IVF indexes
            Inverted lists to visit; default: 16.
        rerank : int, optional, for indexes with Refine
            Candidates, at least k, whose order is found with the stored vectors; default: 4 k.

        Returns
        -------
        distances : array of shape (m, k), float32
            Squared distances, ascending, or inner products, descending.
        ids : array of shape (m, k), int64
            -1 where nothing was found: in lists of less than k vectors, and by a fast scan to which all vectors look
            the same, as they do to a query of zeros under "ip".

        Raises
        ------
        InputError
            If `queries` are not finite or of another width.
        ConfigError
            If `k`, `nprobe` or `rerank` is out of range, or of no use in this index.
        """
        matrix = as_matrix(queries, "queries")
        as_rows(matrix, self.d, "queries")
        if len(self) == 0:
            raise InputError("the index is empty; add vectors before searching")
        k = in_range(k, 1, len(self), "k (at most the number of vectors in the index)")
        parameters, num_lists = self._parameters(k, rerank), self._lists_to_visit(nprobe)
        searcher = self._faiss()
        if num_lists is not None:
            # Not among the options of the search, because fast scans over lists of additive codes take none.
            self._inner.nprobe = num_lists
        distances, rows = searcher.search(matrix, k, params=parameters)
        if self._layout.is_relative and self._store is None:
            distances += np.einsum("md,md->m", matrix, matrix)[:, None]
        missing = (rows < 0) | np.isnan(distances)
        distances[missing] = np.inf if self.metric == "l2" else -np.inf
        return distances, np.where(missing, -1, self.ids[rows])

    def reconstruct(self, ids: ArrayLike) -> Floats:
        """Return what the codes of some vectors stand for, shape (len(ids), d).

        Raises
        ------
        InputError
            If an id is not in the index.
        """
        rows = self._ids.rows_of(ids)
        vectors = self.quantizer.decode(_take(self.codes, rows))
        if self._layout.coarse is not None and self.lists is not None:
            vectors += self._layout.coarse[self.lists[rows]]
        return vectors

    def to_faiss(self) -> Any:
        """Return a FAISS index that finds the same under the same ids without mcq; see `mcq_search.to_faiss`."""
        layout = self._layout
        index = to_faiss(
            self.quantizer,
            self.codes,
            kind=layout.kind,
            metric=layout.metric,
            norm=layout.norm,
            coarse=layout.coarse,
            lists=self.lists,
            ids=self.ids if self._store is None else None,
            calibration=self._calibration,
        )
        if layout.coarse is not None:
            faiss.extract_index_ivf(index).nprobe = min(DEFAULT_NPROBE, len(layout.coarse))
        if self._store is None:
            return index
        refined = faiss.IndexRefine(index, faiss.clone_index(self._store))
        refined.k_factor = DEFAULT_RERANK
        return with_ids(refined, self.ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file, which appears whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {
            "quantizer": _as_bytes(self.quantizer),
            "codes": self.codes.packed,
            "ids": self.ids,
            "calibration": self._calibration,
        }
        if self._layout.coarse is not None and self.lists is not None:
            arrays |= {"coarse": self._layout.coarse, "lists": self.lists.astype(np.int32)}
        if self._store is not None:
            arrays |= contents(self._store)
        config = {"factory": self.description.text, "metric": self.metric, "d": self.d, "version": 1}
        io.write(path, "vector_index", config, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an index that `save` wrote.

        Raises
        ------
        FormatError
            If the file is damaged, was altered, or holds something else.
        """
        return io.load_as(cls, path)

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        if config["version"] != 1:
            raise InputError(f"the version must be 1, got {config['version']}; upgrade multicodebook")
        description, metric = Description.parse(config["factory"]), config["metric"]
        quantizer = _from_bytes(arrays["quantizer"])
        codebooks = Codebooks.of(quantizer, config["d"])
        coarse = arrays.get("coarse")
        layout = Layout.of(codebooks, description.kind, metric, description.norm_for(metric), coarse)
        store = new_store(description.refine, codebooks.d, METRICS[metric])
        index = cls(description, layout, quantizer, arrays["calibration"], store)
        index._ids = Ids(arrays["ids"], len(arrays["codes"]))
        index._packed = Growing(arrays["codes"])
        index.codes  # noqa: B018 (checks what was read)
        lists = list_numbers(layout, arrays.get("lists"), len(index))
        if lists is not None:
            index._lists = Growing(lists)
        if store is not None:
            restore(store, arrays["vectors"], arrays.get("ranges"))
            if store.ntotal != len(index):
                raise InputError(f"there must be a stored vector for each of {len(index)} ids, got {store.ntotal}")
        return index

    def _faiss(self) -> Any:
        """Return a FAISS index of all vectors, with row numbers for ids; only what is new is put in."""
        codebooks = self._layout.codebooks
        if self._inner is None:
            self._inner = empty_index(self._layout, self._calibration)
        start, n = self._inner.ntotal, len(self)
        if self._searcher is None or start < n:
            lists = None if self.lists is None else self.lists[start:]
            fill(self._inner, codebooks, self.codes[start:], lists, np.arange(start, n))
            self._searcher = with_transforms(self._inner, codebooks)
            if self._store is not None:
                self._searcher = faiss.IndexRefine(self._searcher, self._store)
        return self._searcher

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a code with its norm, and of the stored vector if there is one; ids (8 bytes) and lists apart."""
        return code_size(self._faiss())

    def _lists_to_visit(self, nprobe: int | None) -> int | None:
        if self._layout.coarse is not None:
            count = len(self._layout.coarse)
            return in_range(min(DEFAULT_NPROBE, count) if nprobe is None else nprobe, 1, count, "nprobe")
        if nprobe is not None:
            raise ConfigError(f"nprobe is for IVF indexes; leave it out for {self.description.text!r}")
        return None

    def _parameters(self, k: int, rerank: int | None) -> Any:
        """Return the FAISS options of one search, None if there are none."""
        if self._store is None:
            if rerank is not None:
                raise ConfigError(f"rerank needs stored vectors; build the index with '{self.description.text},Refine'")
            return None
        wanted = in_range(DEFAULT_RERANK * k if rerank is None else rerank, k, None, "rerank (at least k)")
        # FAISS rounds k * k_factor down.
        parameters: Any = faiss.IndexRefineSearchParameters()
        parameters.k_factor = (min(wanted, len(self)) + 0.5) / k
        return parameters

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Index({self.description.text!r}, metric={self.metric!r}, d={self.d}, n={len(self)})"


def nearest(x: Floats, coarse: Floats) -> Integers:
    """Return the nearest centroid of each row, the one that leaves the least to be coded."""
    return faiss.knn(x, coarse, 1)[1][:, 0]


def _take(codes: Codes, rows: NDArray[Any]) -> Codes:
    packed = codes.packed[rows]
    return dataclasses.replace(codes, packed=packed, shape=(len(packed), codes.shape[1]))


def _as_bytes(quantizer: Quantizer) -> Bytes:
    """Return the container of a quantizer, so that one file holds the whole index."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantizer.mcq"
        quantizer.save(path)
        return np.fromfile(path, np.uint8)


def _from_bytes(container: Bytes) -> Quantizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantizer.mcq"
        container.tofile(path)
        return Quantizer.load(path)
