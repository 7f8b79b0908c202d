"""What calibration keeps of the inputs of a layer: moments, and nothing that grows with the text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import sgemm, ssyrk

import mcq
from mcq.errors import InputError
from mcq_llm.world import World


@dataclass(frozen=True)
class Statistics:
    """Second moments of the inputs of a layer. Where there were none, those of inputs of unit variance.

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
    tokens, borrowed : int
        Number of inputs X' that are the layer's own, and of those that count less; see `mcq_llm.borrow`.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64] | None
    mean: torch.Tensor
    original_mean: torch.Tensor | None
    metric: mcq.Gram
    tokens: int
    borrowed: int


class Moments:
    """Sums over the inputs of a layer, batch by batch.

    Products are summed in float32 within a batch, in float64 over the batches: then hardly anything depends on how
    batches are dealt out to processes.

    Parameters
    ----------
    width : int
        Number of inputs d.
    """

    def __init__(self, width: int) -> None:
        self._gram = np.zeros((width, width), order="F")  # lower triangle; in the column order of BLAS
        self._cross: NDArray[np.float64] | None = None
        self._sum, self._original_sum = np.zeros(width), np.zeros(width)
        self._rows = self._paired = 0.0  # by their weights
        self._tokens = self._borrowed = 0

    def add(self, inputs: torch.Tensor, original: torch.Tensor | None, weights: torch.Tensor | None = None) -> None:
        """Take in one batch.

        Parameters
        ----------
        inputs : tensor of shape (..., d)
        original : tensor of shape (..., d), or None
            The same rows in the original model. Rows that were routed elsewhere there have no counterpart: a batch
            with another number of rows does not count.
        weights : tensor of shape (rows,), float32, or None
            Of the rows: 1 for the layer's own, less for borrowed ones. None for rows that are all its own.
        """
        tokens = own = inputs.shape[:-1].numel()
        rows, root = float(tokens), None
        if weights is not None:
            rows, own, root = float(weights.double().sum()), int((weights == 1).sum()), weights.sqrt()
        x = _scaled(_rows(inputs), root)
        self._gram += _gram(x)
        self._sum += _sum(_scaled(x, root))
        self._rows += rows
        self._tokens += own
        self._borrowed += tokens - own
        if original is not None and original.shape == inputs.shape:
            y = _scaled(_rows(original.to(x.device)), root)
            if self._cross is None:
                self._cross = np.zeros_like(self._gram)
            self._cross += _cross(x, y)
            self._original_sum += _sum(_scaled(y, root))
            self._paired += rows

    def add_up(self, world: World, ranks: Collection[int]) -> None:
        """Take in what all processes of `world` have; only in `ranks`, elsewhere the moments are lost."""
        counts = np.array([self._tokens, self._borrowed])
        rows = np.array([self._rows, self._paired])
        world.add_up(counts)
        world.add_up(rows)
        self._tokens, self._borrowed = counts.tolist()
        self._rows, self._paired = rows.tolist()
        if self._paired != self._rows:
            self._cross = None
        elif self._cross is None and self._paired:
            self._cross = np.zeros_like(self._gram)
        for array in (self._gram, self._cross, self._sum, self._original_sum):
            if array is not None:
                world.add_up(array.T, ranks)  # in row order

    def statistics(self, name: str) -> Statistics:
        """Return the moments of layer `name`; ends the collection, whose memory they take over."""
        if not self._rows:
            unit = np.eye(len(self._gram))
            return Statistics(unit, None, torch.zeros(len(unit)), None, mcq.Gram(unit), 0, 0)
        gram = self._gram.T  # upper triangle
        gram /= self._rows
        for row in range(len(gram)):
            gram[row:, row] = gram[row, row:]
        if not np.isfinite(gram).all():
            raise InputError(
                f"the activations that reach {name} must be finite, but hold NaN or infinity; "
                f"check that the model itself computes finite outputs on this text, and calibrate in float32"
            )
        cross, original_mean = None, None
        if self._cross is not None:
            cross = self._cross.T
            cross /= self._rows
            original_mean = torch.from_numpy(self._original_sum / self._rows).float()
        mean = torch.from_numpy(self._sum / self._rows).float()
        return Statistics(gram, cross, mean, original_mean, mcq.Gram(gram), self._tokens, self._borrowed)


def _rows(batch: torch.Tensor) -> torch.Tensor:
    return batch.detach().float().reshape(-1, batch.shape[-1])


def _scaled(rows: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return rows if factors is None else rows * factors[:, None]


# On the processor both products are SciPy's: torch and NumPy bring libraries of their own, and the threads of the one
# that was called last wait busily while the other works. Both return arrays in the column order of BLAS.


def _gram(x: torch.Tensor) -> NDArray[np.float32]:
    """Return x^T x, of which only the lower triangle is read: half the work of a general product."""
    gram: NDArray[np.float32] = (x.T @ x).cpu().numpy().T if x.is_cuda else ssyrk(1.0, x.numpy().T, lower=True)
    return gram


def _cross(x: torch.Tensor, y: torch.Tensor) -> NDArray[np.float32]:
    """Return x^T y."""
    if x.is_cuda:
        cross: NDArray[np.float32] = (y.T @ x).cpu().numpy().T
    else:
        cross = sgemm(1.0, x.numpy().T, y.numpy().T, trans_b=True)
    return cross


def _sum(x: torch.Tensor) -> NDArray[np.float64]:
    total: NDArray[np.float64] = x.sum(0, dtype=torch.float64).cpu().numpy()
    return total
