"""How one linear layer is stored: a codec of the core with its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

import mcq

#: Rows of the matrices that the cost of a setting is measured on.
SAMPLE_ROWS = (8, 24)


@dataclass(frozen=True)
class Setting(ABC):
    """How one linear layer is stored; a subclass for each codec, with its options as fields.

    Attributes
    ----------
    codec : str
        Under which `mcq_llm.codecs.CODECS` and the command line know the subclass.
    """

    codec: ClassVar[str]

    @abstractmethod
    def quantizer(self) -> mcq.Quantizer:
        """Return the unfitted quantizer.

        Raises
        ------
        ConfigError
            If the options do not go together.
        """

    @abstractmethod
    def __str__(self) -> str: ...

    @classmethod
    @abstractmethod
    def of_bits(cls, bits: float) -> Setting:
        """Return the standard setting of `bits` bits per weight, without what is stored once a layer or a row.

        Raises
        ------
        ConfigError
            If the codec has none.
        """

    @classmethod
    @abstractmethod
    def candidates(cls) -> list[Setting]:
        """Return settings from the fewest to the most bits, for an allocation to choose from."""

    @property
    def has_scales(self) -> bool:
        """Whether block tuning can reach the scales, and codebooks, of the codec itself; else it gives rows scales."""
        return False

    def cost(self, rows: int, columns: int) -> mcq.Bits:
        """Return the bits per weight that a layer of this shape will take in mcq's own format."""
        per_row, shared = _measured(self, columns)
        payload = per_row.payload * rows
        return mcq.Bits(payload / (rows * columns), (per_row.all_in * rows + shared) / (rows * columns))


@cache
def _measured(setting: Setting, columns: int) -> tuple[mcq.Bits, float]:
    """Return the bits of a row, and those that all rows share: whatever the entries are, they cost the same."""
    rng = np.random.default_rng(0)
    costs = []
    for rows in SAMPLE_ROWS:
        quantizer = setting.quantizer()
        bits = quantizer.bits(quantizer.fit_encode(rng.standard_normal((rows, columns), np.float32)))
        costs.append(mcq.Bits(bits.payload * rows * columns, bits.all_in * rows * columns))
    (few, many), (first, second) = SAMPLE_ROWS, costs
    all_in = (second.all_in - first.all_in) / (many - few)
    return mcq.Bits(first.payload / few, all_in), first.all_in - few * all_in
