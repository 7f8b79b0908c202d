"""Calibration: the activations of real text on their way through the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mcq_llm.blocks import Blocks, linear_layers
from mcq_llm.moments import Statistics
from mcq_llm.stepping import step_through

Inputs = list[torch.Tensor]
Extras = tuple[tuple[Any, ...], dict[str, Any]]


class _Captured(Exception):
    """Ends a forward pass as soon as everything that the blocks receive is known."""


class Stream:
    """The hidden states of all calibration sequences, on their way through one version of the model.

    Parameters
    ----------
    model : PreTrainedModel
    blocks : Blocks
        Of `model`.
    windows : tensor of shape (sequences, window), int64
    batch : int
        Sequences that are run together.
    dtype : torch.dtype
        In which the blocks compute.

    Attributes
    ----------
    dtype : torch.dtype
    hidden : list of tensor, each of shape (batch, window, width)
        The input of the next block.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Blocks, windows: torch.Tensor, batch: int, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        captured = [_capture(model, blocks, ids) for ids in torch.split(windows, batch)]
        self.hidden = [hidden.to(dtype) for hidden, _ in captured]
        self._extras = [_cast(extras, dtype, {}) for _, extras in captured]

    def copy(self) -> Stream:
        """Return a stream that starts where this one stands and goes its own way."""
        twin = object.__new__(Stream)
        twin.__dict__.update(self.__dict__)
        return twin

    def through(self, index: int, block: nn.Module, layers: dict[str, nn.Module]) -> Iterator[tuple[str, Inputs]]:
        """Move all hidden states through `block`, number `index`, pausing before each of `layers`.

        Yields
        ------
        name : str
            The layer that is about to compute.
        inputs : list of tensor, each of shape (batch, window, inputs)
            What it receives, for every batch.
        """
        for name, values in step_through(self._calls(index, block), layers):
            if name:
                yield name, values
            else:
                self.hidden = [_hidden(value) for value in values]

    def record(self, index: int, block: nn.Module, layers: dict[str, nn.Module]) -> dict[str, list[torch.Tensor]]:
        """Move all hidden states through `block` without a pause, and return what each of `layers` receives.

        Returns
        -------
        dict of str to list of tensor
            First inputs for every batch, rounded to bfloat16: they only serve averages over many tokens. Layers that
            receive the same tensor share its copy.
        """
        inputs: dict[str, list[torch.Tensor]] = {}
        first: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # what each layer of this call received, and its copy

        def note(name: str, received: torch.Tensor) -> None:
            known = next((copy for tensor, copy in first.values() if _same(tensor, received)), None)
            first.setdefault(name, (received, received.to(torch.bfloat16) if known is None else known))

        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
            for name, layer in layers.items()
        ]
        calls, self.hidden = self._calls(index, block), []
        try:
            with torch.inference_mode():
                for call in calls:
                    self.hidden.append(_hidden(call()))
                    for name, (_, copy) in first.items():
                        inputs.setdefault(name, []).append(copy)
                    first.clear()
        finally:
            for hook in hooks:
                hook.remove()
        return inputs

    def _calls(self, index: int, block: nn.Module) -> list[Callable[[], Any]]:
        """Return the forward pass of `block`, number `index`, for every batch."""
        return [
            partial(block, hidden, *extras[index][0], **extras[index][1])
            for hidden, extras in zip(self.hidden, self._extras, strict=True)
        ]


def _capture(model: PreTrainedModel, blocks: Blocks, ids: torch.Tensor) -> tuple[torch.Tensor, list[Extras]]:
    """Run `model` on `ids` with all blocks but the first cut out, and note what each block is given.

    Returns
    -------
    hidden : tensor
        The input of the first block.
    extras : list of (tuple, dict)
        The other arguments of each block: masks, positions and whatever else the model hands down.
    """
    first: list[torch.Tensor] = []
    extras: list[Extras] = []

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, *rest = args or [kwargs.pop("hidden_states")]
        first.append(hidden)
        extras.append((tuple(rest), kwargs))
        if len(extras) == len(blocks.modules):
            raise _Captured

    # The first block does compute: only it knows whether the model expects a tensor or a tuple from a block.
    result: list[Any] = []
    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks.modules]
    hooks.append(blocks.modules[0].register_forward_hook(lambda block, args, output: result.append(output)))
    for block in blocks.modules[1:]:
        block.forward = lambda *args, **kwargs: result[0]
    try:
        with torch.inference_mode():
            model(ids, use_cache=False)
    except _Captured:
        pass
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks.modules[1:]:
            del block.forward
    return first[0], extras


def _cast(value: Any, dtype: torch.dtype, known: dict[int, torch.Tensor]) -> Any:
    """Convert every floating-point tensor inside nested tuples, lists and dicts; what was shared stays shared."""
    if isinstance(value, torch.Tensor):
        return known.setdefault(id(value), value.to(dtype)) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype, known) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype, known) for key, item in value.items()}
    return value


def calibrated_layers(
    blocks: Blocks, index: int, wanted: Collection[str], stream: Stream, original: Stream | None
) -> Iterator[tuple[str, list[nn.Module], Statistics]]:
    """Move the streams through one block, stopping at each wanted layer with the statistics of its inputs.

    The caller overwrites the weight of each layer before it asks for the next.

    Parameters
    ----------
    blocks : Blocks
    index : int
        Of the block.
    wanted : collection of str
        Full names of the layers to stop at.
    stream : Stream
        In the model as quantized so far.
    original : Stream or None
        In the original model.

    Yields
    ------
    name : str
    layers : list of Module
        The layer, and the copy that computes in the stream's precision if that differs.
    statistics : Statistics
        Shared by all layers that receive the same input.
    """
    block, prefix = blocks.modules[index], f"{blocks.name}.{index}."
    working = block if stream.dtype == torch.float32 else copy.deepcopy(block).to(stream.dtype)
    layers = {name: layer for name, layer in linear_layers(working, prefix).items() if name in wanted}
    # The block is still as it was, so the original stream can go ahead.
    originals = {} if original is None else original.record(index, working, layers)
    seen: list[tuple[torch.Tensor, Statistics]] = []
    done: set[str] = set()
    for name, inputs in stream.through(index, working, layers):
        if name in done:
            continue  # a layer that computes twice is fitted to its first inputs
        done.add(name)
        statistics = next((known for tensor, known in seen if _same(tensor, inputs[0])), None)
        if statistics is None:
            statistics = Statistics.collect(inputs, originals.get(name), name)
            seen.append((inputs[0], statistics))  # held, so that its memory cannot be taken by another tensor
        inputs.clear()  # the largest activations: not to be held while the block goes on
        originals.pop(name, None)
        layer = block.get_submodule(name.removeprefix(prefix))
        yield name, [layer] if working is block else [layer, layers[name]], statistics


def _hidden(result: Any) -> torch.Tensor:
    """Return the hidden states from what a block returns."""
    return result if isinstance(result, torch.Tensor) else result[0]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
