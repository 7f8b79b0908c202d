"""The one-line description of an index, such as ``OPQ,IVF1024,PLSQ2x4x8,Refine(SQ8)``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

import mcq
from mcq.errors import ConfigError
from mcq.quantizer import Quantizer
from mcq_search.codebooks import Family
from mcq_search.layout import Kind, Metric, Norm, choose_norm

GRAMMAR = "[OPQ,|RR,][IVF<lists>,]CODE[fs][_N<norm>][,Refine|,Refine(SQ8)]"
CODES = "PQ<slices>x<bits>, AQ<codebooks>x<bits>, RQ<codebooks>x<bits>, PRQ or PLSQ<slices>x<codebooks>x<bits>"
PATTERN = re.compile(
    r"((?P<rotation>OPQ|RR),)?(IVF(?P<lists>\d+),)?"
    r"(?P<code>PQ|AQ|RQ|PRQ|PLSQ)(?P<sizes>\d+(x\d+)+)(?P<fast>fs)?(_N(?P<norm>\w+))?"
    r"(,(?P<refine>Refine(\(SQ8\))?))?"
)
#: Sizes one after another, which FAISS has for RQ.
MIXED = re.compile(r"\d+x\d+_\d+x\d+")
ROTATIONS = {None: "none", "OPQ": "learned", "RR": "random"}


@dataclass(frozen=True)
class Description:
    """What a factory string says.

    Attributes
    ----------
    text : str
        The string itself.
    rotation : "none", "random" or "learned"
    lists : int or None
        Inverted lists; None: all vectors are compared.
    code : "PQ", "AQ", "RQ", "PRQ" or "PLSQ"
    slices, codebooks, bits : int
        Slices of a vector, codebooks of a slice, bits of a code.
    fast_scan : bool
    norm : str or None
        As in `to_faiss`; None: the best for the metric.
    refine : "none", "float" or "SQ8"
        How vectors are kept for a second look.
    """

    text: str
    rotation: Literal["none", "random", "learned"]
    lists: int | None
    code: str
    slices: int
    codebooks: int
    bits: int
    fast_scan: bool
    norm: Norm | None
    refine: Literal["none", "float", "SQ8"]

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read a factory string.

        Parameters
        ----------
        text : str
            ``[OPQ,|RR,][IVF<lists>,]CODE[fs][_N<norm>][,Refine|,Refine(SQ8)]``. CODE is PQ<slices>x<bits>,
            AQ<codebooks>x<bits> (additive), RQ<codebooks>x<bits> (residual), or PRQ or PLSQ
            <slices>x<codebooks>x<bits> (a residual or additive code for each slice). OPQ learns a rotation and RR draws
            one; fs is a 4-bit fast scan; Refine keeps the vectors, in float32 or a byte per entry, to re-rank with.

        Raises
        ------
        ConfigError
            If `text` does not follow the grammar, or its parts do not go together.

        Examples
        --------
        >>> d = Description.parse("OPQ,IVF64,PLSQ2x4x8_Ncqint8,Refine(SQ8)")
        >>> d.rotation, d.lists, d.slices, d.codebooks, d.bits, d.norm, d.refine
        ('learned', 64, 2, 4, 8, 'cqint8', 'SQ8')
        """
        match = PATTERN.fullmatch(text)
        if MIXED.search(text):
            raise ConfigError(
                f"all codebooks of a code must have equally many bits, got {text!r}; take one size, such as RQ8x8, and "
                "inverted lists in place of a large first codebook, such as IVF65536,RQ6x8"
            )
        if match is None:
            raise ConfigError(f"a factory string must be {GRAMMAR} with CODE one of {CODES}, got {text!r}")
        code, numbers = match["code"], [int(size) for size in match["sizes"].split("x")]
        if len(numbers) != (3 if code in ("PRQ", "PLSQ") else 2):
            raise ConfigError(f"the code in {text!r} has {len(numbers)} sizes, but must be one of {CODES}")
        if code == "PQ":
            numbers.insert(1, 1)
        elif len(numbers) == 2:
            numbers.insert(0, 1)
        slices, codebooks, bits = numbers
        if match["rotation"] and code in ("AQ", "RQ"):
            raise ConfigError(
                f"{match['rotation']} changes nothing before {code}, whose codebooks turn with the vectors; leave it "
                "out"
            )
        refine = {None: "none", "Refine": "float", "Refine(SQ8)": "SQ8"}[match["refine"]]
        return cls(
            text,
            cast(Literal["none", "random", "learned"], ROTATIONS[match["rotation"]]),
            None if match["lists"] is None else int(match["lists"]),
            code,
            *(slices, codebooks, bits),
            match["fast"] is not None,
            cast("Norm | None", match["norm"]),
            cast(Literal["none", "float", "SQ8"], refine),
        )

    @property
    def kind(self) -> Kind:
        """The kind of FAISS index, as in `to_faiss`."""
        if self.lists is None:
            return "fastscan" if self.fast_scan else "flat"
        return "ivf_fastscan" if self.fast_scan else "ivf"

    def norm_for(self, metric: Metric) -> Norm:
        """Return the norm encoding under `metric`.

        Raises
        ------
        ConfigError
            If FAISS cannot search such codes under `metric`.
        """
        family: Family = "LocalSearchQuantizer" if self.code in ("AQ", "PLSQ") else "ResidualQuantizer"
        sizes = (self.slices, self.codebooks, self.bits)
        return choose_norm(
            "PQ" if self.codebooks == 1 and self.slices > 1 else family, sizes, self.kind, metric, self.norm
        )

    def quantizer(self) -> Quantizer:
        """Return the quantizer, not fitted yet."""
        if self.code == "AQ":
            return mcq.AdditiveQuantizer(self.codebooks, self.bits, group_size=None)
        if self.code == "RQ":
            return mcq.ResidualQuantizer(self.codebooks, self.bits, group_size=None)
        return mcq.ProductQuantizer(
            num_splits=self.slices,
            num_codebooks=self.codebooks,
            codebook_bits=self.bits,
            method="residual" if self.code == "PRQ" else "additive",
            rotation=self.rotation,
        )
