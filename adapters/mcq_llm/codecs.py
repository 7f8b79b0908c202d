"""The codecs that a linear layer can be stored with, one kind of setting for each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, Self, get_args

import mcq
from mcq.errors import ConfigError
from mcq.validate import in_range, one_of
from mcq_llm.setting import Setting

Scale = Literal["none", "row", "group"]
SCALES: tuple[Scale, ...] = get_args(Scale)


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
    """

    codec = "additive"
    kind: ClassVar[type[mcq.AdditiveQuantizer]] = mcq.AdditiveQuantizer

    codebooks: int = 2
    bits: int = 8
    group: int = 8
    scale: Scale = "row"

    def __post_init__(self) -> None:
        in_range(self.codebooks, 1, 16, "codebooks")
        in_range(self.bits, 1, 16, "bits per code")
        in_range(self.group, 1, None, "group size")
        one_of(self.scale, SCALES, "scale")

    def quantizer(self) -> mcq.AdditiveQuantizer:  # noqa: D102
        return self.kind(self.codebooks, self.bits, self.group, self.scale)

    @classmethod
    def of_bits(cls, bits: float) -> Self:  # noqa: D102
        if bits != int(bits):
            raise ConfigError(f"{cls.codec} codes alike in all layers take whole bits, got {bits}; allocate the bits")
        return cls(codebooks=in_range(int(bits), 1, 16, "bits per weight"))

    @classmethod
    def candidates(cls) -> list[Setting]:
        """Return 1 to 6 codebooks of 4 to 8 bits: small layers cannot afford large codebooks."""
        grid = [(m * b, b, m) for m, b in product(range(1, 7), range(4, 9)) if m * b >= 7]
        return [cls(m, b) for _, b, m in sorted(grid)]

    def groups(self, inputs: int) -> int:
        """Return the number of groups in a row of `inputs` weights."""
        return -(-inputs // self.group)

    def scales(self, inputs: int) -> int:
        """Return the number of scales of a row of `inputs` weights."""
        return {"none": 0, "row": 1, "group": self.groups(inputs)}[self.scale]

    @property
    def has_scales(self) -> bool:  # noqa: D102
        return self.scale != "none"

    def cost(self, rows: int, columns: int) -> mcq.Bits:  # noqa: D102
        row = self.codebooks * self.groups(columns) * self.bits
        codebooks = 16 * self.codebooks * 2**self.bits * self.group + 32  # and the gain
        all_in = rows * (8 * -(-row // 8) + 16 * self.scales(columns)) + codebooks
        return mcq.Bits(row / columns, all_in / (rows * columns))

    def __str__(self) -> str:
        scale = "" if self.scale == "row" else f" {self.scale} scale"
        return f"{self.codebooks}x{self.bits} g{self.group}{scale}"


@dataclass(frozen=True)
class ResidualSetting(AdditiveSetting):
    """Residual codes: additive ones whose every prefix is a code of its own, found faster, with a larger error."""

    codec = "residual"
    kind = mcq.ResidualQuantizer

    def __str__(self) -> str:
        return f"residual {super().__str__()}"


CODECS: dict[str, type[Setting]] = {setting.codec: setting for setting in (AdditiveSetting, ResidualSetting)}
