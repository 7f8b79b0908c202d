"""What a run will do to which layer, its cost in bits and time, and what is refused before it starts."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mcq
from mcq.errors import ConfigError, InputError
from mcq_llm import aqlm_format
from mcq_llm.bands import plain_settings
from mcq_llm.blocks import Blocks, fused_experts, get_weight
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.config import Options
from mcq_llm.overrides import setting_for
from mcq_llm.setting import Setting

log = logging.getLogger("mcq")


@dataclass(frozen=True)
class Layer:
    """A linear layer that stays as it is.

    Attributes
    ----------
    name : str
        Full path in the model.
    rows, columns : int
        Outputs and inputs.
    """

    name: str
    rows: int
    columns: int

    @property
    def entries(self) -> int:
        """Number of weights, which is also the measure of work."""
        return self.rows * self.columns

    @property
    def payload(self) -> float:
        """Bits per weight of what stands for the weights themselves."""
        return 16.0

    @property
    def all_in(self) -> float:
        """Bits per weight of all that is stored."""
        return 16.0


@dataclass(frozen=True)
class PlannedLayer(Layer):
    """A linear layer that will be quantized.

    Attributes
    ----------
    setting : Setting
    cost : mcq.Bits
        Of the layer as it will be written, per weight.
    predicted : float or None
        Relative error that the setting was chosen for, if it was chosen by that.
    importance : array of shape (rows,), or None
        By which rows are put in bands, where these have settings of their own.
    """

    setting: Setting
    cost: mcq.Bits
    predicted: float | None = None
    importance: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def payload(self) -> float:  # noqa: D102
        return self.cost.payload

    @property
    def all_in(self) -> float:  # noqa: D102
        return self.cost.all_in


def planned(name: str, rows: int, columns: int, setting: Setting, options: Options) -> PlannedLayer:
    """Return a layer that will be quantized with `setting`, at the cost that it has in the format of the options."""
    if options.format == "aqlm" and isinstance(setting, AdditiveSetting):
        cost = aqlm_format.cost(setting, rows, columns)
    else:
        cost = setting.cost(rows, columns)
        if options.tune == "block" and not setting.has_scales:  # tuning gives rows scales
            cost = mcq.Bits(cost.payload, cost.all_in + 16 / columns)
    return PlannedLayer(name, rows, columns, setting, cost)


def plan_digest(plan: Sequence[Layer]) -> str:
    """Return the hash of what all layers are coded as, and of the order of their rows."""
    found = hashlib.sha256()
    for layer in plan:
        setting = layer.setting if isinstance(layer, PlannedLayer) else None
        found.update(f"{layer.name} {setting!r}\n".encode())
        if isinstance(layer, PlannedLayer) and layer.importance is not None:
            found.update(layer.importance.astype("<i8").tobytes())
    return found.hexdigest()


def make_plan(blocks: Blocks, options: Options) -> list[Layer]:
    """Return all linear layers of all blocks, those to quantize with their settings; check their weights.

    Raises
    ------
    ConfigError
        If an override matches no layer, or no layer is left to quantize.
    InputError
        If a weight is not finite.
    """
    plan: list[Layer] = []
    for index in range(len(blocks.modules)):
        with blocks.loaded(index) as block:
            plan += [_planned(name, layer, options) for name, layer in blocks.layers(index).items()]
            plan += _strange(block, blocks.prefix(index))
    for override in options.overrides:
        if not any(re.search(override.pattern, layer.name) for layer in plan):
            raise ConfigError(
                f"the override {override.pattern!r} matches no layer; names look like {plan[0].name!r}, see --dry-run"
            )
    if not quantized(plan):
        raise ConfigError("the overrides leave every layer dense; nothing would be quantized")
    return plan


def _planned(name: str, layer: nn.Module, options: Options) -> Layer:
    weight = get_weight(layer)
    _require_finite(weight, name)
    setting = setting_for(name, options.setting, options.overrides)
    rows, columns = weight.shape
    if setting is None:
        return Layer(name, rows, columns)
    return planned(name, rows, columns, setting, options)


def _strange(block: nn.Module, prefix: str) -> list[Layer]:
    """Return what looks like experts, but could not be taken apart."""
    layers = []
    for name in fused_experts(block):
        shape = block.get_parameter(name).shape
        layers.append(Layer(prefix + name, shape[:-1].numel(), shape[-1]))
        log.warning("%s of shape %s stays dense: how it is computed with is not known", prefix + name, tuple(shape))
    return layers


def quantized(plan: Sequence[Layer]) -> list[PlannedLayer]:
    """Return those layers of a plan that will be quantized."""
    return [layer for layer in plan if isinstance(layer, PlannedLayer)]


def _require_finite(weight: torch.Tensor, name: str) -> None:
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise InputError(f"the weights of {name} must be finite, but {bad} are NaN or infinite; get an intact model")


def free_layers(plan: Sequence[Layer], options: Options) -> list[PlannedLayer]:
    """Return the layers whose settings are left to an allocation: without a budget none.

    Raises
    ------
    ConfigError
        If there is a budget, but no such layer.
    """
    if options.budget is None:
        return []
    free = [
        layer
        for layer in quantized(plan)
        if not any(re.search(override.pattern, layer.name) for override in options.overrides)
    ]
    if not free:
        raise ConfigError("the overrides leave no layer whose setting could be chosen; leave out some of them")
    return free


def require_aqlm(plan: Sequence[Layer], blocks: Blocks) -> list[str]:
    """Refuse what an AQLM checkpoint cannot express, and return warnings about what only some loaders run.

    Raises
    ------
    ConfigError
        With the reason; ``format="mcq"`` or ``"dense"`` is the way out.
    """
    layers = quantized(plan)
    settings = {layer.setting for layer in layers}
    modules = dict(blocks.modules.named_modules(prefix=blocks.name))
    named = [layer.name for layer in layers if layer.name in modules]  # all but experts that loading took apart
    foreign = [name for name in named if not isinstance(modules[name], nn.Linear)]
    additive = [layer.setting for layer in layers if type(layer.setting) is AdditiveSetting]
    experts = fused_experts(blocks.modules)
    reasons = []
    if len(additive) < len(layers):
        others = sorted({setting.codec for setting in settings} - {"additive"})
        reasons.append(f"it holds additive codes, not {' or '.join(others)} ones")
    if any(setting.rotate or setting.dtype != "float16" for setting in additive):
        reasons.append("its rows are not rotated, and its codebooks are float16")
    if len(settings) > 1:
        reasons.append(f"it has one setting for the whole model, got {', '.join(sorted(map(str, settings)))}")
    if any(setting.scale == "group" for setting in additive):
        reasons.append("it has one scale per row, not per group")
    if foreign:
        kind = type(modules[foreign[0]]).__name__
        reasons.append(f"it holds torch.nn.Linear layers only, {foreign[0]} is a {kind}")
    uneven = [
        (layer, setting.group)
        for layer, setting in zip(layers, additive, strict=False)
        if layer.columns % setting.group
    ]
    if uneven:
        (layer, group), *_ = uneven
        reasons.append(f"{layer.name} has {layer.columns} inputs, which groups of {group} do not divide")
    if experts:
        reasons.append(f"{blocks.name}.{experts[0]} holds all experts in one tensor, which no loader replaces")
    if reasons:
        raise ConfigError(
            f"an AQLM checkpoint cannot express this: {'; '.join(reasons)}. Add --format mcq to write codes in a "
            f"format that can, or --dense to write weights"
        )
    return _loader_limits(layers, additive[0])


def require_mcq(plan: Sequence[Layer], blocks: Blocks) -> None:
    """Refuse what mcq's own format cannot express.

    Raises
    ------
    ConfigError
        If a layer to quantize is an expert inside of a tensor that holds all of them.
    """
    modules = dict(blocks.modules.named_modules(prefix=blocks.name))
    inside = [layer.name for layer in quantized(plan) if layer.name not in modules]
    if inside:
        raise ConfigError(
            f"a checkpoint of mcq holds linear layers, but {inside[0]} is a part of one tensor with all experts; leave "
            f"them alone by --override 'experts=dense', or add --dense to write weights"
        )


def _loader_limits(layers: list[PlannedLayer], setting: AdditiveSetting) -> list[str]:
    step = 8 * setting.group  # CUDA kernels read the codes of 8 groups at once
    odd = [layer.name for layer in layers if layer.columns % step]
    warnings = []
    if odd:
        warnings.append(
            f"the CUDA kernels of aqlm need inputs divisible by {step}, {len(odd)} layers have others ({odd[0]}, ...)"
        )
    if setting.bits not in (8, 16):
        warnings.append(f"aqlm has no fast kernel for codes of {setting.bits} bits, only for 8 and 16")
    return warnings


def predict_seconds(plan: Sequence[Layer], rows: int = 256, columns: int = 256) -> dict[str, float]:
    """Predict the seconds that quantizing each layer takes here, from one timed random matrix per setting.

    Work is proportional to the number of weights, so the sample is scaled by it. Calibration is not included.

    Returns
    -------
    dict of str to float
        Seconds by layer name.
    """
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, columns), dtype=np.float32)
    metric = mcq.Gram(np.cov(rng.standard_normal((columns, 4 * columns))))
    per_entry = {}
    for setting in {part for layer in quantized(plan) for part in plain_settings(layer.setting)}:
        start = time.perf_counter()
        setting.quantizer().fit_encode(weight, metric=metric, seed=0)
        per_entry[setting] = (time.perf_counter() - start) / weight.size
    return {
        layer.name: float(np.mean([per_entry[part] for part in plain_settings(layer.setting)])) * layer.entries
        for layer in quantized(plan)
    }


def mean_bits(plan: Sequence[Layer]) -> tuple[float, float]:
    """Return payload and all-in bits per weight over all layers of the plan."""
    entries = sum(layer.entries for layer in plan)
    payload = sum(layer.payload * layer.entries for layer in plan)
    return payload / entries, sum(layer.all_in * layer.entries for layer in plan) / entries


def plan_table(plan: Sequence[Layer], seconds: dict[str, float]) -> str:
    """Return the plan as text: one line per layer, with what it takes when it is coded, and a total."""
    width = max(len(layer.name) for layer in plan)
    settings = [str(layer.setting) if isinstance(layer, PlannedLayer) else "dense" for layer in plan]
    wide = max(16, *map(len, settings))
    lines = [f"{'layer':{width}}  {'shape':>13}  {'setting':>{wide}}  payload   all-in        MB    error  seconds"]
    for layer, setting in zip(plan, settings, strict=True):
        shape = f"{layer.rows}x{layer.columns}"
        predicted = layer.predicted if isinstance(layer, PlannedLayer) else 0.0
        error = "unknown" if predicted is None else f"{predicted:7.4f}"
        cost = f"{layer.payload:7.3f}  {layer.all_in:7.3f}  {_megabytes([layer]):8.3f}"
        cost += f"  {error}  {seconds.get(layer.name, 0.0):7.1f}"
        lines.append(f"{layer.name:{width}}  {shape:>13}  {setting:>{wide}}  {cost}")
    payload, all_in = mean_bits(plan)
    total = f"{len(plan)} layers, {sum(layer.entries for layer in plan):,} weights"
    cost = f"{payload:7.3f}  {all_in:7.3f}  {_megabytes(plan):8.3f}"
    lines.append(f"{total:{width + wide + 17}}  {cost}  {'':7}  {sum(seconds.values()):7.1f}")
    return "\n".join(lines)


def _megabytes(plan: Sequence[Layer]) -> float:
    return sum(layer.all_in * layer.entries for layer in plan) / 8e6
