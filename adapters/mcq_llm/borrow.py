"""Experts that few tokens are routed to: they borrow tokens of others, so that statistics mean something.

A Gram of few tokens says nothing about most directions, and a matrix quantized for it fails on the next token. While
statistics are gathered, an expert that fewer than `ENOUGH` tokens per input are routed to therefore also computes
tokens of others until it has that many; each counts an eighth of an own one (`BORROWED`). All experts of a layer
receive tokens of the same kind, so this shrinks its Gram towards that of the layer. It does so for the down projection
as well, whose inputs are the expert's own and exist for no token that the expert has not computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from typing import Any

import torch
from torch import nn

from mcq_llm.experts import Expert, experts_of
from mcq_llm.world import ALONE, World

ENOUGH = 4
GRAMS = 2**32  # bytes of statistics of experts that are held at a time


class _Counted(Exception):
    """Ends a forward pass as soon as all routers have decided."""


@contextmanager
def borrowing(
    block: nn.Module, calls: Sequence[Callable[[], Any]], window: int, world: World = ALONE
) -> Iterator[None]:
    """Let experts with too few tokens compute some of others as well, without effect on the output.

    Borrowed tokens are spread evenly over the text, at the same positions of each sequence, so that they do not depend
    on how sequences are batched. Who borrows follows from the routes in `block` as it is at the start.

    Parameters
    ----------
    block : Module
        With its experts taken apart.
    calls : sequence of callable
        Forward passes of `block`, one per batch.
    window : int
        Tokens of a sequence.
    world : World
        The processes that share the batches.
    """
    mixtures = {name: module for name, module in block.named_modules() if experts_of(module)}
    try:
        for name, counts in _count(mixtures, calls).items():
            world.add_up(counts.numpy())
            *own, tokens = counts.tolist()
            for expert, routed in zip(experts_of(mixtures[name]), own, strict=True):
                expert.borrowed = _positions(routed, tokens, expert.width, window)
        yield
    finally:
        for module in mixtures.values():
            for expert in experts_of(module):
                expert.borrowed = None


def _count(mixtures: Mapping[str, nn.Module], calls: Sequence[Callable[[], Any]]) -> dict[str, torch.Tensor]:
    """Return for each mixture the tokens routed to each of its experts, and last all tokens."""
    counts = {name: torch.zeros(len(experts_of(module)) + 1, dtype=torch.int64) for name, module in mixtures.items()}
    seen: set[str] = set()

    def note(name: str, tensors: list[torch.Tensor]) -> None:
        index = next(tensor for tensor in tensors if not tensor.is_floating_point())
        own = counts[name][:-1]
        own += torch.bincount(index.flatten(), minlength=len(own))[: len(own)].cpu()  # higher numbers mean no expert
        counts[name][-1] += len(index)
        seen.add(name)
        if len(seen) == len(mixtures):
            raise _Counted

    with ExitStack() as exits, torch.no_grad():
        for name, module in mixtures.items():
            hook = module.register_forward_pre_hook(
                lambda _, args, named, name=name: note(name, [*args, *named.values()]), with_kwargs=True
            )
            exits.callback(hook.remove)
        for call in calls if mixtures else ():
            seen.clear()
            with suppress(_Counted):
                call()
    return counts


def _positions(routed: int, tokens: int, width: int, window: int) -> torch.Tensor | None:
    """Return which positions of a sequence an expert borrows, as a mask of shape (window,); None if it need not."""
    missing = ENOUGH * width - routed
    if missing <= 0 or routed == tokens:
        return None
    step = min(window, (tokens - routed) // missing or 1)
    return torch.arange(window) % step == step // 2  # not the first token, which is unlike all others


def portions(block: nn.Module, prefix: str, layers: Mapping[str, nn.Module]) -> list[dict[str, nn.Module]]:
    """Split the `layers` of `block` so that the statistics of the experts in a part fit into `GRAMS` bytes.

    All other layers are in the first part. Experts do not depend on one another, so that one part of them can be
    quantized after the other; each takes passes over the text.
    """
    owners = {f"{prefix}{name}" for name, module in block.named_modules() if isinstance(module, Expert)}
    parts: list[dict[str, nn.Module]] = [{n: x for n, x in layers.items() if n.rpartition(".")[0] not in owners}]
    room = GRAMS
    of_experts = [name for name in layers if name not in parts[0]]
    for _, names in groupby(of_experts, lambda name: name.rpartition(".")[0]):
        part = {name: layers[name] for name in names}
        widths = {layer.get_parameter("weight").shape[1] for layer in part.values()}
        need = sum(12 * width**2 for width in widths)  # float64, and the metric in float32
        if need > room:
            parts.append({})
            room = GRAMS
        parts[-1] |= part
        room -= need
    return parts


def idle_experts(layers: Collection[str], unfinished: Collection[str]) -> list[str]:
    """Return those `unfinished` layers that differ only in a number from another of `layers`, which is finished.

    Such are the experts of a list of modules. Other layers that never compute may be in use by other ways than a call.
    """

    def kind(name: str) -> str:
        return re.sub(r"\.\d+(?=\.)", ".*", name)

    finished = {kind(name) for name in layers if name not in unfinished}
    return [name for name in unfinished if kind(name) in finished]
