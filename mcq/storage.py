"""How codebooks are stored: in float16, or in 8 bits with one step per codebook.

Whatever the way, all computations use the float16 values that come back, so codes are chosen for what decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcq.scales import reciprocal, to_float16

CodebookDtype = Literal["float16", "int8"]
CODEBOOK_DTYPES = ("float16", "int8")
INT8_MAX = 127


def stored_codebooks(codebooks: NDArray[np.floating], dtype: CodebookDtype) -> dict[str, NDArray[Any]]:
    """Return the arrays that stand for codebooks (M, K, g): "codebooks", and for int8 "codebook_steps" (M,), float32.

    A step is a 127th of the largest entry of its codebook. Storing what was restored gives the same arrays.

    Examples
    --------
    >>> arrays = stored_codebooks(np.array([[[0.0], [0.3], [-1.27]]]), "int8")
    >>> arrays["codebooks"].ravel().tolist(), arrays["codebook_steps"].round(4).tolist()
    ([0, 30, -127], [0.009999999776482582])
    """
    halves = to_float16(codebooks)
    if dtype == "float16":
        return {"codebooks": halves}
    values = halves.astype(np.float32)
    steps = np.abs(values).max((1, 2)) / np.float32(INT8_MAX)
    return {"codebooks": np.rint(values * reciprocal(steps)[:, None, None]).astype(np.int8), "codebook_steps": steps}


def restored_codebooks(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float16]:
    """Return the codebooks that `stored_codebooks` stored."""
    codebooks = arrays["codebooks"]
    if codebooks.dtype == np.float16:
        return codebooks
    return to_float16(codebooks * arrays["codebook_steps"][:, None, None])


def as_stored(codebooks: NDArray[np.floating], dtype: CodebookDtype) -> NDArray[np.float16]:
    """Return codebooks rounded to what is stored of them."""
    return restored_codebooks(stored_codebooks(codebooks, dtype))
