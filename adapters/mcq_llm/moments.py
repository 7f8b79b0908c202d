"""What calibration keeps of the inputs of a layer: moments, and nothing that grows with the text."""

from __future__ import annotations

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
    mean, original_mean : tensor of shape (d,)
        Of X' and X; `original_mean` is None where `cross` is.
    metric : mcq.Gram
        Of `gram`.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64] | None
    mean: torch.Tensor
    original_mean: torch.Tensor | None
    metric: mcq.Gram


class Moments:
    """Sums over the inputs of a layer, batch by batch.

    Products are summed in float32 within a batch, in float64 over the batches.

    Parameters
    ----------
    width : int
        Number of inputs d.
    """

    def __init__(self, width: int) -> None:
        self._gram = np.zeros((width, width))  # lower triangle
        self._cross: NDArray[np.float64] | None = None
        self._sum, self._original_sum = np.zeros(width), np.zeros(width)
        self._rows = self._paired = 0

    def add(self, inputs: torch.Tensor, original: torch.Tensor | None) -> None:
        """Take in one batch.

        Parameters
        ----------
        inputs : tensor of shape (..., d)
        original : tensor of shape (..., d), or None
            The same rows in the original model. Rows that were routed elsewhere there have no counterpart: a batch
            with another number of rows does not count.
        """
        x = _rows(inputs)
        self._gram += ssyrk(1.0, x.T, lower=True)  # half the work of a general product
        self._sum += x.sum(0, dtype=np.float64)
        self._rows += len(x)
        if original is not None and original.shape == inputs.shape:
            y = _rows(original)
            product = y.T @ x
            self._original_sum += y.sum(0, dtype=np.float64)
            if self._cross is None:
                self._cross = product.astype(np.float64)
            else:
                self._cross += product
            self._paired += len(x)

    def statistics(self, name: str) -> Statistics:
        """Return the moments of layer `name`; ends the collection, whose memory they take over."""
        gram = self._gram
        gram /= self._rows
        for row in range(len(gram)):
            gram[row, row:] = gram[row:, row]
        if not np.isfinite(gram).all():
            raise InputError(
                f"the activations that reach {name} must be finite, but hold NaN or infinity; "
                f"check that the model itself computes finite outputs on this text, and calibrate in float32"
            )
        cross, original_mean = None, None
        if self._cross is not None and self._paired == self._rows:
            cross = np.divide(self._cross, self._rows, out=self._cross)
            original_mean = torch.from_numpy(self._original_sum / self._rows).float()
        mean = torch.from_numpy(self._sum / self._rows).float()
        return Statistics(gram, cross, mean, original_mean, mcq.Gram(gram))


def _rows(batch: torch.Tensor) -> NDArray[np.float32]:
    return batch.detach().float().reshape(-1, batch.shape[-1]).numpy()
