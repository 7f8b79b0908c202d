"""The last layer of a block can make up for the drift of the whole block's output, not only for that of its own.

A block adds to a stream of hidden states. What errors have done to the stream stays in it to the end, whatever the
layers behind do, unless one of them subtracts it. The layer whose output y is added last can: with Y the output of the
block in the original model and Y' that of the quantized one in which this layer is still dense, its best weight on its
inputs x' is W + E[(Y - Y') x'^T] E[x' x'^T]^-1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mcq_llm.world import ALONE, World

#: A layer's output is made so much larger to see whether the block's output follows, and how far it may miss that.
RAISED, MISSED = 1000.0, 0.02


def closing_drift(
    calls: Sequence[Callable[[], torch.Tensor]],
    layers: Sequence[nn.Module],
    targets: Sequence[torch.Tensor],
    world: World = ALONE,
) -> NDArray[np.float64] | None:
    """Return E[(Y - Y') x'^T] of the layer that closes a block: shape (outputs, inputs).

    Parameters
    ----------
    calls : sequence of callable
        Forward passes of the block as it is quantized so far, one per batch.
    layers : sequence of Module
        Those that are to be quantized next.
    targets : sequence of tensor
        Outputs of the block in the original model.
    world : World
        The processes that share the batches.

    Returns
    -------
    array or None
        None if there is not one single layer, or its output is not added to that of the block as it is.
    """
    if len(layers) != 1 or not world.from_first(lambda: _closes(calls[0], layers[0])):
        return None
    received: list[torch.Tensor] = []
    product, rows = torch.zeros(1, dtype=torch.float64), 0
    hook = layers[0].register_forward_pre_hook(lambda _, args: received.append(args[0]))
    try:
        with torch.no_grad():
            for call, target in zip(calls, targets, strict=True):
                output = call().float()
                x = received.pop().float().flatten(0, -2)
                drift = (target.to(output.device).float() - output).flatten(0, -2)
                product = product + (drift.T @ x).double().cpu()
                rows += len(x)
    finally:
        hook.remove()
    total, count = product.numpy(), np.array([rows])
    world.add_up(total)
    world.add_up(count)
    mean: NDArray[np.float64] = total / count
    return mean


@torch.no_grad()
def _closes(call: Callable[[], torch.Tensor], layer: nn.Module) -> bool:
    """Return whether what `layer` computes more is what the block returns more."""
    own: list[torch.Tensor] = []

    def raise_it(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        own.append(output.float())
        return output * (1 + RAISED)

    plain = call().float()
    hook = layer.register_forward_hook(raise_it)
    try:
        raised = call().float()
    finally:
        hook.remove()
    if len(own) != 1 or own[0].numel() != plain.numel():
        return False
    added = RAISED * own[0].view_as(plain)
    return bool((raised - plain - added).norm() <= MISSED * added.norm())
