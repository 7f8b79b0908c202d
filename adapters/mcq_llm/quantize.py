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

from mcq_llm.aqlm_format import StoredLayer
from mcq_llm.baseline import round_to_nearest
from mcq_llm.bias import corrected_bias
from mcq_llm.blocks import get_bias, get_weight, set_weight
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.coded_linear import CodedLinear
from mcq_llm.config import Options
from mcq_llm.drift import corrected_weight
from mcq_llm.memory import peak_megabytes
from mcq_llm.moments import Statistics
from mcq_llm.plan import PlannedLayer, quantized, quantizer
from mcq_llm.prepare import Prepared
from mcq_llm.storage import as_stored, round_to_stored
from mcq_llm.tune import TuneReport, tune_block

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


@dataclass(frozen=True)
class BlockReport(TuneReport):
    """What tuning did to one block."""

    block: str
    peak_megabytes: float

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


Report = Callable[[LayerReport | BlockReport], None]


def quantize(prepared: Prepared, checkpoint: Checkpoint, report: Report = lambda line: None) -> None:
    """Quantize the planned layers of a model in place, block by block, and write each block when it is finished.

    The inputs of each layer are those that the layers quantized before it produce. One block's statistics are
    held at a time. What the checkpoint has already is taken from it.

    Parameters
    ----------
    prepared : Prepared
        Afterwards its model computes with exactly the weights that are written.
    checkpoint : Checkpoint
    report : callable
        Called once per quantized layer and tuned block, before it is written.
    """
    model, blocks, options = prepared.model, prepared.blocks, prepared.options
    planned = {layer.name for layer in quantized(prepared.plan)}
    round_to_stored(model)
    dtype = getattr(torch, options.precision)
    stream = Stream(model, blocks, prepared.windows, options.batch, dtype, prepared.spill)
    original = stream.copy() if options.target == "original" else None
    with tqdm(total=len(planned), unit="layer", desc="quantizing", smoothing=0) as bar:
        for index in range(len(blocks.modules)):
            with blocks.loaded(index) as block:
                bar.set_postfix_str(f"{blocks.name}.{index}")
                round_to_stored(block)
                if checkpoint.has_block(index):
                    if original is not None:
                        original.advance(index, original.working_copy(block))
                    checkpoint.restore_block(index)
                else:
                    _quantize_block(prepared, index, stream, original, checkpoint, report)
                stream.advance(index, stream.working_copy(block))
                bar.update(len(planned & blocks.layers(index).keys()))


def _quantize_block(
    prepared: Prepared, index: int, stream: Stream, original: Stream | None, checkpoint: Checkpoint, report: Report
) -> None:
    """Quantize block `index` in place, write it, and move the original stream through it as it was."""
    blocks, options = prepared.blocks, prepared.options
    block = blocks.modules[index]
    working = stream.working_copy(block)
    targets = None
    if options.tune == "block" and original is None:
        with torch.no_grad():
            targets = [stream.kept(call()) for call in stream.calls(index, working)]
    stored = _quantize_layers(prepared, index, working, stream, original, checkpoint, report)
    if options.tune == "block" and stored:
        calls = stream.calls(index, block, torch.float32)
        if targets is None:
            assert original is not None
            targets = original.hidden
        tuning = _tune(block, blocks.prefix(index), stored, lambda i: calls[i](), targets, options)
        report(BlockReport(**asdict(tuning), block=f"{blocks.name}.{index}", peak_megabytes=peak_megabytes()))
    checkpoint.save_block(index, stored)


