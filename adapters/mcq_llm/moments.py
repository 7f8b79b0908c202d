"""What calibration keeps of the inputs of a layer: Gram matrices, and nothing that grows with the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk

import mcq
from mcq.errors import InputError


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of a layer.

    Attributes
    ----------
    gram : array of shape (d, d), float64
        X'^T X' / rows of the inputs X' in the partly quantized model.
    cross : array of shape (d, d), float64, or None
        X^T X' / rows with X the inputs in the original model.
    metric : mcq.Gram
        Of `gram`.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64] | None
    metric: mcq.Gram

    @classmethod
    def collect(cls, inputs: Sequence[torch.Tensor], originals: Sequence[torch.Tensor] | None, name: str) -> Statistics:
        """Gather the statistics of layer `name` over all batches, each of shape (..., d)."""
        own = gram(inputs)
        if not np.isfinite(own).all():
            raise InputError(
                f"the activations that reach {name} must be finite, but hold NaN or infinity; "
                f"check that the model itself computes finite outputs on this text, and calibrate in float32"
            )
        return cls(own, None if originals is None else cross_gram(originals, inputs), mcq.Gram(own))


def gram(inputs: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Return X^T X / rows over all rows x of all `inputs`.

    Parameters
    ----------
    inputs : sequence of tensor, each of shape (..., d)

    Returns
    -------
    array of shape (d, d), float64
        Summed in float32 within a batch, in float64 over the batches.
    """
    width = inputs[0].shape[-1]
    total, rows = np.zeros((width, width)), 0
    for batch in inputs:
        x = _rows(batch)
        total += ssyrk(1.0, x.T, lower=True)  # half the work of a general product; fills one triangle
        rows += len(x)
    total /= rows
    total += np.tril(total, -1).T
    return total


def cross_gram(originals: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Return X^T X' / rows, with X the rows of `originals` and X' the same rows of `inputs`: shape (d, d)."""
    width = inputs[0].shape[-1]
    total, rows = np.zeros((width, width)), 0
    for original, batch in zip(originals, inputs, strict=True):
        x = _rows(batch)
        total += _rows(original).T @ x
        rows += len(x)
    return total / rows


def _rows(batch: torch.Tensor) -> NDArray[np.float32]:
    return batch.float().reshape(-1, batch.shape[-1]).numpy()
