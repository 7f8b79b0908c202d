"""Any size: the setting of each layer is chosen so that the whole model loses least within a budget of bits.

One pass of the calibration text through the original model gives the Gram of every layer, and with it the layer's
curve: the relative error of its outputs at each setting that its codec offers. What an error of a layer means for the
model is its sensitivity (`mcq_llm.sensitivity`). `mcq.rate` chooses settings for the least sum of the products of both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from mcq.errors import ConfigError
from mcq.rate import Allocation, Uniform, Unit, allocate
from mcq_llm.bands import BandedSetting, band_rows, importance, overhead, ranks, shares, sums
from mcq_llm.blocks import Blocks
from mcq_llm.checkpoint import fingerprint
from mcq_llm.config import SHARED, Options
from mcq_llm.ledger import Ledger
from mcq_llm.observe import observe
from mcq_llm.plan import Layer, PlannedLayer, free_layers, planned, quantized
from mcq_llm.prepared import Prepared
from mcq_llm.revision import band_corrections, layer_corrections
from mcq_llm.sensitivity import Share, by_shares, require_measurable, row_sensitivities, sensitivities, shared_out
from mcq_llm.setting import Setting
from mcq_llm.storage import as_stored

log = logging.getLogger("mcq")

#: Bytes that a layer takes besides its arrays, each further band of it, and any other tensor: descriptions, at most.
LAYER_OVERHEAD, BAND_OVERHEAD, TENSOR_OVERHEAD = 1536, 1024, 192


@dataclass(frozen=True)
class Curve:
    """What is known of a layer of the original model.

    Attributes
    ----------
    inputs : str
        Name of the first layer that receives the same inputs.
    power : float
        tr(W H W^T) / tr(H) / outputs: mean square of an output, relative to that of an input.
    errors : dict of Setting to float
        Relative error tr(D H D^T) / tr(W H W^T) at each candidate that the layer can have.
    energy : list of float
        Mean square of each row, relative to the mean.
    """

    inputs: str
    power: float
    errors: Mapping[Setting, float]
    energy: Sequence[float]


def measure_curves(
    model: PreTrainedModel,
    blocks: Blocks,
    windows: torch.Tensor,
    options: Options,
    plan: Sequence[Layer],
    ledger: Ledger,
) -> dict[str, Curve]:
    """Return the curve of every layer of a plan that is to be quantized, by name.

    Parameters
    ----------
    model : PreTrainedModel
    blocks : Blocks
        Of `model`.
    windows : tensor of shape (sequences, window), int64
    options : Options
    plan : sequence of Layer
    ledger : Ledger
        Of earlier measurements; gets the others.
    """
    setting, names = options.setting, [layer.name for layer in quantized(plan)]
    for seen in observe(model, blocks, windows, options, {name for name in names if name not in ledger}):
        metric = seen.statistics.metric
        curve = setting.curve(seen.weight, metric)
        zeros = metric.distortion(seen.weight, np.zeros_like(seen.weight))
        ledger[seen.name] = {
            "inputs": seen.inputs,
            "power": zeros / float(np.trace(metric.matrix)) / len(seen.weight),
            "errors": [curve.get(candidate) for candidate in setting.candidates()],
            "energy": _energy(seen.weight),
        }
    return {
        name: Curve(
            ledger[name]["inputs"],
            ledger[name]["power"],
            {
                candidate: error
                for candidate, error in zip(setting.candidates(), ledger[name]["errors"], strict=True)
                if error is not None
            },
            ledger[name]["energy"],
        )
        for name in names
        if name in ledger  # others never compute
    }


def _energy(weight: NDArray[np.float32]) -> list[float]:
    energy = np.square(weight, dtype=np.float64).mean(1)
    return [float(f"{value:.4g}") for value in energy / (energy.mean() or 1.0)]


@dataclass(frozen=True)
class Banded:
    """A layer whose rows are cut into bands, from the least to the most important ones; one band is the layer.

    Attributes
    ----------
    layer : PlannedLayer
    curve : Curve
    order : array of shape (rows,), or None
        The rank of each row by importance; None for one band.
    weights : list of float
        Which part of the cost of errors each band has.
    energy : list of float
        Which part of the error itself.
    """

    layer: PlannedLayer
    curve: Curve
    order: NDArray[np.intp] | None = None
    weights: Sequence[float] = (1.0,)
    energy: Sequence[float] = (1.0,)

    @classmethod
    def of(cls, layer: PlannedLayer, curve: Curve, sensitivity: Sequence[float] | None, bands: int) -> Banded:
        """Cut the rows of a layer, if it is known what errors of each count, into bands: not more than rows."""
        if sensitivity is None:
            return cls(layer, curve)
        bands = min(bands, layer.rows)
        costs = importance(sensitivity, curve.energy)
        order = ranks(costs)
        return cls(layer, curve, order, shares(costs, order, bands), shares(np.array(curve.energy), order, bands))

    def units(self, count: float, options: Options) -> list[Unit]:
        """Return what an allocation chooses settings for; `count` is what the relative error of the layer counts."""
        name, columns, settings = self.layer.name, self.layer.columns, list(self.curve.errors)
        units = []
        for band, (rows, weight) in enumerate(zip(band_rows(self.layer.rows, self.bands), self.weights, strict=True)):
            costs = [_bits(planned(name, rows, columns, setting, options)) for setting in settings]
            errors = [count * weight * error for error in self.curve.errors.values()]
            units.append(Unit(self.unit(band), settings, costs, errors))
        return units

    def unit(self, band: int) -> str:
        """Return the name of the unit of a band."""
        return self.layer.name if self.order is None else f"{self.layer.name} band {band + 1}"

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.weights)

    def sums(self, by_row: Sequence[float]) -> list[float]:
        """Return the sums of a number of each row over the bands."""
        order = np.arange(len(by_row)) if self.order is None else self.order
        return sums(np.asarray(by_row), order, self.bands)

    def chosen(self, found: Allocation, options: Options) -> PlannedLayer:
        """Return the layer with the settings that an allocation chose."""
        settings = [found.chosen[self.unit(band)].setting for band in range(self.bands)]
        parts = tuple(setting for setting in settings if isinstance(setting, Setting))
        setting = parts[0] if len(set(parts)) == 1 else BandedSetting(parts=parts)
        errors = [share * self.curve.errors[part] for share, part in zip(self.energy, parts, strict=True)]
        layer = planned(self.layer.name, self.layer.rows, self.layer.columns, setting, options)
        return replace(layer, predicted=sum(errors), importance=self.order)


def allocated(prepared: Prepared, cache: Path | None) -> tuple[list[Layer], Allocation]:
    """Return the plan with settings that suit the budget of the options, and how they were chosen.

    Layers that an override matches keep what it says.

    Parameters
    ----------
    prepared : Prepared
        Its model stays as it is.
    cache : Path or None
        Folder for measurements, to take them up from again.

    Raises
    ------
    ConfigError
        If the budget cannot be met.
    """
    model, blocks, windows = prepared.model, prepared.blocks, prepared.windows
    plan, options = prepared.plan, prepared.options
    assert options.budget is not None  # noqa: S101
    setting, identity, free = options.setting, _identity(prepared), free_layers(plan, options)
    provider, bands = options.budget.sensitivity, options.budget.bands
    costs = {layer.name: _costs(layer, options) for layer in free}
    bits = _budget(model, plan, options)
    _require_room(bits, plan, costs)
    require_measurable(provider, bands, prepared, list(costs))
    curves = measure_curves(model, blocks, windows, options, free, Ledger(cache, "curves", identity))
    plan = [_as_it_is(layer) if layer.name in costs.keys() - curves.keys() else layer for layer in plan]
    free = [layer for layer in free if layer.name in curves]
    costs = {layer.name: costs[layer.name] for layer in free}
    _require_room(bits, plan, costs)
    room = _room(bits, plan, costs)
    shared, _, _ = _uniform(setting, costs, [curve.errors for curve in curves.values()], room)
    alike = [planned(old.name, old.rows, old.columns, shared, options) if old.name in costs else old for old in plan]
    look = replace(prepared, plan=alike)
    measured = shared_out(provider, look, list(curves), cache, identity) if provider in SHARED else None
    counts = by_shares(measured, blocks) if measured else sensitivities(provider, look, curves, cache, identity)
    rows = row_sensitivities(prepared, list(curves), cache, identity) if bands > 1 else {}
    layers = [Banded.of(layer, curves[layer.name], rows.get(layer.name), bands) for layer in free]
    inside = max(room - sum(overhead(layer.layer.rows, layer.bands) for layer in layers), 0)
    units = [unit for layer in layers for unit in layer.units(counts[layer.layer.name], options)]
    ties = _ties(layers) if options.budget.tie else ()
    predicted = {unit.name: unit.distortion[unit.settings.index(shared)] for unit in units}
    for number in range(options.budget.passes):
        if number > 0:
            measured = shared_out(provider, look, list(curves), cache, identity)
        if measured:
            units = _revised(units, layers, predicted, measured, blocks, known=number == 0)
        found = allocate(units, inside, ties=ties)
        look = replace(prepared, plan=_settled(plan, layers, found, options))
        predicted = {name: chosen.distortion for name, chosen in found.chosen.items()}
    # Bands take bits that one setting for all rows saves.
    losses = [dict(zip(unit.settings, unit.distortion, strict=True)) for unit in units]
    uniform = Uniform(*_uniform(setting, costs, losses, room))
    return look.plan, replace(found, uniform=uniform if uniform.cost <= room else None)


def _identity(prepared: Prepared) -> dict[str, str]:
    """Return what decides all measurements."""
    options = prepared.options
    found = fingerprint(prepared.model, prepared.blocks, prepared.windows, replace(options, budget=None))
    return {name: value for name, value in found.items() if not name.startswith("options.")} | {
        "device": options.device,
        "precision": options.precision,
        "candidates": ", ".join(map(str, options.setting.candidates())),
    }


def _costs(layer: PlannedLayer, options: Options) -> list[float]:
    """Return the bits of a layer at each candidate; those that it cannot have are beyond any budget."""
    shape = layer.rows, layer.columns
    return [
        _bits(planned(layer.name, *shape, setting, options)) if setting.fits(*shape) else math.inf
        for setting in options.setting.candidates()
    ]


def _as_it_is(layer: Layer) -> Layer:
    log.warning("%s never computes on the calibration text and stays dense", layer.name)
    return Layer(layer.name, layer.rows, layer.columns)


def _room(bits: int, plan: Sequence[Layer], costs: Mapping[str, Sequence[float]]) -> int:
    """Return which of the `bits` of a plan are left for the layers with `costs`."""
    return max(bits - sum(_bits(layer) for layer in plan if layer.name not in costs), 0)


def _require_room(bits: int, plan: Sequence[Layer], costs: Mapping[str, Sequence[float]]) -> None:
    """Refuse a budget that cannot be met, before anything is measured."""
    room, entries = _room(bits, plan, costs), sum(layer.entries for layer in plan if layer.name in costs)
    possible = [[cost for cost in own if cost < math.inf] or [math.inf] for own in costs.values()]
    least, most = (sum(map(pick, possible)) for pick in (min, max))
    if room < least:
        raise ConfigError(
            f"the {len(costs)} layers whose settings are chosen need {least / entries:.3f} bits per weight, the "
            f"smallest size possible, but {room / entries:.3f} are left for them; the largest is {most / entries:.3f}"
        )


def _settled(plan: Sequence[Layer], layers: Sequence[Banded], found: Allocation, options: Options) -> list[Layer]:
    """Return the plan with the settings that an allocation chose."""
    chosen = {layer.layer.name: layer.chosen(found, options) for layer in layers}
    return [chosen.get(old.name, old) for old in plan]


def _revised(
    units: Sequence[Unit],
    layers: Sequence[Banded],
    predicted: Mapping[str, float],
    found: Mapping[str, Share],
    blocks: Blocks,
    *,
    known: bool,
) -> list[Unit]:
    """Return the units with what errors count after a look at a model whose units were `predicted` to cost so much.

    If what layers count is `known` from this look, only the bands are revised.
    """
    names = {layer.layer.name: [layer.unit(band) for band in range(layer.bands)] for layer in layers}
    measured = {layer.layer.name: layer.sums(found[layer.layer.name].rows) for layer in layers}
    expected = {name: [predicted[unit] for unit in own] for name, own in names.items()}
    by_layer = dict.fromkeys(names, 1.0) if known else layer_corrections(measured, expected, blocks)
    factors = {
        unit: by_layer[name] * factor
        for name, own in band_corrections(measured, expected, blocks).items()
        for unit, factor in zip(names[name], own, strict=True)
    }
    return [replace(unit, distortion=[factors[unit.name] * error for error in unit.distortion]) for unit in units]


def _uniform(
    setting: Setting, costs: Mapping[str, Sequence[float]], losses: Sequence[Mapping[Any, float]], room: int
) -> tuple[Setting, int, float]:
    """Return the candidate of least loss that all layers could share within `room` bits, or the smallest.

    With it come its bits and its loss.
    """
    sizes = np.sum(list(costs.values()), axis=0)
    lost = [math.fsum(own.get(candidate, math.inf) for own in losses) for candidate in setting.candidates()]
    fitting = np.flatnonzero(sizes <= room) if sizes.min() <= room else [np.argmin(sizes)]
    best = min(fitting, key=lambda i: lost[i])
    return setting.candidates()[best], int(sizes[best]), float(lost[best])


def _bits(layer: Layer) -> int:
    return round(layer.all_in * layer.entries)


def _ties(layers: Sequence[Banded]) -> list[list[str]]:
    """Return the layers that receive the same inputs, which runtimes multiply as one matrix; band by band."""
    users: dict[tuple[str, int], list[str]] = {}
    for layer in layers:
        for band in range(layer.bands):
            users.setdefault((layer.curve.inputs, band), []).append(layer.unit(band))
    return [names for names in users.values() if len(names) > 1]


def _budget(model: PreTrainedModel, plan: Sequence[Layer], options: Options) -> int:
    """Return the bits that all layers of the plan may take together."""
    assert options.budget is not None  # noqa: S101
    budget = options.budget
    if budget.bits is not None:
        return int(budget.bits * sum(layer.entries for layer in plan))
    assert budget.size is not None  # noqa: S101
    layers = {f"{layer.name}.weight" for layer in plan}
    tensors = {id(t): t for name, t in model.state_dict(keep_vars=True).items() if name not in layers}
    stored = (2 * t.numel() if t.is_meta else as_stored(t.detach()).nbytes for t in tensors.values())
    per_layer = LAYER_OVERHEAD + BAND_OVERHEAD * (budget.bands - 1)
    overhead = per_layer * len(quantized(plan)) + TENSOR_OVERHEAD * len(tensors)
    room = 8 * (budget.size - sum(stored) - overhead)
    if room <= 0:
        raise ConfigError(f"what is not quantized takes more than the {budget.size:,} bytes asked for; ask for more")
    return room
