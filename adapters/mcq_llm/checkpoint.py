"""A checkpoint in the making: one shard per finished block, and one file per finished layer of the block at work.

A killed run goes on from these files. They hold what the finished checkpoint holds, at the same precision, so a run
that was interrupted ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mcq.errors import InputError
from mcq_llm.blocks import Blocks
from mcq_llm.config import Options
from mcq_llm.formats import StoredLayer, coded_layer, layer_type
from mcq_llm.plan import Layer, quantized
from mcq_llm.shards import INDEX
from mcq_llm.storage import as_stored, read_tensors, write_bytes, write_tensors
from mcq_llm.text import tokens_hash

RUN = "run.json"


class Checkpoint:
    """The files of a quantized model, written part by part.

    Parameters
    ----------
    folder : Path
        Empty, or left by a run that was interrupted.
    model : PreTrainedModel
    blocks : Blocks
        Of `model`.
    plan : list of Layer
    file_format : {"aqlm", "mcq", "dense"}
    run : dict of str to str
        What decides the result, see `fingerprint`.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        blocks: Blocks,
        plan: list[Layer],
        file_format: str,
        run: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self._model, self._blocks, self._format = model, blocks, file_format
        self._planned = {layer.name: layer for layer in quantized(plan)}
        self._decisive, self._run = run, digest(run)
        self._parts = folder / "parts"
        self._shards: dict[str, str] = {}  # by tensor
        self._bytes = 0

    def open(self) -> None:
        """Take up the folder.

        Raises
        ------
        InputError
            If it is of a run that would have had another result, with the difference.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        if (self._parts / RUN).exists():
            _require_equal(json.loads((self._parts / RUN).read_text()), self._decisive, self.folder)
        else:
            write_bytes(self._parts / RUN, (json.dumps(self._decisive, indent=2) + "\n").encode())

    def layers(self, names: Iterable[str]) -> dict[str, tuple[StoredLayer, torch.Tensor | None]]:
        """Return those of the layers `names`, with their biases, that are finished while their block is not."""
        found = {name: read_tensors(self._part(name), self._run) for name in names if self._part(name).exists()}
        return {name: (self._coded(name, tensors), tensors.get(f"{name}.bias")) for name, tensors in found.items()}

    def has_layer(self, name: str) -> bool:
        """Return whether the layer `name` or its block is finished."""
        return self._part(name).exists() or self.has_block(self._blocks.number(name))

    def save_layer(self, name: str, layer: StoredLayer, bias: torch.Tensor | None) -> None:
        """Write a finished layer with its bias."""
        tensors = _prefixed(name, layer)
        if bias is not None:
            tensors[f"{name}.bias"] = bias
        write_tensors(self._part(name), tensors, self._run)

    def has_block(self, index: int) -> bool:
        """Return whether block `index` is finished."""
        return self._part(self._block(index)).exists()

    def save_block(self, index: int, layers: Mapping[str, StoredLayer]) -> None:
        """Write block `index`, with `layers` as codes and everything else as the model holds it."""
        state = {
            f"{self._block(index)}.{name}": tensor for name, tensor in self._blocks.modules[index].state_dict().items()
        }
        write_tensors(
            self._part(self._block(index)), _tensors(state, {} if self._format == "dense" else layers), self._run
        )
        for path in self._parts.glob(f"{self._block(index)}.*.safetensors"):
            path.unlink()

    @torch.no_grad()
    def restore_block(self, index: int) -> None:
        """Give block `index` of the model the parameters that it was written with."""
        tensors = read_tensors(self._part(self._block(index)), self._run)
        for name, target in self._blocks.modules[index].state_dict().items():
            name = f"{self._block(index)}.{name}"
            if name in tensors:
                target.copy_(tensors[name])
            else:
                layer = name.removesuffix(".weight")
                target.copy_(self._coded(layer, tensors).weight())

    def write_shards(self) -> tuple[set[str], list[str]]:
        """Turn the parts into the shards of a Hugging Face checkpoint, one per block and one for all else.

        Returns
        -------
        coded : set of str
            The layers that are stored as codes.
        shards : list of str
            Names of the files.
        """
        inside = f"{self._blocks.name}."
        rest = {name: tensor for name, tensor in self._model.state_dict().items() if not name.startswith(inside)}
        write_tensors(self._part("rest"), _tensors(rest, {}), self._run)
        parts = [self._part(self._block(index)) for index in range(len(self._blocks.modules))] + [self._part("rest")]
        for number, part in enumerate(parts, start=1):
            tensors = self._as_published(read_tensors(part, self._run))
            shard = f"model-{number:05}-of-{len(parts):05}.safetensors"
            write_tensors(self.folder / shard, tensors, self._run)
            self._shards |= dict.fromkeys(tensors, shard)
            self._bytes += sum(tensor.nbytes for tensor in tensors.values())
        coded = {layer for layer in map(coded_layer, self._shards) if layer is not None}
        return coded, sorted(set(self._shards.values()))

    @property
    def complete(self) -> bool:
        """Whether all that is left to do is to remove the parts."""
        return (self.folder / INDEX).exists()

    def seal(self) -> None:
        """Write the index of the shards, after all other files, and remove the parts."""
        if not self.complete:
            content = {"metadata": {"total_size": self._bytes}, "weight_map": self._shards}
            write_bytes(self.folder / INDEX, (json.dumps(content, indent=2) + "\n").encode())
        shutil.rmtree(self._parts)

    def _as_published(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors under the names of published checkpoints, which transformers maps to its own modules."""
        coded = {name: tensor for name, tensor in tensors.items() if coded_layer(name)}
        ordinary = {name: tensor for name, tensor in tensors.items() if name not in coded}
        return coded | revert_weight_conversion(self._model, ordinary)

    def _block(self, index: int) -> str:
        return f"{self._blocks.name}.{index}"

    def _part(self, name: str) -> Path:
        return self._parts / f"{name}.safetensors"

    def _coded(self, name: str, tensors: Mapping[str, torch.Tensor]) -> StoredLayer:
        planned = self._planned[name]
        parts = {part.removeprefix(f"{name}."): t for part, t in tensors.items() if coded_layer(part) == name}
        return layer_type(self._format).of_tensors(planned.setting, planned.columns, parts)


