"""How one linear layer is stored: a codec of the core with its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

import mcq

#: Rows of the matrices that the cost of a setting is measured on.
SAMPLE_ROWS = (8, 24)
#: Rows of a layer that its curve is measured on.
CURVE_ROWS = 128


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
    def reaches(cls, bits: float) -> bool:
        """Return whether there is a setting of `bits` bits per weight, and not only a mixture of several."""
        return True

    @abstractmethod
    def candidates(self) -> list[Setting]:
        """Return settings from the fewest to the most bits, for an allocation to choose from.

        What does not decide the bits is as in this setting.
        """

    def curve(self, weight: NDArray[np.float32], metric: mcq.Gram) -> dict[Setting, float]:
        """Return the relative error that a layer will have with each of the candidates.

        All of them encode the same few rows. How rows are scattered about the mean of all is the same for all settings:
        one candidate that encodes every row tells it.

        Parameters
        ----------
        weight : array of shape (outputs, inputs)
        metric : mcq.Gram
            Of the inputs of the layer.
        """
        candidates = self.candidates()
        rows = np.sort(np.random.default_rng(0).permutation(len(weight))[:CURVE_ROWS])
        errors = [_error(setting, weight[rows], metric) for setting in candidates]
        middle = len(candidates) // 2
        ratio = _error(candidates[middle], weight, metric) / errors[middle] if len(weight) > CURVE_ROWS else 1.0
        return dict(zip(candidates, (ratio * error for error in errors), strict=True))

    @property
    def has_scales(self) -> bool:
        """Whether block tuning can reach the scales, and codebooks, of the codec itself; else it gives rows scales."""
        return False

    def cost(self, rows: int, columns: int) -> mcq.Bits:
        """Return the bits per weight that a layer of this shape will take in mcq's own format."""
        per_row, shared = _measured(self, columns)
        payload = per_row.payload * rows
        return mcq.Bits(payload / (rows * columns), (per_row.all_in * rows + shared) / (rows * columns))


def _error(setting: Setting, weight: NDArray[np.float32], metric: mcq.Gram) -> float:
    quantizer = setting.quantizer()
    return metric.relative_error(weight, quantizer.decode(quantizer.fit_encode(weight, metric)))


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
