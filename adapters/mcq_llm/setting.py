"""How one linear layer is stored, and overrides of it by the name of the layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mcq.errors import ConfigError
from mcq.validate import in_range, one_of

Scale = Literal["none", "row", "group"]
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True)
class Setting:
    """How one linear layer is stored.

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

    codebooks: int = 2
    bits: int = 8
    group: int = 8
    scale: Scale = "row"

    def __post_init__(self) -> None:
        in_range(self.codebooks, 1, 16, "codebooks")
        in_range(self.bits, 1, 16, "bits per code")
        in_range(self.group, 1, None, "group size")
        one_of(self.scale, SCALES, "scale")

    @classmethod
    def of_bits(cls, bits: int) -> Setting:
        """Return the standard setting of `bits` bits per weight: so many 8-bit codebooks over groups of 8."""
        return cls(codebooks=in_range(bits, 1, 16, "--bits"))

    def groups(self, inputs: int) -> int:
        """Return the number of groups in a row of `inputs` weights."""
        return -(-inputs // self.group)

    def scales(self, inputs: int) -> int:
        """Return the number of scales of a row of `inputs` weights."""
        return {"none": 0, "row": 1, "group": self.groups(inputs)}[self.scale]

    def __str__(self) -> str:
        scale = "" if self.scale == "row" else f" {self.scale} scale"
        return f"{self.codebooks}x{self.bits} g{self.group}{scale}"


@dataclass(frozen=True)
class Override:
    """A change to the setting of the layers whose name a regular expression finds.

    Attributes
    ----------
    pattern : str
        Searched for anywhere in the full name of a layer, such as ``model.layers.0.mlp.down_proj``.
    changes : dict of str to int or str, or None
        Fields of `Setting` to replace; None leaves the layer dense.
    """

    pattern: str
    changes: dict[str, Any] | None

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``PATTERN=key:value,key:value`` or ``PATTERN=dense``.

        Examples
        --------
        >>> Override.parse("down_proj=codebooks:3,group:16").changes
        {'codebooks': 3, 'group': 16}
        >>> Override.parse("layers.0.=dense").changes is None
        True
        """
        pattern, equals, value = text.rpartition("=")
        if not equals or not pattern:
            raise ConfigError(
                f"an override must look like PATTERN=key:value or PATTERN=dense, got {text!r}; "
                f"for example 'down_proj=codebooks:3'"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"the override pattern {pattern!r} is not a regular expression: {error}") from None
        return cls(pattern, None if value == "dense" else dict(_parse_change(item) for item in value.split(",")))

    def apply(self, setting: Setting) -> Setting | None:
        """Return `setting` with the changes made, or None for a dense layer."""
        return None if self.changes is None else dataclasses.replace(setting, **self.changes)


def _parse_change(item: str) -> tuple[str, Any]:
    key, colon, value = item.partition(":")
    names = [f.name for f in dataclasses.fields(Setting)]
    if key not in names or not colon:
        raise ConfigError(f"an override may set {', '.join(names)} as key:value, or be the word dense, got {item!r}")
    if key == "scale":
        return key, one_of(value, SCALES, "scale")
    if not value.isdigit():
        raise ConfigError(f"the override of {key} must be a whole number, got {value!r}")
    return key, int(value)


def setting_for(name: str, default: Setting, overrides: Iterable[Override]) -> Setting | None:
    """Return the setting of the layer `name`: of all overrides that match, the last one counts alone."""
    matching = [override for override in overrides if re.search(override.pattern, name)]
    return matching[-1].apply(default) if matching else default
