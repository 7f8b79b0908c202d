"""The target of a layer whose inputs have drifted, because the layers before it are quantized already.

Let X be the inputs in the original model and X' those in the partly quantized one. The best weight on X' for
the original output X W^T is W* = W (X^T X') (X'^T X')^-1; quantizing W* under the metric X'^T X' then
minimises the distance to the original output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve


def corrected_weight(
    weight: NDArray[np.float32],
    gram: NDArray[np.float64],
    cross: NDArray[np.float64],
    damping: float,
    strength: float,
) -> NDArray[np.float32]:
    """Return W + strength (W* - W).

    Parameters
    ----------
    weight : array of shape (outputs, inputs)
    gram : array of shape (inputs, inputs)
        X'^T X' / rows.
    cross : array of shape (inputs, inputs)
        X^T X' / rows.
    damping : float
        Added to the diagonal of `gram`, as a fraction of its mean; pulls W* towards W.
    strength : float
        0 keeps `weight`, 1 corrects in full.
    """
    # W* - W = W (X - X')^T X' (X'^T X')^-1, so that damping shrinks the correction and not the weight.
    correction = (cross - gram).T @ weight.T.astype(np.float64)
    damped = gram.copy()
    np.fill_diagonal(damped, np.diag(gram) + damping * np.mean(np.diag(gram)))
    correction = cho_solve(cho_factor(damped, overwrite_a=True), correction, overwrite_b=True)
    target: NDArray[np.float32] = (weight + strength * correction.T).astype(np.float32)
    return target
