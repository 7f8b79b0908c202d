"""The codecs that a linear layer can be stored with, one kind of setting for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

import mcq
from mcq import rate
from mcq.errors import ConfigError
from mcq.gain_shape import WORD_BITS
from mcq.grids import GRID_BITS
from mcq.scales import Scale
from mcq.storage import CODEBOOK_DTYPES, CodebookDtype
from mcq.validate import in_range, one_of
from mcq_llm.setting import CURVE_ROWS, TINY, Setting

SCALES: tuple[Scale, ...] = get_args(Scale)
#: The codebooks that an allocation chooses from.
LEAST_BITS, MOST_BITS, MOST_CODEBOOKS = 4, 8, 6
#: Error with 2, 3, ... codebooks of the least and the most bits, relative to that with one less, in units of the ideal
#: share 4**-(bits / group). Measured on a few layers of SmolLM2-135M under their Grams.
FURTHER = {LEAST_BITS: (0.94, 1.02, 1.06, 1.09, 1.1), MOST_BITS: (1.0, 1.08, 1.14, 1.18, 1.2)}


@dataclass(frozen=True)
class AdditiveSetting(Setting):
    """Additive codes: the only ones that AQLM checkpoints hold, too.

    Attributes
    ----------
    codebooks : int
        Number of codebooks M, 1 to 16.
    bits : int
        Bits per code B, 1 to 16; a codebook has 2**B entries.
    group : int
        Number of neighbouring inputs g that one tuple of codes describes.
    scale : {"none", "row", "group"}
        What shares one float16 scale.
    dtype : {"float16", "int8"}
        Of the codebooks as they are stored; int8 saves bits in small layers, and cannot be tuned or written for AQLM.
    """

    codec = "additive"
    in_bands = False
    kind: ClassVar[type[mcq.AdditiveQuantizer]] = mcq.AdditiveQuantizer

    codebooks: int = 2
    bits: int = 8
    group: int = 8
    scale: Scale = "row"
    dtype: CodebookDtype = "float16"

    def __post_init__(self) -> None:
        one_of(self.dtype, CODEBOOK_DTYPES, "dtype")
        in_range(self.codebooks, 1, 16, "codebooks")
        in_range(self.bits, 1, 16, "bits per code")
        in_range(self.group, 1, None, "group size")
        one_of(self.scale, SCALES, "scale")

    def plain(self) -> mcq.AdditiveQuantizer:  # noqa: D102
        return self.kind(self.codebooks, self.bits, self.group, self.scale, codebook_dtype=self.dtype)

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        if bits != int(bits):
            raise ConfigError(f"{cls.codec} codes alike in all layers take whole bits, got {bits}; allocate the bits")
        return cls(codebooks=in_range(int(bits), 1, 16, "bits per weight"))

    @classmethod
    def reaches(cls, bits: float) -> bool:  # noqa: D102
        return bits == int(bits)

    def _candidates(self) -> list[Self]:
        bits = range(LEAST_BITS, MOST_BITS + 1)
        grid = [(m * b, b, m) for m, b in product(range(1, MOST_CODEBOOKS + 1), bits) if m * b >= MOST_BITS - 1]
        return [replace(self, codebooks=m, bits=b) for _, b, m in sorted(grid)]

    def candidates(self) -> list[Setting]:
        """Return 1 to 6 codebooks of 4 to 8 bits: small layers cannot afford large codebooks."""
        return [*self._candidates()]

    def curve(self, weight: NDArray[np.float32], metric: mcq.Gram) -> dict[Setting, float]:
        """Return the relative error that a layer will have with each of the candidates.

        One codebook of few and one of many entries are fitted. The logarithm of the error falls evenly with the bits of
        a code, and with each further codebook as `FURTHER` says.
        """
        logs = {}
        for bits in (LEAST_BITS, MOST_BITS):
            quantizer = mcq.AdditiveQuantizer(1, bits, self.group, self.scale, rounds=2, search_steps=1)
            error = metric.relative_error(weight, quantizer.decode(quantizer.fit_encode(weight, metric)))
            first = math.log(max(error, TINY))
            logs[bits] = np.array([first, *np.log(FURTHER[bits]) - math.log(4) * bits / self.group]).cumsum()
        return {setting: math.exp(_between(logs, setting)) for setting in self._candidates()}

    def groups(self, inputs: int) -> int:
        """Return the number of groups in a row of `inputs` weights."""
        return -(-inputs // self.group)

    def scales(self, inputs: int) -> int:
        """Return the number of scales of a row of `inputs` weights."""
        return {"none": 0, "row": 1, "group": self.groups(inputs)}[self.scale]

    @property
    def has_scales(self) -> bool:  # noqa: D102
        return self.scale != "none" and self.dtype == "float16" and not self.rotate

    def cost(self, rows: int, columns: int) -> mcq.Bits:  # noqa: D102
        row = self.codebooks * self.groups(columns) * self.bits
        entries = 2**self.bits * self.group
        codebook = 16 * entries if self.dtype == "float16" else 8 * entries + 32  # and its step
        shared = self.codebooks * codebook + 32 + (64 if self.rotate else 0)  # and gain and seed
        all_in = rows * (8 * -(-row // 8) + 16 * self.scales(columns)) + shared
        return mcq.Bits(row / columns, all_in / (rows * columns))

    def __str__(self) -> str:
        scale = "" if self.scale == "row" else f" {self.scale} scale"
        dtype = "" if self.dtype == "float16" else f" {self.dtype}"
        return f"{self.codebooks}x{self.bits} g{self.group}{scale}{dtype}{_rotated(self)}"


def _between(logs: Mapping[int, NDArray[np.float64]], setting: AdditiveSetting) -> float:
    """Interpolate between the sizes of codebooks that were fitted."""
    low, high = (float(logs[bits][setting.codebooks - 1]) for bits in (LEAST_BITS, MOST_BITS))
    return low + (high - low) * (setting.bits - LEAST_BITS) / (MOST_BITS - LEAST_BITS)


@dataclass(frozen=True)
class ResidualSetting(AdditiveSetting):
    """Residual codes: additive ones whose every prefix is a code of its own, found faster, with a larger error."""

    codec = "residual"
    kind = mcq.ResidualQuantizer

    def curve(self, weight: NDArray[np.float32], metric: mcq.Gram) -> dict[Setting, float]:
        """Return the relative error that a layer will have with each of the candidates: of prefixes of a few codes."""
        curve: dict[Setting, float] = {}
        zeros = metric.distortion(weight, np.zeros_like(weight)) or 1.0
        for bits in range(LEAST_BITS, MOST_BITS + 1):
            quantizer = mcq.ResidualQuantizer(MOST_CODEBOOKS, bits, self.group, self.scale, rounds=2, search_steps=1)
            unit = rate.residual_curve("", quantizer, quantizer.fit_encode(weight, metric), weight, metric)
            for m, distortion in zip(unit.settings, unit.distortion, strict=True):
                curve[replace(self, codebooks=int(str(m)), bits=bits)] = distortion / zeros
        return {setting: curve[setting] for setting in self.candidates()}

    def __str__(self) -> str:
        return f"residual {super().__str__()}"


@dataclass(frozen=True)
class GainShapeSetting(Setting):
    """Gains times points of an implicit codebook, for any rate; only gains and scales are stored beside the codes.

    Attributes
    ----------
    bits : float
        Bits per weight, without the scales of the rows; the codes that come closest from below are taken.
    group : int
        Number of neighbouring inputs that one code describes.
    scale : {"none", "row"}
    """

    kind: ClassVar[type[mcq.PyramidQuantizer] | type[mcq.ShellQuantizer]]

    bits: float = 2.0
    group: int = 16
    scale: Literal["none", "row"] = "row"

    def __post_init__(self) -> None:
        in_range(self.bits, 0.0, None, "bits per weight")
        in_range(self.group, 1, None, "group size")
        one_of(self.scale, ("none", "row"), "scale")

    def plain(self) -> mcq.Quantizer:  # noqa: D102
        return copy.deepcopy(_of_rate(self.kind, self.bits, self.group, self.scale))  # each layer has one of its own

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        return cls(bits)

    def candidates(self) -> list[Setting]:
        """Return 1 to 5 bits in steps of a quarter, in half the group, or less, where a whole one is beyond 64 bits."""
        rates = [quarters / 4 for quarters in range(4, 21)]
        return [replace(self, bits=rate, group=self._group_for(rate)) for rate in rates]

    def _group_for(self, rate: float) -> int:
        group = self.group
        while rate * group > WORD_BITS:
            group //= 2
        return group

    def __str__(self) -> str:
        scale = "" if self.scale == "row" else " no scale"
        return f"{self.codec} {self.bits:g} g{self.group}{scale}{_rotated(self)}"


@cache
def _of_rate(
    kind: type[mcq.PyramidQuantizer] | type[mcq.ShellQuantizer], bits: float, group: int, scale: Literal["none", "row"]
) -> mcq.Quantizer:
    return kind.of_rate(bits, group, scale)


@dataclass(frozen=True)
class PyramidSetting(GainShapeSetting):
    """Pyramid codes: points of equal sum of magnitudes, for weights with heavy tails."""

    codec = "pyramid"
    kind = mcq.PyramidQuantizer


@dataclass(frozen=True)
class ShellSetting(GainShapeSetting):
    """Shell codes: integer points of equal length, for weights that are nearly normal."""

    codec = "shell"
    kind = mcq.ShellQuantizer


@dataclass(frozen=True)
class LatticeSetting(Setting):
    """Whatever loses least in each layer: pyramids or shells, of weights as they are or rotated.

    Stands for the settings that an allocation chooses from; no layer has it itself.
    """

    codec = "lattice"

    def __post_init__(self) -> None:
        if self.rotate:
            raise ConfigError("lattice codes rotate the layers where it pays; leave out --rotate")

    def plain(self) -> mcq.Quantizer:
        """Refuse: there is a quantizer only for what is chosen."""
        raise ConfigError("lattice codes are chosen layer by layer; give --allocate or a fraction of a bit, or --size")

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        return cls()

    @classmethod
    def reaches(cls, bits: float) -> bool:  # noqa: D102
        return False

    def cost(self, rows: int, columns: int) -> mcq.Bits:
        """Return the bits of the smallest candidate, until there is a choice."""
        return self.candidates()[0].cost(rows, columns)

    def _families(self) -> list[Setting]:
        return [kind(rotate=rotate) for kind in (PyramidSetting, ShellSetting) for rotate in (False, True)]

    def candidates(self) -> list[Setting]:
        """Return those of pyramids and shells, without and with rotation."""
        return [
            setting
            for settings in zip(*(f.candidates() for f in self._families()), strict=True)
            for setting in settings
        ]

    def curve(self, weight: NDArray[np.float32], metric: mcq.Gram) -> dict[Setting, float]:
        """Return the relative error that a layer will have with each of the candidates."""
        curves = [family.curve(weight, metric) for family in self._families()]
        found = {setting: error for curve in curves for setting, error in curve.items()}
        return {setting: found[setting] for setting in self.candidates()}

    def __str__(self) -> str:
        return "lattice"


@dataclass(frozen=True)
class TrellisSetting(Setting):
    """Trellis codes: weights that share their bits with those that follow, for rows that are nearly normal.

    Attributes
    ----------
    bits : float
        Bits per weight, 1 to 5, without the scales of the rows.
    states : int
        Bits of a state: how many of them a weight depends on, 9 to 16.
    beam : int
        Paths that the search keeps.
    """

    codec = "trellis"

    bits: float = 2.0
    states: int = 16
    beam: int = 256

    def plain(self) -> mcq.Quantizer:  # noqa: D102
        return mcq.TrellisQuantizer(self.bits, self.states, "row", self.beam)

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        return cls(bits)

    def candidates(self) -> list[Setting]:
        """Return 1 to 5 bits in steps of a quarter."""
        return [replace(self, bits=quarters / 4) for quarters in range(4, 21)]

    def cost(self, rows: int, columns: int) -> mcq.Bits:  # noqa: D102
        row, shared = int(columns * self.bits), 64 + (64 if self.rotate else 0)  # size and gain, and the seed
        return mcq.Bits(row / columns, (rows * (8 * -(-row // 8) + 16) + shared) / (rows * columns))

    def __str__(self) -> str:
        return f"trellis {self.bits:g} L{self.states}{_rotated(self)}"


@dataclass(frozen=True)
class CompandedSetting(Setting):
    """Scalar codes whose depth differs from group to group (CVXQ).

    Attributes
    ----------
    bits : float
        Bits per weight, all-in.
    group : int
        Number of rows that share a depth, in each column.
    """

    codec = "companded"
    in_bands = False

    bits: float = 3.0
    group: int = 512

    def plain(self) -> mcq.Quantizer:  # noqa: D102
        return mcq.CompandedQuantizer(self.bits, self.group)

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        return cls(bits)

    def candidates(self) -> list[Setting]:
        """Return 1 1/2 to 6 bits in steps of an eighth."""
        return [replace(self, bits=eighths / 8) for eighths in range(12, 49)]

    @property
    def curve_rows(self) -> int:
        """A cluster of rows: fewer could not pay for its scales."""
        return max(self.group, CURVE_ROWS)

    def fits(self, rows: int, columns: int) -> bool:
        """Return whether these bits leave room for codes: groups of few rows take most of them."""
        return mcq.CompandedQuantizer(self.bits, self.group).least_bits(rows, columns) < self.bits

    def cost(self, rows: int, columns: int) -> mcq.Bits:
        """Return the bits that are not exceeded."""
        return mcq.Bits(self.bits, self.bits)

    def __str__(self) -> str:
        return f"companded {self.bits:g} g{self.group}{_rotated(self)}"


@dataclass(frozen=True)
class ScalarSetting(Setting):
    """Rounding to even steps, each group of a row with steps and offset of its own (round to nearest, GPTQ).

    Attributes
    ----------
    bits : int
        Of a weight, without steps and offsets.
    group : int
        Number of neighbouring inputs that share these.
    feedback : bool
        Whether weights make up for the errors of those before them, as GPTQ does, or go to the nearest step.
    """

    codec = "scalar"

    bits: int = 3
    group: int = 128
    feedback: bool = True

    def plain(self) -> mcq.Quantizer:  # noqa: D102
        return mcq.ScalarQuantizer(self.bits, self.group, bool(self.feedback))

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        if bits != int(bits):
            raise ConfigError(f"scalar codes alike in all layers take whole bits, got {bits}; allocate the bits")
        return cls(int(bits))

    @classmethod
    def reaches(cls, bits: float) -> bool:  # noqa: D102
        return bits == int(bits)

    def candidates(self) -> list[Setting]:
        """Return 2 to 6 bits in two sizes of groups."""
        groups = dict.fromkeys((self.group, max(self.group // 2, 1)))
        return [replace(self, bits=bits, group=group) for bits in range(2, 7) for group in groups]

    def __str__(self) -> str:
        feedback = "" if self.feedback else " nearest"
        return f"scalar {self.bits} g{self.group}{feedback}{_rotated(self)}"


@dataclass(frozen=True)
class GridSetting(Setting):
    """Nearest points of a fixed grid, for rows that a rotation of its own makes normal (HIGGS).

    Attributes
    ----------
    dimension : int
        Number of neighbouring inputs that one code describes, 1 to 4.
    points : int
        Of the grid, a power of two.
    """

    codec = "grid"

    dimension: int = 2
    points: int = 256

    def __post_init__(self) -> None:
        if self.rotate:
            raise ConfigError("grid codes rotate rows themselves; leave out --rotate")

    def plain(self) -> mcq.Quantizer:  # noqa: D102
        return mcq.GridQuantizer(self.dimension, self.points)

    @classmethod
    def of_bits(cls, bits: float) -> Self:
        """Return the grid of most dimensions that has so many bits."""
        for dimension in (4, 3, 2, 1):
            if bits * dimension in GRID_BITS[dimension]:
                return cls(dimension, 1 << int(bits * dimension))
        rates = sorted({b / dimension for dimension, found in GRID_BITS.items() for b in found})
        raise ConfigError(f"grid codes have {', '.join(f'{r:.4g}' for r in rates)} bits, got {bits}; allocate the bits")

    @classmethod
    def reaches(cls, bits: float) -> bool:  # noqa: D102
        return any(bits * dimension in found for dimension, found in GRID_BITS.items())

    def candidates(self) -> list[Setting]:
        """Return the grid of most dimensions of every rate."""
        rates = sorted({b / dimension for dimension, found in GRID_BITS.items() for b in found})
        return [type(self).of_bits(rate) for rate in rates]

    def __str__(self) -> str:
        return f"grid {self.points} p{self.dimension}"


def _rotated(setting: Setting) -> str:
    return " rotated" if setting.rotate else ""


KINDS: tuple[type[Setting], ...] = (
    AdditiveSetting,
    ResidualSetting,
    PyramidSetting,
    ShellSetting,
    LatticeSetting,
    TrellisSetting,
    CompandedSetting,
    ScalarSetting,
    GridSetting,
)
CODECS = {setting.codec: setting for setting in KINDS}
