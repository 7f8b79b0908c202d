"""The shares of layers in the divergence of a model whose layers are all coded: integrated gradients.

With W_l the weights of the original model, D_l their errors, and KL(t) the divergence from the original of a model with
weights W_l + t D_l, that of the coded model is a sum over layers:

    KL(1) = sum_l  integral from 0 to 1 of <dKL / dW_l at W + t D, D_l> dt

Its terms are the shares (Aumann and Shapley, Values of Non-Atomic Games, 1974; Sundararajan et al., Axiomatic
attribution for deep networks, ICML 2017). What errors of several layers do together is in them, which no measurement
with one layer coded at a time can see, and all come from the same few backward passes. For what is nearly a square two
points t are enough, at which Gauss and Legendre make polynomials up to the third degree exact. The middle alone makes
squares exact; where few tokens leave shares uncertain, twice as many serve better than a second point.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq_llm.blocks import Blocks, as_stored_by


def attributed(
    model: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    coded: Mapping[str, torch.Tensor],
    sequences: torch.Tensor,
    errors: Mapping[str, torch.Tensor] | None = None,
    points: int = 2,
) -> dict[str, NDArray[np.float64]]:
    """Return the shares of each layer's outputs in the mean divergence in nats; errors that help have negative ones.

    Parameters
    ----------
    model : PreTrainedModel
        The original, which is afterwards as before. Its weights are held twice meanwhile, and their gradients.
    layers : mapping of str to Module
        Linear layers of `model` by name, those that are coded among them.
    coded : mapping of str to tensor
        Their weights in the coded model, of shape (outputs, inputs).
    sequences : tensor of shape (sequences, tokens), int64
    errors : mapping of str to tensor, optional
        A part of the differences between both models, to return the shares of that part only.
    points : int
        Of the way from the original to the coded model, at which gradients are taken.
    """
    weights = {name: layers[name].get_parameter("weight") for name in coded}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    parts = {name: as_stored_by(layers[name], part).to(model.device) for name, part in (errors or {}).items()}
    coded = {name: as_stored_by(layers[name], weight).to(model.device) for name, weight in coded.items()}
    was_asked = {name: weight.requires_grad for name, weight in weights.items()}
    shares = {name: np.zeros(len(as_stored_by(layers[name], weight))) for name, weight in weights.items()}
    places, portions = np.polynomial.legendre.leggauss(points)
    try:
        with tqdm(total=points * len(sequences), desc="attributing", unit="sequence", smoothing=0) as bar:
            for ids in sequences:
                _set(weights, originals, coded, 0.0)
                with torch.no_grad():
                    reference = log_probabilities(model, ids[None])
                for point, portion in zip((places + 1) / 2, portions / 2, strict=True):
                    _set(weights, originals, coded, float(point))
                    with torch.enable_grad():
                        found = log_probabilities(model, ids[None])
                        value = (reference.exp() * (reference - found)).sum() / sequences.numel()
                        gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
                    for name, gradient in zip(weights, gradients, strict=True):
                        error = coded[name] - originals[name] if errors is None else parts[name]
                        by_row = as_stored_by(layers[name], gradient * error).sum(1, dtype=torch.float64)
                        shares[name] += float(portion) * by_row.cpu().numpy()
                    bar.update()
    finally:
        _set(weights, originals, originals, 0.0)
        for name, weight in weights.items():
            weight.requires_grad_(was_asked[name])
    return shares


def smoothed(shares: Mapping[str, float], blocks: Blocks) -> dict[str, float]:
    """Average the share of each layer with those of its namesakes in the blocks before and behind it, as 2 to 1 and 1.

    Neighbours differ little, and shares that are measured on a few thousand tokens by chance, down to below zero.
    """
    found = {}
    for name, share in shares.items():
        index = blocks.number(name)
        own = name.removeprefix(blocks.prefix(index))
        namesakes = (f"{blocks.prefix(other)}{own}" for other in (index - 1, index + 1))
        around = [shares[other] for other in namesakes if other in shares]
        found[name] = (2 * share + sum(around)) / (2 + len(around))
    return found


def _set(
    weights: Mapping[str, nn.Parameter],
    originals: Mapping[str, torch.Tensor],
    coded: Mapping[str, torch.Tensor],
    point: float,
) -> None:
    """Let the model be at a point of the way, ready for gradients."""
    for name, weight in weights.items():
        weight.requires_grad_(False)
        weight.copy_(torch.lerp(originals[name], coded[name], point))
        weight.requires_grad_(True)


def log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return those of all next tokens, for `ids` of shape (sequences, tokens)."""
    logits: torch.Tensor = model(ids.to(model.device), use_cache=False).logits
    return logits.float().log_softmax(-1)
