"""Models whose weights stay on the disk: a block is read when it is its turn, so memory holds one block at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mcq.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Shards:
    """The safetensors files of a checkpoint folder.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    InputError
        If the folder holds no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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

    def load(self, module: nn.Module, prefix: str) -> None:
        """Give `module` its parameters from the disk, in float32; they have `prefix` before their names there.

        Raises
        ------
        InputError
            If one is missing.
        """
        module.load_state_dict({name: self._read(prefix + name) for name in module.state_dict()}, assign=True)

    def load_rest(self, model: PreTrainedModel, blocks: str) -> None:
        """Give `model` all parameters but those of the list called `blocks`."""
        wanted = [name for name in model.state_dict() if not name.startswith(f"{blocks}.")]
        model.load_state_dict({n: self._read(n) for n in wanted if n in self._file}, assign=True, strict=False)
        model.tie_weights()
        for name in wanted:
            if model.state_dict()[name].is_meta:
                self._read(name)  # says that it is missing

    def _read(self, name: str) -> torch.Tensor:
        if name not in self._file:
            raise InputError(
                f"{self._folder} has no tensor {name}: this architecture is stored under other names than it "
                f"computes with; load it as a whole (without --stream)"
            )
        with safe_open(self._folder / self._file[name], "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.float() if tensor.is_floating_point() else tensor


def unload(module: nn.Module) -> None:
    """Take the parameters of `module` out of memory."""
    module.load_state_dict({name: tensor.to("meta") for name, tensor in module.state_dict().items()}, assign=True)


def empty_model(folder: Path) -> PreTrainedModel:
    """Return the model of a checkpoint folder with parameters that take no memory."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return model.float().eval()