def fingerprint(model: PreTrainedModel, blocks: Blocks, windows: torch.Tensor, options: Options) -> dict[str, str]:
    """Return what decides the result of a run: hashes of model and calibration tokens, versions, and all options."""
    weights = hashlib.sha256(model.config.to_json_string().encode())
    inside = f"{blocks.name}."
    for name, tensor in model.state_dict().items():
        if not name.startswith(inside):
            _hash(weights, name, tensor)
    for index in range(len(blocks.modules)):
        with blocks.loaded(index) as block:
            for name, tensor in block.state_dict().items():
                _hash(weights, name, tensor)
    return {
        "model": weights.hexdigest(),
        "calibration": tokens_hash(windows),
        **{name: version(name) for name in ("multicodebook", "torch", "transformers")},
        **{f"options.{field.name}": str(getattr(options, field.name)) for field in fields(options)},
    }


def digest(run: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits that identify a run."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def _hash(into: Any, name: str, tensor: torch.Tensor) -> None:
    into.update(name.encode())
    into.update(
        tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.ndim else bytes(str(tensor), "ascii")
    )


def _require_equal(found: Mapping[str, str], run: Mapping[str, str], folder: Path) -> None:
    changed = [
        f"{name} was {found.get(name)} and is now {run.get(name)}"
        for name in sorted({*found, *run})
        if found.get(name) != run.get(name)
    ]
    if changed:
        raise InputError(
            f"the unfinished run in {folder} cannot go on, because it was started otherwise: {'; '.join(changed)}; "
            f"start it as it was, or remove the folder"
        )


def _prefixed(name: str, layer: StoredLayer) -> dict[str, torch.Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in layer.tensors().items()}


def _tensors(state: Mapping[str, torch.Tensor], coded: Mapping[str, StoredLayer]) -> dict[str, torch.Tensor]:
    """Return what is written of `state`, with the weights of the layers `coded` as codes."""
    tensors: dict[str, torch.Tensor] = {}
    known: set[int] = set()  # a tied weight is written once, under its first name
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if layer in coded:
            tensors |= _prefixed(layer, coded[layer])
        elif tensor.data_ptr() not in known:
            tensors[name] = as_stored(tensor)
            known.add(tensor.data_ptr())
    return tensors
