"""The run over a model: block by block, layer by layer in order of execution."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from mcq_llm.aqlm_format import StoredLayer
from mcq_llm.baseline import round_to_nearest
from mcq_llm.blocks import find_blocks, get_weight, set_weight
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.config import Options
from mcq_llm.drift import corrected_weight
from mcq_llm.memory import peak_megabytes
from mcq_llm.moments import Statistics
from mcq_llm.plan import Layer, PlannedLayer, quantized, quantizer
from mcq_llm.storage import as_stored, round_to_stored

log = logging.getLogger("mcq")


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer; errors are tr(D H D^T) / tr(W H W^T) with D = W - W_hat.

    Attributes
    ----------
    error_before : float
        Of round-to-nearest at the payload's bits, the smallest whole number not below.
    error_after : float
        Of the quantized layer, on the same inputs and against the same target.
    """

    layer: str
    rows: int
    columns: int
    setting: str
    error_before: float
    error_after: float
    seconds: float
    peak_megabytes: float
    bits_payload: float
    bits_all_in: float

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


def quantize(
    model: PreTrainedModel,
    plan: list[Layer],
    windows: torch.Tensor,
    options: Options,
    report: Callable[[LayerReport], None] = lambda line: None,
) -> dict[str, StoredLayer]:
    """Quantize the planned layers of `model` in place.

    The inputs of each layer are those that the layers quantized before it produce. One block's statistics are
    held at a time.

    Parameters
    ----------
    model : PreTrainedModel
        Afterwards it computes with exactly the weights that the returned codes stand for.
    plan : list of Layer
        Of `make_plan`.
    windows : tensor of shape (sequences, window), int64
        Calibration tokens.
    options : Options
    report : callable
        Called once per quantized layer.

    Returns
    -------
    dict of str to StoredLayer
        By full name of the layer.
    """
    planned = {layer.name: layer for layer in quantized(plan)}
    blocks = find_blocks(model)
    round_to_stored(model)
    stream = Stream(model, blocks, windows, options.batch, getattr(torch, options.precision))
    original = stream.copy() if options.target == "original" else None
    stored: dict[str, StoredLayer] = {}
    work = sum(layer.entries for layer in planned.values())
    with tqdm(total=work, unit="w", unit_scale=True, desc="quantizing", smoothing=0) as bar:
        for index, block in enumerate(blocks.modules):
            working = stream.working_copy(block)
            layers = {name: layer for name, layer in blocks.layers(index, working).items() if name in planned}
            originals = None if original is None else original.record(index, working, layers)
            for stage in calibrated_stages(stream.calls(index, working), layers, originals):
                for name, statistics in stage.items():
                    bar.set_postfix_str(name.removeprefix(f"{blocks.name}."))
                    copies = [blocks.layers(index)[name], layers[name]]
                    stored[name], line = quantize_layer(planned[name], copies, statistics, options)
                    report(line)
                    bar.update(planned[name].entries)
            stream.advance(index, working)
    for name in planned.keys() - stored.keys():
        log.warning("%s never computed on the calibration text and stays dense", name)
    return stored


def quantize_layer(
    planned: PlannedLayer, layers: list[nn.Module], statistics: Statistics, options: Options
) -> tuple[StoredLayer, LayerReport]:
    """Quantize one layer and overwrite its weight.

    Parameters
    ----------
    planned : PlannedLayer
    layers : list of Module
        The layer itself, and its copies that compute in other precisions.
    statistics : Statistics
        Of its inputs.
    options : Options
    """
    start = time.perf_counter()
    weight = get_weight(layers[0]).numpy().copy(order="C")  # the layer itself is overwritten below
    if statistics.cross is not None:
        weight = corrected_weight(weight, statistics.gram, statistics.cross, options.damping, options.correction)
    encoder = quantizer(planned.setting)
    codes = encoder.fit_encode(weight, metric=statistics.metric, seed=options.seed)
    stored = StoredLayer.of(planned.setting, encoder, codes)
    decoded = stored.weight()
    if options.dense:
        decoded = as_stored(decoded).float()
    rounded = round_to_nearest(torch.from_numpy(weight), math.ceil(planned.payload))
    for layer in layers:
        set_weight(layer, decoded)
    line = LayerReport(
        layer=planned.name,
        rows=planned.rows,
        columns=planned.columns,
        setting=str(planned.setting),
        error_before=float(statistics.metric.relative_error(weight, rounded.numpy())),
        error_after=float(statistics.metric.relative_error(weight, decoded.numpy())),
        seconds=time.perf_counter() - start,
        peak_megabytes=peak_megabytes(),
        bits_payload=planned.payload,
        bits_all_in=planned.all_in,
    )
    log.info("%s: error %.4f, %.1f s", line.layer, line.error_after, line.seconds)
    return stored, line
