"""The inputs of the layers of the original model, layer by layer: what allocation measures things by."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq_llm.blocks import Blocks, get_weight
from mcq_llm.borrow import borrowing, portions
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.config import Options
from mcq_llm.moments import Statistics
from mcq_llm.precision import compute_type


@dataclass(frozen=True)
class Observed:
    """A layer, and what it receives in the original model.

    Attributes
    ----------
    name : str
    inputs : str
        Name of the first layer that receives the same inputs.
    layer : Module
    weight : array of shape (outputs, inputs), float32
    statistics : Statistics
        Of the inputs.
    """

    name: str
    inputs: str
    layer: nn.Module
    weight: NDArray[np.float32]
    statistics: Statistics


def observe(
    model: PreTrainedModel, blocks: Blocks, windows: torch.Tensor, options: Options, names: Collection[str]
) -> Iterator[Observed]:
    """Run the calibration text through a model once, and return its layers `names` that compute on the way.

    One block's statistics are held at a time, and nothing is gathered in blocks without any of these layers.

    Parameters
    ----------
    model : PreTrainedModel
    blocks : Blocks
        Of `model`.
    windows : tensor of shape (sequences, window), int64
    options : Options
    names : collection of str
    """
    if not names:
        return
    stream = Stream(model, blocks, windows, options.batch, compute_type(blocks.device, options.precision))
    with tqdm(total=len(names), unit="layer", desc="measuring", smoothing=0) as bar:
        for index in range(len(blocks.modules)):
            with blocks.loaded(index) as block:
                working, prefix = stream.working_copy(block), blocks.prefix(index)
                # All layers of a block, so that who shares inputs with whom does not depend on who is asked for.
                layers = blocks.layers(index)
                layers = layers if any(name in names for name in layers) else {}
                copies = {name: layer for name, layer in blocks.layers(index, working).items() if name in layers}
                calls = stream.calls(index, working)
                with borrowing(working, calls if layers else [], options.window):
                    for part in portions(working, prefix, copies):
                        for stage in calibrated_stages(calls, part, None, ordered=False):
                            first: dict[int, str] = {}
                            for name, statistics in stage.items():
                                assert statistics is not None  # noqa: S101 (there are no other processes)
                                inputs = first.setdefault(id(statistics), name)
                                if name not in names:
                                    continue
                                weight = get_weight(layers[name]).float().contiguous().cpu().numpy()
                                yield Observed(name, inputs, layers[name], weight, statistics)
                                bar.update()
                stream.advance(index, working)
