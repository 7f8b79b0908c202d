"""A causal language model in two halves, so that logits need never exist for all positions at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

LOGITS = 1 << 24  # most logits that are held at a time


def hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return what `model` hands to its head for tokens of shape (sequences, window)."""
    hidden: torch.Tensor = model.base_model(ids, use_cache=False)[0]
    return hidden


def logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits for hidden states of shape (positions, width): shape (positions, vocabulary)."""
    body = model.base_model
    # The model itself computes, with its body cut out: some scale or bend the logits after the head.
    body.forward = lambda *args, **kwargs: _BodyOutput(hidden[None])
    try:
        scores: torch.Tensor = model(torch.zeros(1, len(hidden), dtype=torch.int64), use_cache=False).logits[0]
    finally:
        del body.forward
    return scores


def position_slices(positions: int, vocabulary: int) -> Iterator[slice]:
    """Cut positions into runs whose logits fit the limit."""
    rows = max(1, LOGITS // vocabulary)
    for start in range(0, positions, rows):
        yield slice(start, start + rows)


class _BodyOutput:
    """What the body of any architecture returns, with nothing in it but hidden states."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        return None
