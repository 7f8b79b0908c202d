"""Settings of single layers, by the name of the layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mcq.errors import ConfigError
from mcq.validate import one_of
from mcq_llm.codecs import CODECS
from mcq_llm.setting import Setting

Value = int | float | str


@dataclass(frozen=True)
class Override:
    """A change to the setting of the layers whose name a regular expression finds.

    Attributes
    ----------
    pattern : str
        Searched for anywhere in the full name of a layer, such as ``model.layers.0.mlp.down_proj``.
    changes : dict of str to number or str, or None
        Fields of the setting to replace, or ``codec`` for another one's defaults; None leaves the layer dense.
    """

    pattern: str
    changes: dict[str, Value] | None

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
        """Return `setting` with the changes made, or None for a dense layer.

        Raises
        ------
        ConfigError
            If the setting has no such field, or a value is out of range.
        """
        return None if self.changes is None else changed(setting, self.changes)


def changed(setting: Setting, changes: Mapping[str, Value]) -> Setting:
    """Return `setting` with other values of its fields, or, with ``codec`` given, of another codec's defaults.

    Raises
    ------
    ConfigError
        If the setting has no such field, or a value is out of range.
    """
    fields: dict[str, Any] = dict(changes)
    if "codec" in fields:
        setting = CODECS[one_of(fields.pop("codec"), CODECS, "codec")]()
    names = [field.name for field in dataclasses.fields(setting)]
    for key in fields:
        if key not in names:
            raise ConfigError(f"{setting.codec} codes have the options {', '.join(names)}, got {key!r}")
    return dataclasses.replace(setting, **fields)


def _parse_change(item: str) -> tuple[str, Value]:
    key, colon, value = item.partition(":")
    if not key or not colon or not value:
        raise ConfigError(f"an override must set key:value, or be the word dense, got {item!r}")
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value


def setting_for(name: str, default: Setting, overrides: Iterable[Override]) -> Setting | None:
    """Return the setting of the layer `name`: of all overrides that match, the last one counts alone."""
    matching = [override for override in overrides if re.search(override.pattern, name)]
    return matching[-1].apply(default) if matching else default
