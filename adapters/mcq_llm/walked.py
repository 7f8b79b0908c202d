"""A run over the model that leaves it as it is: what errors the layers make, each for itself, where drift is corrected.

In a run a layer makes up for the drift that the layers before it have caused. Its weights then differ from the original
ones by that correction and by an error of its own, and only the latter is what more bits would make less.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from tqdm import tqdm

from mcq_llm.blocks import set_weight
from mcq_llm.borrow import borrowing, portions
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.closing import closing_drift
from mcq_llm.drafts import Drafts
from mcq_llm.plan import quantized
from mcq_llm.precision import compute_type
from mcq_llm.prepared import Prepared
from mcq_llm.quantize import target_weight


class Walked(NamedTuple):
    """A layer as a run leaves it.

    Attributes
    ----------
    name : str
    weight : tensor of shape (outputs, inputs)
        What its codes stand for.
    error : tensor of shape (outputs, inputs)
        The difference from what they were to stand for.
    relative : float
        tr(D H D^T) / tr(W H W^T) of that.
    """

    name: str
    weight: torch.Tensor
    error: torch.Tensor
    relative: float


def walked(prepared: Prepared, drafts: Drafts) -> Iterator[Walked]:
    """Quantize copies of the blocks as planned, block by block, without tuning; yield every layer.

    Parameters
    ----------
    prepared : Prepared
        Its model stays as it is.
    drafts : Drafts
        Of earlier runs; gets the others.
    """
    blocks, options = prepared.blocks, prepared.options
    planned = {layer.name: layer for layer in quantized(prepared.plan)}
    dtype = compute_type(blocks.device, options.precision)
    stream = Stream(prepared.model, blocks, prepared.windows, options.batch, dtype, prepared.spill)
    original = None if options.target == "quantized" else stream.copy()
    with tqdm(total=len(planned), desc="walking", unit="layer", smoothing=0) as bar:
        for index in range(len(blocks.modules)):
            with blocks.loaded(index) as block:
                working, prefix = copy.deepcopy(block).to(dtype), blocks.prefix(index)
                layers = {name: layer for name, layer in blocks.layers(index).items() if name in planned}
                copies = {name: layer for name, layer in blocks.layers(index, working).items() if name in planned}
                originals = None if original is None else original.record(index, working, copies)
                calls = stream.calls(index, working)
                with borrowing(working, calls, options.window):
                    for part in portions(working, prefix, copies):
                        for stage in calibrated_stages(calls, part, originals):
                            closing = None
                            if original is not None and options.target == "block":
                                closing = closing_drift(calls, [copies[name] for name in stage], original.hidden)
                            for name, statistics in stage.items():
                                assert statistics is not None  # noqa: S101 (there are no other processes)
                                target = target_weight(layers[name], statistics, options, closing)
                                decoded = drafts.coded(planned[name], target, statistics.metric, options.seed)
                                relative = float(statistics.metric.relative_error(target, decoded))
                                weight = torch.from_numpy(decoded)
                                set_weight(copies[name], weight)
                                yield Walked(name, weight, weight - torch.from_numpy(target), relative)
                                bar.update()
                stream.advance(index, working)
