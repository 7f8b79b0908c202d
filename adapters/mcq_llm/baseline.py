"""Round-to-nearest: what quantization costs without a method, for comparison."""

from __future__ import annotations

import torch

GROUP = 64


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Round each group of 64 neighbouring inputs to 2**bits evenly spaced values between its extremes.

    A group has a float16 step and a float16 offset; the last one of a row may be shorter.

    Parameters
    ----------
    weight : tensor of shape (outputs, inputs)
    bits : int

    Returns
    -------
    tensor of shape (outputs, inputs)
        The rounded weight.
    """
    return torch.cat([_round_columns(columns, bits) for columns in torch.split(weight, GROUP, dim=1)], dim=1)


def _round_columns(columns: torch.Tensor, bits: int) -> torch.Tensor:
    low, high = columns.aminmax(dim=1, keepdim=True)
    low = low.half().float()
    step = ((high - low) / (2**bits - 1)).half().float().clamp(min=torch.finfo(torch.half).tiny)
    rounded: torch.Tensor = low + step * ((columns - low) / step).round().clamp(0, 2**bits - 1)
    return rounded


def all_in_bits(bits: int) -> float:
    """Return the bits per weight with the step and the offset of each group counted."""
    return bits + 32 / GROUP
