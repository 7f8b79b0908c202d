"""Bands of rows: layers whose important rows have settings of their own.

Rows of a layer do not count alike. With w_r the mean square of the gradient of an output and e_r the mean square of its
row of weights, the error of row r at the rate R costs the model about w_r e_r 4^-R. These products are its importance.
(The energy of the output does not enter: most of it lies in few directions of the inputs, which errors avoid, and
what is left of an error depends on the size of the row alone.) An allocation treats the bands, which are equally many
rows from the least to the most important, like layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

import mcq
from mcq.errors import ConfigError
from mcq_llm.setting import Setting

#: Least importance of a row, relative to the mean: what is measured on a few thousand tokens may be 0 by chance.
LEAST_IMPORTANCE = 1e-3


@dataclass(frozen=True)
class BandedSetting(Setting):
    """What an allocation chose for the bands of a layer; not for the command line.

    Attributes
    ----------
    parts : tuple of Setting
        From the least to the most important rows.
    """

    codec = "banded"

    parts: tuple[Setting, ...] = ()

    def plain(self) -> mcq.BandedQuantizer:  # noqa: D102
        return mcq.BandedQuantizer([part.quantizer() for part in self.parts])

    @classmethod
    def of_bits(cls, bits: float) -> Self:
        """Refuse: there is no standard for bands."""
        raise ConfigError("bands are chosen by an allocation; give a codec, and the number of bands")

    def candidates(self) -> list[Setting]:  # noqa: D102
        return [self]

    def cost(self, rows: int, columns: int) -> mcq.Bits:  # noqa: D102
        counts = band_rows(rows, len(self.parts))
        costs = [part.cost(count, columns) for part, count in zip(self.parts, counts, strict=True)]
        payload = sum(cost.payload * count for cost, count in zip(costs, counts, strict=True)) / rows
        all_in = sum(cost.all_in * count for cost, count in zip(costs, counts, strict=True)) / rows
        return mcq.Bits(payload, all_in + overhead(rows, len(self.parts)) / (rows * columns))

    def __str__(self) -> str:
        return f"{self.parts[0].codec} " + " | ".join(str(part).removeprefix(f"{part.codec} ") for part in self.parts)


def plain_settings(setting: Setting) -> tuple[Setting, ...]:
    """Return the settings of the bands, or the one that all rows have."""
    return setting.parts if isinstance(setting, BandedSetting) else (setting,)


def band_rows(rows: int, bands: int) -> list[int]:
    """Return the number of rows in each band."""
    return np.diff([rows * band // bands for band in range(bands + 1)]).tolist()


def overhead(rows: int, bands: int) -> int:
    """Return the bits that say which row is in which band, and where these end."""
    return 8 * -(-rows * (bands - 1).bit_length() // 8) + 64 * (bands - 1)


def importance(sensitivity: Sequence[float], energy: Sequence[float]) -> NDArray[np.float64]:
    """Return what an error of each row costs the model, relative to the mean."""
    found = np.multiply(sensitivity, energy, dtype=np.float64)
    mean = found.mean() or 1.0
    relative: NDArray[np.float64] = np.maximum(found / mean, LEAST_IMPORTANCE)
    return relative


def ranks(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the place of each value in ascending order: with these as importance, bands are exactly equal."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def sums(values: NDArray[np.float64], order: NDArray[np.intp], bands: int) -> list[float]:
    """Return the sum of `values` over each band, with rows as ranked by `order`."""
    ends = np.cumsum([0, *band_rows(len(values), bands)])
    by_rank = np.empty_like(values)
    by_rank[order] = values
    return [float(by_rank[a:b].sum()) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def shares(values: NDArray[np.float64], order: NDArray[np.intp], bands: int) -> list[float]:
    """Return which part of the sum of `values` each band has, with rows as ranked by `order`."""
    total = float(values.sum())
    if total == 0:
        return [1 / bands] * bands
    return [part / total for part in sums(values, order, bands)]
