"""The run over a model: block by block, layer by layer in order of execution."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

import mcq
from mcq_llm.baseline import round_to_nearest
from mcq_llm.bias import corrected_bias
from mcq_llm.blocks import get_bias, get_weight, set_weight
from mcq_llm.borrow import borrowing, portions
from mcq_llm.calibrate import Stream, calibrated_stages
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.closing import closing_drift
from mcq_llm.coded_linear import tunable, tuned
from mcq_llm.config import Options
from mcq_llm.device import device_of, moved
from mcq_llm.drift import corrected_weight, own_drift
from mcq_llm.formats import StoredLayer, layer_type
from mcq_llm.mcq_format import McqLayer
from mcq_llm.memory import peak_megabytes
from mcq_llm.moments import Statistics
from mcq_llm.plan import PlannedLayer, quantized
from mcq_llm.precision import compute_type
from mcq_llm.prepared import Prepared
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
    error_predicted : float or None
        Of the layer alone in the original model, where its setting was chosen by that.
    tokens : int
        That it was fitted to. 0 for an expert that nothing is known about: its errors are plain squared ones.
    borrowed : int
        Tokens of other experts that it was also fitted to, with less weight, because its own are few.
    """

    layer: str
    rows: int
    columns: int
    setting: str
    error_before: float
    error_after: float
    error_predicted: float | None
    seconds: float
    peak_megabytes: float
    bits_payload: float
    bits_all_in: float
    tokens: int
    borrowed: int

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class BlockReport:
    """What tuning did to one block; losses are held-out, squared errors of its output relative to its squared target.

    With a lookahead the output is that of the last block that it is seen through.

    Attributes
    ----------
    block : str
    loss_dense : float or None
        After the weights were tuned; None if they were not.
    loss_coded : float
        After the layers were quantized.
    loss_tuned : float
        After codebooks, scales, norms and biases were tuned.
    """

    block: str
    loss_dense: float | None
    loss_coded: float
    loss_tuned: float
    seconds: float
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
        Used by the first process only, like `report`.
    report : callable
        Called once per quantized layer and tuned block, before it is written.
    """
    model, blocks, options = prepared.model, prepared.blocks, prepared.options
    planned = {layer.name for layer in quantized(prepared.plan)}
    round_to_stored(model)
    dtype = compute_type(blocks.device, options.precision)
    world = prepared.world
    cut = options.tune == "block"
    stream = Stream(model, blocks, prepared.windows, options.batch, dtype, prepared.spill, world, cut)
    original = stream.copy() if options.target != "quantized" else None
    with tqdm(total=len(planned), unit="layer", desc="quantizing", smoothing=0, disable=not world.first) as bar:
        for index in range(len(blocks.modules)):
            with blocks.loaded(index) as block:
                bar.set_postfix_str(f"{blocks.name}.{index}")
                round_to_stored(block)
                if world.from_first(partial(checkpoint.has_block, index)):
                    if original is not None:
                        original.advance(index, original.working_copy(block))
                    if world.first:
                        checkpoint.restore_block(index)
                    world.overwrite(block.state_dict().values())
                else:
                    _quantize_block(prepared, index, stream, original, checkpoint, report)
                stream.advance(index, stream.working_copy(block))
                bar.update(len(planned & blocks.layers(index).keys()))


def _quantize_block(
    prepared: Prepared, index: int, stream: Stream, original: Stream | None, checkpoint: Checkpoint, report: Report
) -> None:
    """Quantize block `index` in place, write it, and move the original stream through it as it was."""
    quantize_it = _quantize_tuned if prepared.options.tune == "block" else _quantize_layers
    with ExitStack() as exits:
        for other in _ahead(prepared, index):
            exits.enter_context(moved(other, prepared.blocks.device))
        stored = quantize_it(prepared, index, stream, original, checkpoint, report)
    if prepared.world.first:
        checkpoint.save_block(index, stored)


def _ahead(prepared: Prepared, index: int) -> list[nn.Module]:
    """Return the blocks through which an error of block `index` is seen."""
    options = prepared.options
    count = options.tuning.lookahead if options.tune == "block" else 0
    return list(prepared.blocks.modules[index + 1 : index + 1 + count])


def _quantize_tuned(
    prepared: Prepared, index: int, stream: Stream, original: Stream | None, checkpoint: Checkpoint, report: Report
) -> dict[str, StoredLayer]:
    """Quantize the layers of block `index` between two rounds of tuning: of its weights, and with their codes fixed."""
    blocks, tuning = prepared.blocks, prepared.options.tuning
    block, ahead = blocks.modules[index], _ahead(prepared, index)
    calls, dense = stream.calls(index, block, torch.float32, ahead), None
    rest = [stream.working_copy(other) for other in ahead]
    if original is None:
        targets = _outputs(stream, stream.calls(index, stream.working_copy(block), ahead=rest))
    else:
        original.advance(index, original.working_copy(block))
        targets = original.hidden
        if rest:
            targets = _outputs(original, original.calls(index + 1, rest[0], ahead=rest[1:]))
        dense = _tune(block, calls, targets, stream.shares, prepared, tuning.dense_epochs)
    # The weights now correct the drift of the block's inputs; layers correct what arises behind them, in the block.
    within = None if original is None else stream.copy()
    stored = _quantize_layers(prepared, index, stream, within, checkpoint, report)
    with _coded(block, blocks.prefix(index), stored, prepared.options):
        coded = _tune(block, calls, targets, stream.shares, prepared, tuning.epochs)
    if prepared.world.first:
        report(
            BlockReport(
                block=f"{blocks.name}.{index}",
                loss_dense=None if dense is None else dense.loss_after,
                loss_coded=coded.loss_before,
                loss_tuned=coded.loss_after,
                seconds=coded.seconds + (0.0 if dense is None else dense.seconds),
                peak_megabytes=peak_megabytes(),
            )
        )
    return stored


def _outputs(stream: Stream, calls: list[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [stream.kept(call()) for call in calls]


def _quantize_layers(
    prepared: Prepared,
    index: int,
    stream: Stream,
    original: Stream | None,
    checkpoint: Checkpoint,
    report: Report,
) -> dict[str, StoredLayer]:
    """Quantize the layers of block `index` in place; return them by name."""
    blocks, options, world = prepared.blocks, prepared.options, prepared.world
    working = stream.working_copy(blocks.modules[index])
    planned = {layer.name: layer for layer in quantized(prepared.plan)}
    layers = {name: layer for name, layer in blocks.layers(index).items() if name in planned}
    copies = {name: layer for name, layer in blocks.layers(index, working).items() if name in planned}
    originals = None if original is None else original.record(index, working, copies)
    stored: dict[str, StoredLayer] = {}
    calls, prefix = stream.calls(index, working), blocks.prefix(index)
    parts = portions(working, prefix, copies)
    stages = chain.from_iterable(calibrated_stages(calls, part, originals, world) for part in parts)
    with borrowing(working, calls, options.window, world):
        for stage in stages:
            finished = world.from_first(partial(checkpoint.layers, stage))
            closing = None
            if original is not None and options.target == "block" and len(finished) < len(stage):
                closing = closing_drift(calls, [copies[name] for name in stage], original.hidden, world)
            tasks = {
                name: partial(quantize_layer, planned[name], layers[name], statistics, options, closing)
                for name, statistics in stage.items()
                if statistics is not None and name not in finished
            }
            for name, (finished[name], line) in world.each(tasks):
                if world.first:
                    report(line)
                    checkpoint.save_layer(name, *finished[name])
            for name, (coded, bias) in finished.items():
                stored[name] = coded
                for layer in (layers[name], copies[name]):
                    set_weight(layer, _written(coded, options), bias)
    for name in layers.keys() - stored.keys():
        log.warning("%s never computed on the calibration text and stays dense", name)
    return stored


@contextmanager
def _coded(block: nn.Module, prefix: str, stored: dict[str, StoredLayer], options: Options) -> Iterator[None]:
    """Compute the layers of a block from what is `stored` of them; afterwards both are as tuned meanwhile."""
    plain = {name: block.get_submodule(name.removeprefix(prefix)) for name in stored}
    coded = {name: tunable(stored[name], get_bias(layer)).to(device_of(layer)) for name, layer in plain.items()}
    for name, layer in coded.items():
        block.set_submodule(name.removeprefix(prefix), layer)
    yield
    for name, layer in coded.items():
        stored[name] = tuned(stored[name], layer)
        set_weight(plain[name], _written(stored[name], options), layer.bias)
        block.set_submodule(name.removeprefix(prefix), plain[name])


def _tune(
    block: nn.Module,
    calls: list[Callable[[], torch.Tensor]],
    targets: list[torch.Tensor],
    shares: list[float],
    prepared: Prepared,
    epochs: int,
) -> TuneReport:
    """Tune what `block` consists of now, each process with its share of every batch."""
    # With nothing of a batch here, this process still takes the step: with another batch, which counts nothing.
    here = [i if share else 0 for i, share in enumerate(shares)]
    block.requires_grad_(True)
    report = tune_block(
        block,
        lambda i: calls[here[i]](),
        [targets[i] for i in here],
        replace(prepared.options.tuning, epochs=epochs),
        prepared.options.seed,
        lambda i, tensors: prepared.world.average(tensors, shares[i]),
    )
    block.requires_grad_(False)
    return report


def quantize_layer(
    planned: PlannedLayer,
    layer: nn.Module,
    statistics: Statistics,
    options: Options,
    closing: NDArray[np.float64] | None = None,
) -> tuple[tuple[StoredLayer, torch.Tensor | None], LayerReport]:
    """Quantize one layer; return it with its bias, if it has one.

    Parameters
    ----------
    planned : PlannedLayer
    layer : Module
    statistics : Statistics
        Of its inputs.
    options : Options
    closing : array of shape (outputs, inputs), or None
        The drift to make up for, if that is not the layer's own; see `mcq_llm.closing`.
    """
    start = time.perf_counter()
    metric, target = statistics.metric, target_weight(layer, statistics, options, closing)
    encoder, codes = fit(planned, target, metric, options.seed)
    stored = layer_type(options.format).of(planned.setting, encoder, codes)
    decoded = _written(stored, options)
    bias = get_bias(layer)
    bias = None if bias is None else bias.cpu()
    if options.tune == "bias":
        weight = get_weight(layer).float().cpu()
        bias = corrected_bias(bias, weight, decoded, statistics.mean, statistics.original_mean)
    rounded = round_to_nearest(torch.from_numpy(target), math.ceil(planned.payload))
    # Planned are bits that a fit may stay below; tuning adds to them later what is planned for it.
    cost = stored.bits if isinstance(stored, McqLayer) and options.tune != "block" else planned.cost
    line = LayerReport(
        layer=planned.name,
        rows=planned.rows,
        columns=planned.columns,
        setting=str(planned.setting),
        error_before=float(metric.relative_error(target, rounded.numpy())),
        error_after=float(metric.relative_error(target, decoded.numpy())),
        error_predicted=planned.predicted,
        seconds=time.perf_counter() - start,
        peak_megabytes=peak_megabytes(),
        bits_payload=cost.payload,
        bits_all_in=cost.all_in,
        tokens=statistics.tokens,
        borrowed=statistics.borrowed,
    )
    log.info("%s: error %.4f, %.1f s", line.layer, line.error_after, line.seconds)
    return (stored, None if bias is None else as_stored(bias)), line


def target_weight(
    layer: nn.Module, statistics: Statistics, options: Options, closing: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """Return what codes are to stand for: the weight, corrected for drift where inputs in the original are known."""
    weight: NDArray[np.float32] = get_weight(layer).float().cpu().numpy()
    if statistics.cross is None:
        return weight
    drift = own_drift(weight, statistics.gram, statistics.cross) if closing is None else closing
    return corrected_weight(weight, statistics.gram, drift, options.damping, options.correction)


def fit(planned: PlannedLayer, target: NDArray[np.float32], metric: mcq.Metric, seed: int) -> tuple[mcq.Quantizer, Any]:
    """Return the quantizer of a planned layer, fitted to `target`, and its codes."""
    encoder = planned.setting.quantizer()
    if isinstance(encoder, mcq.BandedQuantizer):
        return encoder, encoder.fit_encode(target, metric, seed=seed, importance=planned.importance)
    return encoder, encoder.fit_encode(target, metric, seed=seed)


def _written(stored: StoredLayer, options: Options) -> torch.Tensor:
    """Return the weight that will be loaded: shape (outputs, inputs), float32."""
    return as_stored(stored.weight()).float() if options.format == "dense" else stored.weight()
