"""Calibration: the activations of real text on their way through the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mcq_llm.blocks import Blocks, get_weight
from mcq_llm.borrow import idle_experts
from mcq_llm.experts import entries, rows_of
from mcq_llm.memory import apart
from mcq_llm.moments import Moments, Statistics
from mcq_llm.stages import run_stage, same_tensor
from mcq_llm.world import ALONE, World

Extras = tuple[tuple[Any, ...], dict[str, Any]]
Recorded = list[dict[str, torch.Tensor]]


class _Captured(Exception):
    """Ends a forward pass as soon as everything that the blocks receive is known."""


class Stream:
    """The hidden states of all calibration sequences, on their way through one version of the model.

    Parameters
    ----------
    model : PreTrainedModel
        From now on its parameters ask for no gradients.
    blocks : Blocks
        Of `model`.
    windows : tensor of shape (sequences, window), int64
    batch : int
        Sequences that are run together.
    dtype : torch.dtype
        In which the blocks compute.
    spill : Path or None
        Folder on a disk for the activations, if they are not to stay in memory.
    world : World
        The processes that share the sequences.
    cut : bool
        How they do, see `World.parts`.

    Attributes
    ----------
    dtype : torch.dtype
    hidden : list of tensor, each of shape (batch, window, width)
        The input of the next block.
    shares : list of float
        Which fraction of each batch is here. The part of the last batch may be empty; it is not in `hidden` then.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Blocks,
        windows: torch.Tensor,
        batch: int,
        dtype: torch.dtype,
        spill: Path | None = None,
        world: World = ALONE,
        cut: bool = False,
    ) -> None:
        model.requires_grad_(False)
        self.dtype, self._device, self._spill = dtype, blocks.device, spill
        parts = world.parts(windows, batch, cut)
        self.shares = [share for _, share in parts]
        with replace(blocks, device=model.device).loaded(0):
            captured = [_capture(model, blocks, ids) for ids, share in parts if share]
        self.hidden = [self.kept(hidden.to(dtype)) for hidden, _ in captured]
        self._extras = [_cast(extras, dtype, self._device, {}) for _, extras in captured]

    def copy(self) -> Stream:
        """Return a stream that starts where this one stands and goes its own way."""
        twin = copy.copy(self)
        twin.hidden = list(self.hidden)
        return twin

    def working_copy(self, block: nn.Module) -> nn.Module:
        """Return `block` itself if it computes in the precision of the stream, else a copy that does."""
        return block if self.dtype == torch.float32 else copy.deepcopy(block).to(self.dtype)

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of `tensor` for as long as a block takes: outside of the heap, or on the disk."""
        return apart(tensor, self._spill)

    def calls(
        self, index: int, block: nn.Module, dtype: torch.dtype | None = None, ahead: Sequence[nn.Module] = ()
    ) -> list[Callable[[], torch.Tensor]]:
        """Return the forward pass of `block`, number `index`, and of blocks `ahead` of it, for every batch.

        Inputs are of type `dtype`, if it is given.
        """
        passed, dtype = [block, *ahead], dtype or self.dtype
        return [partial(self._call, passed, index, batch, dtype) for batch in range(len(self.hidden))]

    def advance(self, index: int, block: nn.Module) -> None:
        """Move all hidden states through `block`, number `index`."""
        with torch.no_grad():
            for batch, call in enumerate(self.calls(index, block)):
                self.hidden[batch] = self.kept(call())

    def record(self, index: int, block: nn.Module, layers: Mapping[str, nn.Module]) -> Recorded:
        """Move all hidden states through `block`, and return what each of `layers` received on the way.

        Returns
        -------
        list of dict of str to tensor
            For every batch the first input of each layer, rounded to bfloat16: it only serves averages over many
            tokens. Layers that receive the same tensor share its copy. For layers of experts it is what all experts
            take their rows from, see `mcq_llm.experts.entries`.
        """
        recorded: Recorded = [{} for _ in self.hidden]
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # in this pass: inputs, and their copies

        def note(names: Sequence[str], inputs: torch.Tensor) -> None:
            if inputs.shape[:-1].numel() != self.hidden[batch].shape[:-1].numel():
                return  # tokens that the original routes to one of several layers; the quantized model may route others
            found = next((kept for tensor, kept in seen if same_tensor(tensor, inputs)), None)
            kept = self.kept(inputs.to(torch.bfloat16)) if found is None else found
            seen.append((inputs, kept))
            for name in names:
                recorded[batch].setdefault(name, kept)

        with ExitStack() as exits, torch.no_grad():
            for name, layer in layers.items():
                hook = layer.register_forward_pre_hook(lambda _, args, name=name: note([name], args[0]))
                exits.callback(hook.remove)
            for mixture, names in entries(block, layers):
                hook = mixture.register_forward_pre_hook(lambda _, args, names=names: note(names, args[0]))
                exits.callback(hook.remove)
            for batch, call in enumerate(self.calls(index, block)):
                self.hidden[batch] = self.kept(call())
                seen.clear()
        return recorded

    def _call(self, passed: Sequence[nn.Module], index: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
        hidden = self.hidden[batch].to(self._device, dtype)
        for block, (args, kwargs) in zip(passed, self._extras[batch][index:], strict=False):
            if dtype != self.dtype:
                args, kwargs = _cast((args, kwargs), dtype, self._device, {})
            result = block(hidden, *args, **kwargs)
            hidden = result if isinstance(result, torch.Tensor) else result[0]
        return hidden


def calibrated_stages(
    calls: Sequence[Callable[[], torch.Tensor]],
    layers: Mapping[str, nn.Module],
    originals: Recorded | None,
    world: World = ALONE,
    ordered: bool = True,
) -> Iterator[dict[str, Statistics | None]]:
    """Run a block up to each stage and gather the statistics of what its layers receive.

    The caller overwrites the weights of the layers of a stage before it asks for the next.

    Parameters
    ----------
    calls : sequence of callable
        Forward passes of the block as it is quantized so far, one per batch.
    layers : mapping of str to Module
        The layers to stop at.
    originals : list of dict of str to tensor, or None
        What the layers receive in the original model, of `Stream.record`; let go as the stages pass.
    world : World
        The processes that share the batches.
    ordered : bool
        Whether layers that depend on one another make stages of their own; if not, one stage has them all.

    Yields
    ------
    dict of str to Statistics or None
        By layer, in order of execution; layers with the same input share one. None for the layers that other
        processes are to quantize.
    """
    unfinished = dict(layers)
    while unfinished:
        stage = _gather(calls, unfinished, originals, world, ordered)
        if not stage:  # what is left never computes
            idle = {name: name for name in idle_experts(layers, unfinished)}
            yield _statistics({}, idle, layers, world)
            return
        yield stage
        for name in stage:
            del unfinished[name]
            for batch in originals or []:
                batch.pop(name, None)


def _gather(
    calls: Sequence[Callable[[], torch.Tensor]],
    layers: Mapping[str, nn.Module],
    originals: Recorded | None,
    world: World,
    ordered: bool,
) -> dict[str, Statistics | None]:
    """Return the statistics of the next stage."""
    moments: dict[str, Moments] = {}
    firsts: dict[str, str] = {}  # by layer: the first one with the same input

    def receive(batch: int, name: str, first: str, inputs: torch.Tensor) -> None:
        firsts.setdefault(name, first)
        if firsts[name] == name:
            original = None if originals is None else originals[batch].get(name)
            rows = rows_of(layers[name])
            if rows is not None and original is not None:
                original = original[rows.tokens.to(original.device)]
            weights = None if rows is None else rows.weights
            moments.setdefault(name, Moments(inputs.shape[-1])).add(inputs, original, weights)

    stage = run_stage(calls, layers, receive, ordered)
    # Routed tokens may reach a layer in some processes only.
    return _statistics(moments, world.merge({name: firsts[name] for name in stage}), layers, world)


def _statistics(
    moments: dict[str, Moments], firsts: Mapping[str, str], layers: Mapping[str, nn.Module], world: World
) -> dict[str, Statistics | None]:
    """Add up the moments of all processes, and return the statistics of those layers that this one is to quantize."""
    owners = world.owners({name: layers[name].get_parameter("weight").numel() for name in firsts})
    statistics: dict[str, Statistics] = {}
    for first in dict.fromkeys(firsts.values()):
        collected = moments.pop(first, None) or Moments(get_weight(layers[first]).shape[1])
        users = {owners[name] for name in firsts if firsts[name] == first}
        collected.add_up(world, users)
        if world.rank in users:
            statistics[first] = collected.statistics(first)
    return {name: statistics[firsts[name]] if owners[name] == world.rank else None for name in firsts}


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
        with torch.no_grad():
            model(ids.to(model.device), use_cache=False)
    except _Captured:
        pass
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks.modules[1:]:
            del block.forward
    return first[0], extras


def _cast(value: Any, dtype: torch.dtype, device: torch.device, known: dict[int, torch.Tensor]) -> Any:
    """Convert and move every tensor inside nested tuples, lists and dicts; what was shared stays shared."""
    if isinstance(value, torch.Tensor):
        return known.setdefault(id(value), value.to(device, dtype if value.is_floating_point() else value.dtype))
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype, device, known) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype, device, known) for key, item in value.items()}
    return value
