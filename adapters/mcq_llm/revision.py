"""A second look at an allocation: what errors turn out to count in a model that has the settings chosen.

Sensitivities are measured with one setting for all layers, and those of rows as if errors were small. An allocation
then predicts the share of each unit, a layer or a band, in the divergence. Where a model with the settings chosen has
other shares, errors count more or less than was believed, and the settings are chosen anew. As both measurements are
uncertain, half of the difference counts: the geometric mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mcq_llm.attribution import smoothed
from mcq_llm.blocks import Blocks

#: What a share may be of the predicted one, or this of it, to be believed.
MOST = 5.0


def corrections(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]], blocks: Blocks
) -> dict[str, list[float]]:
    """Return by what the predicted costs of errors are to be multiplied.

    Parameters
    ----------
    measured : mapping of str to sequence of float
        Share in the divergence of each band of a layer; their sum is at will.
    predicted : mapping of str to sequence of float
        The same as the allocation has it.
    blocks : Blocks
        Of the model: a share is averaged with those of the same layer in the blocks around.
    """
    if math.fsum(share for bands in measured.values() for share in bands) <= 0:
        return {name: [1.0] * len(bands) for name, bands in predicted.items()}  # errors do no harm at all
    found: dict[str, list[float]] = {name: [] for name in predicted}
    for band in range(max(len(bands) for bands in predicted.values())):
        shares, expected = (
            smoothed({name: bands[band] for name, bands in parts.items() if band < len(bands)}, blocks)
            for parts in (_relative(measured), _relative(predicted))
        )
        for name, share in shares.items():
            found[name].append(math.sqrt(min(max(share / expected[name], 1 / MOST), MOST)))
    return found


def _relative(parts: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    total = math.fsum(part for bands in parts.values() for part in bands)
    return {name: [part / total for part in bands] for name, bands in parts.items()}
