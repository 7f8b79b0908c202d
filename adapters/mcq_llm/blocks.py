"""The repeated blocks of a decoder and the linear layers in them, found by structure, not by architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mcq.errors import InputError
from mcq_llm.device import CPU, device_of, moved
from mcq_llm.experts import unfused
from mcq_llm.shards import Shards, unload

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class Blocks:
    """The list of blocks of a model.

    Attributes
    ----------
    name : str
        Of the list inside the model, such as ``model.layers``.
    modules : list of Module
    shards : Shards or None
        Where the weights are, if they are not in memory.
    device : torch.device
        Where a block computes while it is loaded.
    """

    name: str
    modules: nn.ModuleList
    shards: Shards | None
    device: torch.device

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Provide block `index` on the device, with its fused experts taken apart, and undo both then."""
        block = self.modules[index]
        if self.shards is not None:
            self.shards.load(block, self.prefix(index))
        try:
            with moved(block, self.device), unfused(block):
                yield block
        finally:
            if self.shards is not None:
                unload(block)

    def prefix(self, index: int) -> str:
        """Return what the names of everything in block `index` start with."""
        return f"{self.name}.{index}."

    def number(self, name: str) -> int:
        """Return the number of the block that `name` is, or is in."""
        return int(name.removeprefix(f"{self.name}.").partition(".")[0])

    def layers(self, index: int, block: nn.Module | None = None) -> dict[str, nn.Module]:
        """Return the linear layers of block `index`, or of `block` as its copy, by their full names."""
        return linear_layers(self.modules[index] if block is None else block, self.prefix(index))


def find_blocks(model: nn.Module, shards: Shards | None = None) -> Blocks:
    """Find the longest list of equal modules that contain linear layers.

    Lists inside other such lists (the experts of a block, say) do not count. Blocks compute where the model is. With
    `shards` given, they are without weights until they are loaded, and compute on the processor.
    """
    found = {name: module for name, module in model.named_modules() if _is_block_list(module)}
    outermost = {name: found[name] for name in found if not any(name.startswith(f"{other}.") for other in found)}
    if not outermost:
        raise InputError(
            f"{type(model).__name__} has no list of equal blocks with linear layers inside; "
            f"only models built as a torch.nn.ModuleList of blocks can be quantized"
        )
    name = max(outermost, key=lambda name: len(outermost[name]))
    return Blocks(name, outermost[name], shards, device_of(model) if shards is None else CPU)


def _is_block_list(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ModuleList)
        and len({type(block) for block in module}) == 1
        and not any(isinstance(block, LINEAR) for block in module)
        and all(linear_layers(block) for block in module)
    )


def linear_layers(block: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Return every linear layer inside `block`, by name with `prefix` in front."""
    return {prefix + name: module for name, module in block.named_modules() if isinstance(module, LINEAR)}


def get_weight(layer: nn.Module) -> torch.Tensor:
    """Return the weight as (outputs, inputs); GPT-2's Conv1D stores its transpose."""
    return as_stored_by(layer, layer.get_parameter("weight").detach())


def as_stored_by(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight of shape (outputs, inputs) in the shape that the parameter of `layer` has."""
    return weight.T if isinstance(layer, Conv1D) else weight


def get_bias(layer: nn.Module) -> torch.Tensor | None:
    """Return the bias of shape (outputs,), or None."""
    bias: torch.Tensor | None = dict(layer.named_parameters(recurse=False)).get("bias")
    return None if bias is None else bias.detach()


@torch.no_grad()
def set_weight(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Overwrite, in place, the weight with `weight` of shape (outputs, inputs), and the bias if one is given."""
    get_weight(layer).copy_(weight)
    if bias is not None:
        layer.get_parameter("bias").copy_(bias)


def fused_experts(block: nn.Module) -> list[str]:
    """Return the names of parameters that hold many matrices in one tensor, as fused experts are stored."""
    return [
        f"{name}.{own}"
        for name, module in block.named_modules()
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 2 and min(parameter.shape) > 1
    ]
