"""A look at a coded model: what errors turn out to count in it.

An allocation predicts the share of each unit, a layer or a band of rows, in the divergence of a coded model. Where the
model has other shares, errors count more or less than was believed. But shares are measured on a few thousand tokens,
and those of a single band may be anything by chance, so not all of the difference is believed:

- Bands: their Fisher information is too large for important rows, which are chosen for being large, and it holds for
  small errors only. Both are much the same in all blocks, so bands are corrected alike in all layers of a kind.
- Layers: shares are averaged over neighbouring blocks. Where layers have been looked at before, both measurements are
  about equally uncertain, so half of the difference counts: their geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mcq_llm.attribution import smoothed
from mcq_llm.blocks import Blocks

#: What a share may be of the predicted one, or this of it, to be believed.
MOST = 5.0


def layer_corrections(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]], blocks: Blocks
) -> dict[str, float]:
    """Return by what the predicted costs of each layer's errors are to be multiplied.

    Parameters
    ----------
    measured : mapping of str to sequence of float
        Share in the divergence of each band of a layer; their sum is at will.
    predicted : mapping of str to sequence of float
        The same as the allocation has it.
    blocks : Blocks
        Of the model: a share is averaged with those of the same layer in the blocks around.
    """
    shares, expected = (
        smoothed({name: math.fsum(parts) for name, parts in found.items()}, blocks) for found in (measured, predicted)
    )
    factors = _factors(list(shares.values()), [expected[name] for name in shares])
    return {name: math.sqrt(factor) for name, factor in zip(shares, factors, strict=True)}


def band_corrections(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[float]], blocks: Blocks
) -> dict[str, list[float]]:
    """Return by what the predicted costs of each band's errors are to be multiplied; the sums of layers stay.

    Parameters
    ----------
    measured, predicted, blocks
        See `layer_corrections`. Layers of a kind are namesakes in their blocks with as many bands.
    """
    kinds: dict[tuple[str, int], list[str]] = {}
    for name, parts in predicted.items():
        kinds.setdefault((name.removeprefix(blocks.prefix(blocks.number(name))), len(parts)), []).append(name)
    found = {}
    for names in kinds.values():
        shares, expected = (
            [math.fsum(band) for band in zip(*(parts[name] for name in names), strict=True)]
            for parts in (measured, predicted)
        )
        factors = _factors(shares, expected)
        for name in names:
            revised = math.fsum(factor * part for factor, part in zip(factors, predicted[name], strict=True))
            scale = math.fsum(predicted[name]) / revised if revised > 0 else 1.0
            found[name] = [factor * scale for factor in factors]
    return found


def _factors(shares: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Return by what expected shares are to be multiplied, within limits; the sums of both are at will."""
    if math.fsum(shares) <= 0 or math.fsum(expected) <= 0:
        return [1.0] * len(shares)  # errors do no harm at all, or there are none
    total = math.fsum(shares) / math.fsum(expected)
    return [
        min(max(share / (total * part), 1 / MOST), MOST) if part > 0 else 1.0
        for share, part in zip(shares, expected, strict=True)
    ]
