"""What a quantized folder holds, gathered from its files: the numbers behind report and model card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mcq.errors import FormatError, InputError
from mcq_llm.formats import coded_layer

LINES = "quantize.jsonl"


@dataclass(frozen=True)
class LayerLine:
    """The line of a layer in quantize.jsonl, see `mcq_llm.quantize.LayerReport`."""

    layer: str
    rows: int
    columns: int
    setting: str
    error_before: float
    error_after: float
    error_predicted: float | None
    seconds: float
    peak_megabytes: float
    bits_payload: float
    bits_all_in: float

    @classmethod
    def parse(cls, found: dict[str, Any], place: str) -> LayerLine:
        """Take the fields that a report shows; `place` is for the error message.

        Raises
        ------
        FormatError
            If one is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in found]
        if missing:
            raise FormatError(f"{place} must have the field {missing[0]!r}, but has none; quantize the model again")
        return cls(**{field.name: found[field.name] for field in fields(cls)})

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns

    @property
    def depth(self) -> int:
        """Index of the block, 0 if the name has none."""
        return int(self._parts[0] or 0)

    @property
    def kind(self) -> str:
        """Name inside the block, alike in all blocks; experts count as one."""
        return re.sub(r"(?<=\.)\d+(?=\.)", "*", self._parts[1])

    @property
    def _parts(self) -> tuple[str, str]:
        match = re.match(r".*?\.(\d+)\.(.+)", self.layer)
        return (match[1], match[2]) if match else ("", self.layer)


@dataclass(frozen=True)
class Group:
    """Several layers together: errors are plain means over layers, bits are per weight, seconds are sums.

    What was predicted is None where not all layers have a prediction.
    """

    layers: int
    weights: int
    error_before: float
    error_after: float
    error_predicted: float | None
    bits_payload: float
    bits_all_in: float
    seconds: float

    @classmethod
    def of(cls, lines: Sequence[LayerLine]) -> Group:
        """Take sums and means."""
        weights = sum(line.weights for line in lines)
        predicted = [line.error_predicted for line in lines if line.error_predicted is not None]
        return cls(
            layers=len(lines),
            weights=weights,
            error_before=sum(line.error_before for line in lines) / len(lines),
            error_after=sum(line.error_after for line in lines) / len(lines),
            error_predicted=sum(predicted) / len(lines) if len(predicted) == len(lines) else None,
            bits_payload=sum(line.bits_payload * line.weights for line in lines) / weights,
            bits_all_in=sum(line.bits_all_in * line.weights for line in lines) / weights,
            seconds=sum(line.seconds for line in lines),
        )


@dataclass(frozen=True)
class Sizes:
    """Bytes of a checkpoint.

    Attributes
    ----------
    predicted : int
        Of the quantized layers, by the all-in bits that the plan gave them.
    quantized, rest, headers : int
        Found in the safetensors files: quantized layers without their biases, all other tensors, and the rest.
    float16 : int
        Of the tensors of the original, with quantized layers in float16.
    """

    predicted: int
    quantized: int
    rest: int
    headers: int
    float16: int

    @property
    def total(self) -> int:
        """Bytes of all safetensors files."""
        return self.quantized + self.rest + self.headers


@dataclass(frozen=True)
class Summary:
    """All numbers of a folder.

    Attributes
    ----------
    name : str
    lines : list of LayerLine
    total : Group
    kinds : dict of str to Group
        In order of appearance.
    sizes : Sizes or None
        None while there are no safetensors files.
    """

    name: str
    lines: list[LayerLine]
    total: Group
    kinds: dict[str, Group]
    sizes: Sizes | None

    def of_kind(self, kind: str) -> list[LayerLine]:
        """Return the layers of a kind."""
        return [line for line in self.lines if line.kind == kind]


def summarize(folder: Path) -> Summary:
    """Read quantize.jsonl and the headers of the safetensors files.

    Raises
    ------
    InputError
        If there is no quantize.jsonl, or nothing in it.
    FormatError
        If a line of it, or a header, is damaged.
    """
    path = Path(folder) / LINES
    # Lines of other things than layers are skipped. A layer that was done twice, before and after an interruption,
    # counts as it was done last.
    found = [LayerLine.parse(line, f"{path}, line {n}") for n, line in enumerate(_read(path), 1) if "layer" in line]
    lines = list({line.layer: line for line in found}.values())
    if not lines:
        raise InputError(f"a report needs one line per layer in {path}, but it is empty; quantize the model again")
    kinds = dict.fromkeys(line.kind for line in lines)
    groups = {kind: Group.of([line for line in lines if line.kind == kind]) for kind in kinds}
    return Summary(Path(folder).absolute().name, lines, Group.of(lines), groups, _sizes(Path(folder), lines))


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(
            f"a report needs {path}, which `mcq llm quantize` writes, but: {error.strerror}; give its output folder"
        ) from None
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"every line of {path} must be a JSON object, but: {error}; quantize the model again"
        ) from None


def _sizes(folder: Path, lines: list[LayerLine]) -> Sizes | None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    names = {line.layer for line in lines}
    parts = {"quantized": 0, "rest": 0}
    for file in files:
        for name, size in _tensor_bytes(file).items():
            layer = coded_layer(name) or name.removesuffix(".weight")
            parts["quantized" if layer in names else "rest"] += size
    return Sizes(
        predicted=round(sum(line.weights * line.bits_all_in for line in lines) / 8),
        headers=sum(file.stat().st_size for file in files) - sum(parts.values()),
        float16=sum(2 * line.weights for line in lines) + parts["rest"],
        **parts,
    )


def _tensor_bytes(file: Path) -> dict[str, int]:
    """Return the bytes of each tensor from the header alone: 8 bytes of length, then JSON."""
    try:
        with open(file, "rb") as stream:
            header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        entries = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        return {name: end - begin for name, (begin, end) in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise FormatError(f"{file} must be a safetensors file, but its header is damaged: {error}") from None
