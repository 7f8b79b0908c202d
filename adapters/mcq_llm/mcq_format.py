"""mcq's own checkpoint format: layers of any codec, each with the setting that suits it.

The tensors of a linear layer at path P are what the quantizer and the codes would put into container files of their
own (docs/file-format.md):

| tensor                 | type    | shape         |                                                      |
|------------------------|---------|---------------|------------------------------------------------------|
| `P.mcq.config`         | uint8   | (bytes,)      | JSON: kind and config of both containers             |
| `P.mcq.quantizer.NAME` | its own | its own       | the arrays of the quantizer, such as codebooks       |
| `P.mcq.codes.NAME`     | its own | its own       | the arrays of the codes                              |
| `P.mcq.row_scale`      | float16 | (outputs,)    | only where tuning has given the rows scales          |

The weight is what the quantizer decodes the codes to, times `row_scale`. Whoever loads a model decodes each layer
once and computes with ordinary weights: codes are how it is stored, and no codec needs a kernel of its own for that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mcq
from mcq import io
from mcq.errors import FormatError
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.setting import Setting

METHOD = "mcq"
FORMAT_VERSION = "1"
MARK = ".mcq."
CONFIG = "mcq.config"
PARTS = ("quantizer", "codes")


def quantization_config(folder: Path, shards: list[str]) -> dict[str, Any]:
    """Return the entry ``quantization_config`` of config.json; `shards` are in `folder` already."""
    return {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "sha256": {name: hash_of(folder / name) for name in shards},
    }


def verify(folder: Path, config: Mapping[str, Any]) -> None:
    """Check the files of a checkpoint against its entry ``quantization_config``.

    Raises
    ------
    FormatError
        If it is of a newer version, or a file is missing, cut short or altered.
    """
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{folder} has version {version!r} of mcq's format for models, but this mcq reads {FORMAT_VERSION!r}; "
            f"upgrade multicodebook"
        )
    hashes = config.get("sha256")
    if not isinstance(hashes, dict) or not hashes or any(Path(name).name != name for name in hashes):
        raise FormatError(f"{folder} must list the checksums of its files in config.json; get an intact checkpoint")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise FormatError(f"{folder} must hold {name}, which is missing; get an intact checkpoint")
        if hash_of(folder / name) != expected:
            raise FormatError(f"{folder / name} does not match its checksum; it was altered or damaged, get it anew")


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class McqLayer:
    """A layer as quantizer and codes, which together give the weight.

    Attributes
    ----------
    quantizer : mcq.Quantizer
        Fitted.
    codes : mcq.Codes or mcq.ScalarCodes
    row_scale : array of shape (outputs,), float16, or None
    """

    quantizer: mcq.Quantizer
    codes: Any
    row_scale: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, setting: Setting, quantizer: mcq.Quantizer, codes: Any) -> McqLayer:
        """Take over what a quantizer found."""
        return cls(quantizer, codes)

    @classmethod
    def of_tensors(cls, setting: Setting, inputs: int, tensors: Mapping[str, torch.Tensor]) -> McqLayer:
        """Return the layer that `tensors` returned the tensors of."""
        return cls.restore(tensors, "the layer")

    @classmethod
    def restore(cls, tensors: Mapping[str, torch.Tensor], source: str) -> McqLayer:
        """Return the layer of these tensors; `source` is how errors call it.

        Raises
        ------
        FormatError
            If they do not make a layer.
        """
        try:
            config = json.loads(tensors[CONFIG].numpy().tobytes())
            described = [(part, *config[part]) for part in PARTS]
            containers = [io.Container(kind, options, _arrays(tensors, part)) for part, kind, options in described]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{source} is not described as a layer: {error}; get an intact checkpoint") from None
        quantizer, codes = (io.restore(container, source) for container in containers)
        row_scale = tensors.get("mcq.row_scale")
        return cls(quantizer, codes, None if row_scale is None else row_scale.numpy())

    @property
    def bits(self) -> mcq.Bits:
        """What the layer takes, per weight."""
        found = self.quantizer.bits(self.codes)
        extra = 0.0 if self.row_scale is None else 16 / self.codes.shape[1]
        return mcq.Bits(found.payload, found.all_in + extra)

    def weight(self) -> torch.Tensor:
        """Return the weight that the codes stand for: shape (outputs, inputs), float32."""
        weight = torch.from_numpy(self.quantizer.decode(self.codes))
        return weight if self.row_scale is None else weight * torch.from_numpy(self.row_scale).float()[:, None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the layer in a checkpoint."""
        containers = dict(zip(PARTS, (self.quantizer.container(), self.codes.container()), strict=True))
        config = {part: [found.kind, found.config] for part, found in containers.items()}
        tensors = {
            CONFIG: torch.from_numpy(np.frombuffer(json.dumps(config, sort_keys=True).encode(), np.uint8).copy())
        }
        for part, found in containers.items():
            tensors |= {f"mcq.{part}.{name}": torch.from_numpy(array.copy()) for name, array in found.arrays.items()}
        if self.row_scale is not None:
            tensors["mcq.row_scale"] = torch.from_numpy(self.row_scale.copy())
        return tensors

    def as_additive(self) -> AqlmLayer | None:
        """Return codes, codebooks and scales, if that is all there is to the layer; each of them can be tuned."""
        if not isinstance(self.quantizer, mcq.AdditiveQuantizer) or self.codes.scales is None:
            return None
        config = self.quantizer.config
        if config.codebook_dtype != "float16":
            return None
        setting = AdditiveSetting(
            config.num_codebooks, config.codebook_bits, self.quantizer.codebooks.shape[2], config.scale
        )
        return AqlmLayer.of(setting, self.quantizer, self.codes)

    def with_additive(self, layer: AqlmLayer) -> McqLayer:
        """Return the layer with the codebooks and scales of `layer`, which `as_additive` was tuned to."""
        arrays: dict[str, NDArray[Any]] = {"codebooks": layer.codebooks, "gain": np.ones(1, np.float32)}
        container = self.quantizer.container()._replace(arrays=arrays)
        codes = dataclasses.replace(self.codes, scales=layer.scales)
        return McqLayer(io.restore(container, "the tuned layer"), codes)


def _arrays(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, NDArray[Any]]:
    prefix = f"mcq.{part}."
    return {name.removeprefix(prefix): t.numpy() for name, t in tensors.items() if name.startswith(prefix)}
