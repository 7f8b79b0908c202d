"""What a search needs to know of a quantizer: its tables in plain units, and the space in which they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import mcq
from mcq.codes import Codes
from mcq.errors import InputError
from mcq.quantizer import Quantizer

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]
Family = Literal["PQ", "ResidualQuantizer", "LocalSearchQuantizer"]


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Codebooks of one group per slice of a vector, as FAISS names and orders them.

    Attributes
    ----------
    tables : array of shape (S, M, K, w), float32
        S slices of w entries, each a sum of M entries out of K, in the units of the vectors.
    family : "PQ", "ResidualQuantizer" or "LocalSearchQuantizer"
        How codes were chosen, in the words of FAISS class names; they are decoded alike.
    d : int
        Columns of the vectors; at most S * w, what is missing is zero.
    rotation : array of shape (d, d), float32, or None
        Orthogonal; tables describe ``x @ rotation``.
    beam_width : int
        With which FAISS is to encode more vectors, where it uses a beam.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    >>> q = mcq.AdditiveQuantizer(num_codebooks=2, codebook_bits=4, group_size=None)
    >>> codes = q.fit_encode(x)
    >>> codebooks = Codebooks.of(q)
    >>> codebooks.tables.shape, codebooks.family
    ((1, 2, 16, 8), 'LocalSearchQuantizer')
    >>> np.allclose(codebooks.decode(codes.unpack()), q.decode(codes), atol=1e-6)
    True
    """

    tables: Floats
    family: Family
    d: int
    rotation: Floats | None = None
    beam_width: int = 1

    @classmethod
    def of(cls, quantizer: Quantizer, d: int | None = None) -> Codebooks:
        """Return the codebooks of a fitted quantizer, for vectors of `d` columns (default: all that it can hold).

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        InputError
            If FAISS cannot express the quantizer: scales, several groups that share codebooks, or another kind.
        """
        if isinstance(quantizer, mcq.AdditiveQuantizer):
            return cls._of_whole(quantizer, d)
        if isinstance(quantizer, mcq.ProductQuantizer):
            return cls._of_product(quantizer, d)
        raise InputError(f"a FAISS index holds additive, residual and product codes, got {type(quantizer).__name__}")

    @classmethod
    def _of_whole(cls, quantizer: mcq.AdditiveQuantizer, d: int | None) -> Codebooks:
        if quantizer.config.scale != "none":
            raise InputError(
                f'a FAISS index has no place for scales, got scale={quantizer.config.scale!r}; fit with scale="none"'
            )
        width = quantizer.codebooks.shape[2]
        if quantizer.config.group_size is not None and d not in (None, width):
            raise InputError(
                f"a FAISS index needs one group per row, got groups of {width} entries for {d} columns; fit with "
                "group_size=None, or use mcq.ProductQuantizer"
            )
        tables = quantizer.codebooks[None].astype(np.float32) * np.float32(quantizer.gain)
        if isinstance(quantizer, mcq.ResidualQuantizer):
            return cls(tables, "ResidualQuantizer", width, beam_width=quantizer.config.beam_width)
        return cls(tables, "LocalSearchQuantizer", width)

    @classmethod
    def _of_product(cls, quantizer: mcq.ProductQuantizer, d: int | None) -> Codebooks:
        tables = quantizer.codebooks.astype(np.float32) * np.float32(quantizer.gain)
        splits, num_codebooks, _, width = tables.shape
        rotation = quantizer.rotation
        if d is None:
            d = splits * width if rotation is None else len(rotation)
        family: Family = "LocalSearchQuantizer" if quantizer.config.method == "additive" else "ResidualQuantizer"
        return cls(tables, "PQ" if num_codebooks == 1 else family, d, rotation, quantizer.config.beam_width)

    @property
    def bits(self) -> int:
        """B, bits of a code."""
        return int(self.tables.shape[2]).bit_length() - 1

    @property
    def width(self) -> int:
        """S * w, columns of the space in which the tables are."""
        return int(self.tables.shape[0] * self.tables.shape[3])

    @property
    def is_transformed(self) -> bool:
        """Whether vectors must be rotated or padded before the tables describe them."""
        return self.rotation is not None or self.d < self.width

    def project(self, x: Floats) -> Floats:
        """Return `x` (n, d) in the space of the tables (n, S * w): rotated, and padded with zeros."""
        rotated = x if self.rotation is None else x @ self.rotation
        return np.pad(rotated, ((0, 0), (0, self.width - self.d)))

    def decode(self, codes_nSM: Words) -> Floats:  # noqa: N803
        """Return what codes (n, S, M) stand for in the space of the tables (n, S * w)."""
        n, splits, num_codebooks = codes_nSM.shape
        out = np.zeros((n, splits, self.tables.shape[3]), np.float32)
        for s in range(splits):
            for m in range(num_codebooks):
                out[:, s] += self.tables[s, m, codes_nSM[:, s, m]]
        return out.reshape(n, -1)

    def check(self, codes: Codes) -> None:
        """Raise `InputError` unless `codes` are of these codebooks."""
        want = (*self.tables.shape[:2], self.bits, self.d)
        found = (codes.num_groups, codes.num_codebooks, codes.codebook_bits, codes.shape[1])
        if want != found or codes.scales is not None:
            raise InputError(
                f"the codes must come from this quantizer: (slices, codebooks, bits, columns) must be {want} without "
                f"scales, got {found}; encode with the quantizer that is exported"
            )