def _quantize_layers(
    prepared: Prepared,
    index: int,
    working: nn.Module,
    stream: Stream,
    original: Stream | None,
    checkpoint: Checkpoint,
    report: Report,
) -> dict[str, StoredLayer]:
    """Quantize the layers of block `index`, in place and in its copy `working`; return them by name."""
    blocks, options = prepared.blocks, prepared.options
    planned = {layer.name: layer for layer in quantized(prepared.plan)}
    layers = {name: layer for name, layer in blocks.layers(index).items() if name in planned}
    copies = {name: layer for name, layer in blocks.layers(index, working).items() if name in planned}
    originals = None if original is None else original.record(index, working, copies)
    stored: dict[str, StoredLayer] = {}
    for stage in calibrated_stages(stream.calls(index, working), copies, originals):
        for name, statistics in stage.items():
            found = checkpoint.layer(name)
            if found is None:
                found, line = quantize_layer(planned[name], layers[name], statistics, options)
                report(line)
                checkpoint.save_layer(name, *found)
            stored[name] = found[0]
            for layer in (layers[name], copies[name]):
                set_weight(layer, _written(found[0], options), found[1])
    for name in layers.keys() - stored.keys():
        log.warning("%s never computed on the calibration text and stays dense", name)
    return stored


def _tune(
    block: nn.Module,
    prefix: str,
    stored: dict[str, StoredLayer],
    forward: Callable[[int], torch.Tensor],
    targets: list[torch.Tensor],
    options: Options,
) -> TuneReport:
    """Tune a block whose layers are quantized; update it and what is `stored` of it."""
    plain = {name: block.get_submodule(name.removeprefix(prefix)) for name in stored}
    for name, layer in plain.items():
        block.set_submodule(name.removeprefix(prefix), CodedLinear(stored[name], get_bias(layer)))
    block.requires_grad_(True)
    report = tune_block(block, forward, targets, options.tuning, options.seed)
    block.requires_grad_(False)
    for name, layer in plain.items():
        coded = block.get_submodule(name.removeprefix(prefix))
        assert isinstance(coded, CodedLinear)
        stored[name] = coded.stored()
        set_weight(layer, _written(stored[name], options), coded.bias)
        block.set_submodule(name.removeprefix(prefix), layer)
    return report


def quantize_layer(
    planned: PlannedLayer, layer: nn.Module, statistics: Statistics, options: Options
) -> tuple[tuple[StoredLayer, torch.Tensor | None], LayerReport]:
    """Quantize one layer; return it with its bias, if it has one.

    Parameters
    ----------
    planned : PlannedLayer
    layer : Module
    statistics : Statistics
        Of its inputs.
    options : Options
    """
    start = time.perf_counter()
    weight = get_weight(layer).float().numpy()
    target = weight
    if statistics.cross is not None:
        target = corrected_weight(weight, statistics.gram, statistics.cross, options.damping, options.correction)
    encoder = quantizer(planned.setting)
    codes = encoder.fit_encode(target, metric=statistics.metric, seed=options.seed)
    stored = StoredLayer.of(planned.setting, encoder, codes)
    decoded = _written(stored, options)
    bias = get_bias(layer)
    if options.tune == "bias":
        bias = corrected_bias(bias, torch.from_numpy(weight), decoded, statistics.mean, statistics.original_mean)
    rounded = round_to_nearest(torch.from_numpy(target), math.ceil(planned.payload))
    line = LayerReport(
        layer=planned.name,
        rows=planned.rows,
        columns=planned.columns,
        setting=str(planned.setting),
        error_before=float(statistics.metric.relative_error(target, rounded.numpy())),
        error_after=float(statistics.metric.relative_error(target, decoded.numpy())),
        seconds=time.perf_counter() - start,
        peak_megabytes=peak_megabytes(),
        bits_payload=planned.payload,
        bits_all_in=planned.all_in,
    )
    log.info("%s: error %.4f, %.1f s", line.layer, line.error_after, line.seconds)
    return (stored, None if bias is None else as_stored(bias)), line


def _written(stored: StoredLayer, options: Options) -> torch.Tensor:
    """Return the weight that will be loaded: shape (outputs, inputs), float32."""
    return as_stored(stored.weight()).float() if options.dense else stored.weight()
