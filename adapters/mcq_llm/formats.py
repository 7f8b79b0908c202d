"""The formats that a quantized model can be written in."""

from __future__ import annotations

from mcq_llm import aqlm_format, mcq_format
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.mcq_format import McqLayer

#: AQLM's, which stock loaders read; mcq's own, for every codec; or ordinary weights.
FORMATS = ("aqlm", "mcq", "dense")

StoredLayer = AqlmLayer | McqLayer


def layer_type(file_format: str) -> type[AqlmLayer] | type[McqLayer]:
    """Return the class of the layers of a format, while they are at work, and in the parts of an unfinished run."""
    return AqlmLayer if file_format == "aqlm" else McqLayer


def coded_layer(tensor: str) -> str | None:
    """Return the name of the layer that a tensor of a checkpoint is a part of the codes of; None for other tensors."""
    layer, mark, _ = tensor.partition(mcq_format.MARK)
    if mark:
        return layer
    layer, _, part = tensor.rpartition(".")
    return layer if part in aqlm_format.CODED else None
