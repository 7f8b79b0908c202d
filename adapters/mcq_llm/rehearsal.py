"""A run with one setting for all layers, on a copy of the model: what the errors of a run will be like."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from mcq_llm.blocks import find_blocks, get_weight
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.prepared import Prepared
from mcq_llm.quantize import BlockReport, LayerReport, quantize
from mcq_llm.world import ALONE


def rehearse(prepared: Prepared) -> dict[str, tuple[torch.Tensor, float]]:
    """Return the coded weight of each layer, of shape (outputs, inputs), and the relative error of its outputs.

    Layers correct the drift of their inputs as they will in the run, but blocks are not tuned.

    Parameters
    ----------
    prepared : Prepared
        Its model stays as it is; its plan is that of the rehearsal.
    """
    model = copy.deepcopy(prepared.model)
    blocks, options = find_blocks(model), replace(prepared.options, tune="none")
    alone = replace(prepared, model=model, blocks=blocks, options=options, world=ALONE)
    errors: dict[str, float] = {}

    def note(line: LayerReport | BlockReport) -> None:
        if isinstance(line, LayerReport):
            errors[line.layer] = line.error_after

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder), model, blocks, prepared.plan, options.format, {})
        checkpoint.open()
        quantize(alone, checkpoint, note)
    modules = dict(model.named_modules())
    return {name: (get_weight(modules[name]), error) for name, error in errors.items()}
