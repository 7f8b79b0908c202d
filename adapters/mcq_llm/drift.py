"""The target of a layer whose inputs have drifted, because the layers before it are quantized already.

Let X be the inputs in the original model and X' those in the partly quantized one. The best weight on X' for
the original output X W^T is W* = W (X^T X') (X'^T X')^-1; quantizing W* under the metric X'^T X' then
minimises the distance to the original output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve


def own_drift(
    weight: NDArray[np.float32], gram: NDArray[np.float64], cross: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return W (X - X')^T X' / rows: what the drift of its inputs does to the output of a layer.

    Parameters
    ----------
    weight : array of shape (outputs, inputs)
    gram : array of shape (inputs, inputs)
        X'^T X' / rows.
    cross : array of shape (inputs, inputs)
        X^T X' / rows.
    """
    drift: NDArray[np.float64] = (cross - gram).T @ weight.T.astype(np.float64)
    return drift.T


def corrected_weight(
    weight: NDArray[np.float32],
    gram: NDArray[np.float64],
    drift: NDArray[np.float64],
    damping: float,
    strength: float,
) -> NDArray[np.float32]:
    """Return W + strength (W* - W).

    Parameters
    ----------
    weight : array of shape (outputs, inputs)
    gram : array of shape (inputs, inputs)
        X'^T X' / rows.
    drift : array of shape (outputs, inputs)
        (Y - Y')^T X' / rows, with Y what is wanted and Y' what there is with `weight`.
    damping : float
        Added to the diagonal of `gram`, as a fraction of its mean; pulls W* towards W.
    strength : float
        0 keeps `weight`, 1 corrects in full.
    """
    # W* - W = (Y - Y')^T X' (X'^T X')^-1, so that damping shrinks the correction and not the weight.
    damped = gram.copy()
    np.fill_diagonal(damped, np.diag(gram) + damping * np.mean(np.diag(gram)))
    correction = cho_solve(cho_factor(damped, overwrite_a=True), drift.T)
    target: NDArray[np.float32] = (weight + strength * correction.T).astype(np.float32)
    return target
