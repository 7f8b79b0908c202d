"""Bias correction: the cheap remedy for the mean of a layer's error, where nothing is tuned."""

from __future__ import annotations

import torch


def corrected_bias(
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    decoded: torch.Tensor,
    mean: torch.Tensor,
    original_mean: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return the bias with which a quantized layer has the mean output of the original one.

    Parameters
    ----------
    bias : tensor of shape (outputs,), or None
    weight, decoded : tensor of shape (outputs, inputs)
        The original weight, and the one that the codes stand for.
    mean : tensor of shape (inputs,)
        Mean input of the layer in the quantized model.
    original_mean : tensor of shape (inputs,), or None
        Mean input in the original model; None to keep the output that `weight` has on the same inputs.

    Returns
    -------
    tensor of shape (outputs,), or None
        ``bias + weight @ original_mean - decoded @ mean``. None if the layer has no bias: checkpoints follow the
        architecture, whose loaders do not read a bias where it has none.
    """
    if bias is None:
        return None
    return bias + weight @ (mean if original_mean is None else original_mean) - decoded @ mean
