"""Fused experts: many matrices in one parameter, taken apart into linear layers while their block is at work.

transformers 5 keeps the experts of a mixture in one parameter of shape (experts, outputs, inputs). Each matrix in it is
to be quantized for the tokens that reach it. Here the module that holds the parameter gets one child per expert, with
ordinary linear layers whose weights are views: what is written into them is written into the parameter, and everything
that works with linear layers works with experts. Gate and up projection are apart, whatever the layout: they are
apart in published checkpoints and in dense models, so overrides and reports see the names they expect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

# Set by `transformers.integrations.use_experts_implementation`, which promises that all computation is done as its
# own implementations do it.
FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
BORROWED = 1 / 8  # what a borrowed token counts in statistics, see `mcq_llm.borrow`


class Rows(NamedTuple):
    """The rows that the layers of an expert receive: which tokens they are, and what they count in statistics.

    Attributes
    ----------
    tokens : tensor of shape (rows,), int64
        Numbers among all tokens that the module received.
    weights : tensor of shape (rows,), float32, or None
        None if the expert borrows nothing.
    """

    tokens: torch.Tensor
    weights: torch.Tensor | None


class Expert(nn.Module):
    """One expert of a fused module.

    Attributes
    ----------
    gate_proj : Linear
        If the experts have a gate.
    up_proj, down_proj : Linear
    borrowed : tensor of shape (window,), bool, or None
        The positions in a sequence whose tokens it computes besides its own, without effect on the output.
    """

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    borrowed: torch.Tensor | None = None

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def tokens(self, own: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the tokens to compute, given the mask of its `own`."""
        if self.borrowed is None:
            rows = Rows(own.nonzero()[:, 0], None)
        else:
            borrowed = self.borrowed.to(own.device)
            wanted = own | borrowed[torch.arange(len(own), device=own.device) % len(borrowed)]
            tokens = wanted.nonzero()[:, 0]
            rows = Rows(tokens, torch.where(own[tokens], 1.0, BORROWED))
        for layer in self.children():
            setattr(layer, "rows", rows)  # noqa: B010 (not declared)
        return rows.tokens

    @property
    def width(self) -> int:
        """Inputs of the widest layer."""
        return max(layer.in_features for layer in self.children() if isinstance(layer, nn.Linear))


def is_fused(module: nn.Module) -> bool:
    """Return whether `module` holds experts in a layout that can be taken apart."""
    if not all(hasattr(module, flag) for flag in FLAGS):
        return False
    weights = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    biases = {f"{name}_bias" for name in weights} if module.has_bias else set()
    parameters = dict(module.named_parameters(recurse=False))
    return parameters.keys() == weights | biases and all(parameters[name].ndim == 3 for name in weights)


@contextmanager
def unfused(block: nn.Module) -> Iterator[None]:
    """Take all fused experts of `block` apart for a while; its state dict stays as it is.

    The layers of expert 3 of the module ``mlp.experts`` are called ``mlp.experts.3.gate_proj``, ``up_proj`` and
    ``down_proj``.
    """
    with ExitStack() as exits:
        for module in [module for module in block.modules() if is_fused(module)]:
            exits.enter_context(_apart(module))
        yield


@contextmanager
def _apart(module: nn.Module) -> Iterator[None]:
    fused = dict(module.named_parameters(recurse=False))
    experts = {str(number): _expert(module, fused, number) for number in range(len(fused["down_proj"]))}

    def as_before(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in [name for name in state if name.startswith(prefix) and name[len(prefix)].isdigit()]:
            del state[name]
        state.update({prefix + name: parameter.detach() for name, parameter in fused.items()})

    module._parameters.clear()  # else a copy of the block would hold every weight twice
    module._modules.update(experts)
    module.forward = MethodType(_forward, module)
    hook = module.register_state_dict_post_hook(as_before)
    try:
        yield
    finally:
        hook.remove()
        del module.forward
        for number in experts:
            del module._modules[number]
        module._parameters.update(fused)


def _expert(module: nn.Module, fused: Mapping[str, nn.Parameter], number: int) -> Expert:
    def linear(name: str, rows: slice = slice(None)) -> nn.Linear:
        weight = fused[name].detach()[number]
        weight = (weight.T if module.is_transposed else weight)[rows]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bool(module.has_bias), device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if module.has_bias:
            layer.bias = nn.Parameter(fused[f"{name}_bias"].detach()[number, rows], requires_grad=False)
        return layer

    if not module.has_gate:
        return Expert({"up_proj": linear("up_proj"), "down_proj": linear("down_proj")})
    half = fused["gate_up_proj"].shape[-1 if module.is_transposed else -2] // 2
    gate, up = (slice(half), slice(half, None)) if module.is_concatenated else (slice(0, None, 2), slice(1, None, 2))
    layers = {"gate_proj": linear("gate_up_proj", gate), "up_proj": linear("gate_up_proj", up)}
    return Expert(layers | {"down_proj": linear("down_proj")})


def experts_of(module: nn.Module) -> list[Expert]:
    """Return the experts of a module that was taken apart."""
    return [child for child in module.children() if isinstance(child, Expert)]


def rows_of(layer: nn.Module) -> Rows | None:
    """Return what is known about the present inputs of a layer, if it is that of an expert."""
    rows: Rows | None = getattr(layer, "rows", None)
    return rows


def entries(block: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Module, list[str]]]:
    """Yield each module of `block` that was taken apart, and the names of those `layers` that get rows of its input."""
    names = {layer: name for name, layer in layers.items()}
    for module in block.modules():
        children = [child for expert in experts_of(module) for child in expert.named_children()]
        if children:
            yield module, [names[layer] for name, layer in children if name != "down_proj" and layer in names]


def _forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Compute what a fused module computes, one expert after the other."""
    total = torch.zeros_like(hidden_states)
    for number, expert in enumerate(experts_of(self)):
        chosen = top_k_index == number
        tokens = expert.tokens(chosen.any(-1))
        if not len(tokens):
            continue
        output = expert.down_proj(_activated(self, expert, hidden_states[tokens]))
        if self.has_post_expert_norm:
            output = self.post_expert_norm(output)
        weights = (top_k_weights * chosen).sum(-1, keepdim=True)  # zero for borrowed tokens
        total = total.index_add(0, tokens, (output * weights[tokens]).to(total.dtype))
    return total


def _activated(module: Any, expert: Expert, inputs: torch.Tensor) -> torch.Tensor:
    if not module.has_gate:
        activated: torch.Tensor = module.act_fn(expert.up_proj(inputs))
        return activated
    gate, up = expert.gate_proj(inputs), expert.up_proj(inputs)
    activated = module._apply_gate(
        torch.cat((gate, up), -1) if module.is_concatenated else torch.stack((gate, up), -1).flatten(-2)
    )
    return activated
