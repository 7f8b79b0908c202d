"""Models whose weights stay on the disk: a block is read when it is its turn, so memory holds one block at a time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.pytorch_utils import Conv1D

from mcq.errors import FormatError, InputError
from mcq_llm.mcq_format import MARK, McqLayer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Shards:
    """The safetensors files of a checkpoint folder.

    transformers computes with other parameters than some checkpoints hold, such as fused experts. What is read goes
    through the conversions that it registers for the architecture, and is written back through them. Layers that are
    stored in mcq's own format are decoded.

    Parameters
    ----------
    folder : Path
    model : PreTrainedModel
        Of that checkpoint, with or without weights.

    Raises
    ------
    InputError
        If the folder holds no safetensors.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self._folder, self._model = folder, model
        if (folder / INDEX).exists():
            self._file = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        elif (folder / SINGLE).exists():
            with safe_open(folder / SINGLE, "pt") as file:
                self._file = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise InputError(
                f"weights can be read block by block only from safetensors files, and {folder} has none; "
                f"convert it with save_pretrained, or load it as a whole (without --stream)"
            )
        conversions = get_model_conversion_mapping(model)
        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
        self._converters = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        # By parameter: the names of the tensors that it is made of, and the patterns of these.
        self._sources: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        state = model.state_dict()
        self._coded: dict[str, list[str]] = defaultdict(list)  # by layer: the names of its tensors
        for name in sorted(self._file, key=dot_natural_key):
            if MARK in name:
                self._coded[name.partition(MARK)[0]].append(name)
                continue
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            self._sources[target].append((name, pattern))
        used = [entry for entry in conversions if entry.was_used()]
        setattr(model, "_weight_conversions", used)  # noqa: B010 (for saving, as from_pretrained does; not declared)

    def load(self, module: nn.Module, prefix: str) -> None:
        """Give `module` its parameters from the disk, in float32; they have `prefix` before their names there.

        Raises
        ------
        InputError
            If one is missing.
        """
        tensors = self._read_all(lambda name: name.startswith(prefix))
        missing = [prefix + name for name in module.state_dict() if prefix + name not in tensors]
        if missing:
            raise self._lacking(missing[0])
        module.load_state_dict({name: tensors[prefix + name] for name in module.state_dict()}, assign=True)

    def load_model(self, model: PreTrainedModel, without: str | None = None) -> None:
        """Give `model` all parameters, in float32, but those of the list of blocks called `without`."""

        def wanted(name: str) -> bool:
            return without is None or not name.startswith(f"{without}.")

        model.load_state_dict(self._read_all(wanted), assign=True, strict=False)
        model.tie_weights()
        for name, tensor in model.state_dict().items():
            if tensor.is_meta and wanted(name):
                raise self._lacking(name)

    def _read_all(self, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        """Return the parameters whose names are `wanted`, with layers of mcq's own format decoded."""
        tensors = self._converted([target for target in self._sources if wanted(target)])
        for layer, names in self._coded.items():
            if wanted(f"{layer}.weight"):
                parts = {name.removeprefix(f"{layer}."): self._read(name, widen=False) for name in names}
                weight = McqLayer.restore(parts, f"{layer} in {self._folder}").weight()
                is_transposed = isinstance(self._model.get_submodule(layer), Conv1D)
                tensors[f"{layer}.weight"] = weight.T.contiguous() if is_transposed else weight
        return tensors

    def _converted(self, targets: list[str]) -> dict[str, torch.Tensor]:
        """Read everything that becomes one of the parameters `targets`."""
        tensors: dict[str, torch.Tensor] = {}
        for target in targets:
            first, pattern = self._sources[target][0]
            conversion = deepcopy(self._converters[pattern]) if pattern else WeightRenaming(first, target)
            for name, pattern in self._sources[target]:
                conversion.add_tensor(target, name, pattern or name, self._read(name))  # type: ignore[arg-type]
            made = conversion.convert(target, model=self._model, config=self._model.config)
            tensors |= {name: made[name][0] if isinstance(made[name], list) else made[name] for name in made}
        return tensors

    def _read(self, name: str, widen: bool = True) -> torch.Tensor:
        path = self._folder / self._file[name]
        try:
            with safe_open(path, "pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} must hold {name}, but: {error}; get an intact checkpoint") from None
        return tensor.float() if widen and tensor.is_floating_point() else tensor

    def _lacking(self, name: str) -> InputError:
        return InputError(
            f"{self._folder} must hold what {name} is made of, but does not; check that the folder is complete, or "
            f"load it as a whole (without --stream)"
        )


def unload(module: nn.Module) -> None:
    """Take the parameters of `module` out of memory."""
    module.load_state_dict({name: tensor.to("meta") for name, tensor in module.state_dict().items()}, assign=True)


def empty_model(folder: Path) -> PreTrainedModel:
    """Return the model of a checkpoint folder with parameters that take no memory."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return model.float().eval()
