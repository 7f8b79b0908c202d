"""Stages of a block: the layers that can be calibrated together, because none of their inputs depends on another.

To quantize the layers of a block in order of execution, each needs the input that the layers quantized before it
produce. The block is therefore run anew up to each stage; for a Llama block these are q, k, v, then o, then gate and
up, then down. What depends on what is not looked up by architecture. Autograd knows it: the weights of the unfinished
layers ask for gradients and nothing else does, so an input asks for gradients if and only if it depends on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn


class _Enough(Exception):
    """Ends a forward pass as soon as all layers of the stage have their inputs."""


Receive = Callable[[int, str, str, torch.Tensor], None]


def run_stage(
    calls: Iterable[Callable[[], Any]], layers: Mapping[str, nn.Module], receive: Receive, ordered: bool = True
) -> list[str]:
    """Run the block up to the next stage, and hand over what its layers receive.

    Parameters
    ----------
    calls : iterable of callable
        Forward passes of the block, one per batch. The first runs to its end, to see which layers make the stage;
        the others stop when all of these have their inputs.
    layers : mapping of str to Module
        The unfinished layers by name.
    receive : callable
        Called as ``receive(batch, name, first, inputs)`` once per pass and layer of the stage; `first` is the first
        layer of this pass that received the very same tensor.
    ordered : bool
        Whether layers that depend on one another make stages of their own; if not, one stage has them all.

    Returns
    -------
    list of str
        The layers of the stage in order of execution. Empty when no unfinished layer computes any more.
    """
    stage: list[str] = []
    received: dict[str, torch.Tensor] = {}
    batch = 0

    def note(name: str, inputs: torch.Tensor) -> None:
        if inputs.requires_grad or name in received:
            return
        first = next((other for other, tensor in received.items() if same_tensor(tensor, inputs)), name)
        received[name] = inputs
        if name not in stage:
            stage.append(name)
        receive(batch, name, first, inputs)
        if batch > 0 and len(received) == len(stage):
            raise _Enough

    with ExitStack() as exits:
        for name, layer in layers.items():
            weight = layer.get_parameter("weight").requires_grad_(ordered)
            exits.callback(weight.requires_grad_, False)
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
            exits.callback(hook.remove)
        # The graph is only asked what depends on what; without this it would hold every activation.
        exits.enter_context(torch.autograd.graph.saved_tensors_hooks(_forget, _forget))
        exits.enter_context(torch.enable_grad())
        for batch, call in enumerate(calls):  # noqa: B007 (the hooks read it)
            received.clear()
            with suppress(_Enough):
                call()
    return stage


def _forget(_: torch.Tensor) -> torch.Tensor:
    return torch.empty(0)


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether `a` and `b` are the same entries in memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
