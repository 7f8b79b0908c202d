"""How one linear layer is stored: a codec of the core with its options."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

import mcq

#: Rows of the matrices that the cost of a setting is measured on.
SAMPLE_ROWS = (8, 24)
#: Rows of a layer that its curve is measured on, unless a codec cuts layers in clusters of rows.
CURVE_ROWS = 64
#: Columns of a matrix whose bits tell the rate of a setting: in few columns groups may be padded with unused bits.
CURVE_COLUMNS = 1024
#: Candidates that are measured for a curve.
CURVE_PROBES = 5
TINY = 1e-12


@dataclass(frozen=True)
class Setting(ABC):
    """How one linear layer is stored; a subclass for each codec, with its options as fields.

    Attributes
    ----------
    codec : str
        Under which `mcq_llm.codecs.CODECS` and the command line know the subclass.
    rotate : bool
        Whether rows are rotated before they are coded.
    """

    codec: ClassVar[str]
    #: Whether bands of rows can have settings of their own; they cannot where rows share codebooks or scales.
    in_bands: ClassVar[bool] = True

    rotate: bool = field(default=False, kw_only=True)

    def quantizer(self) -> mcq.Quantizer:
        """Return the unfitted quantizer.

        Raises
        ------
        ConfigError
            If the options do not go together.
        """
        return mcq.RotatedQuantizer(self.plain()) if self.rotate else self.plain()

    @abstractmethod
    def plain(self) -> mcq.Quantizer:
        """Return the unfitted quantizer of rows that need not be rotated any more."""

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
        """Return the relative error that a layer will have with each of the candidates that it can have.

        Some encode the same few rows. How these differ from all rows is the same for all settings: one that encodes
        every row tells it. Between measured candidates the logarithm of the error falls evenly with the bits.

        Parameters
        ----------
        weight : array of shape (outputs, inputs)
        metric : mcq.Gram
            Of the inputs of the layer.
        """
        candidates = [setting for setting in self.candidates() if setting.fits(*weight.shape)]
        rows = np.sort(np.random.default_rng(0).permutation(len(weight))[: self.curve_rows])
        probes = np.unique(np.linspace(0, len(candidates) - 1, CURVE_PROBES).round().astype(int))
        logs = np.array([math.log(max(_error(candidates[i], weight[rows], metric), TINY)) for i in probes])
        if len(weight) > self.curve_rows:
            middle = len(probes) // 2
            logs += math.log(max(_error(candidates[probes[middle]], weight, metric), TINY)) - logs[middle]
        bits = [setting.cost(CURVE_ROWS, CURVE_COLUMNS).all_in for setting in candidates]
        errors = np.exp(np.interp(bits, np.take(bits, probes), logs))
        return dict(zip(candidates, errors.tolist(), strict=True))

    def fits(self, rows: int, columns: int) -> bool:
        """Return whether a layer of this shape can have this setting."""
        return True

    @property
    def curve_rows(self) -> int:
        """Rows of a layer that its curve is measured on."""
        return CURVE_ROWS

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
