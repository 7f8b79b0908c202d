"""What a run will do to which layer, what it will cost in bits and time, and what must be refused before it starts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

import mcq
import numpy as np
import torch
from mcq.errors import ConfigError, InputError
from torch import nn

from mcq_llm.blocks import Blocks, fused_experts, get_weight
from mcq_llm.config import Options, Setting, setting_for


@dataclass(frozen=True)
class PlannedLayer:
    """One linear layer and its setting; None leaves it dense.

    Attributes
    ----------
    name : str
        Full path in the model.
    rows, columns : int
        Outputs and inputs.
    setting : Setting or None
    aqlm : bool
        Whether codes are stored as an AQLM checkpoint does it, in whole bytes, or packed.
    """

    name: str
    rows: int
    columns: int
    setting: Setting | None
    aqlm: bool = False

    @property
    def entries(self) -> int:
        """Number of weights, which is also the measure of work."""
        return self.rows * self.columns

    @property
    def payload(self) -> float:
        """Bits per weight of the codes alone (of float16 weights if dense)."""
        if self.setting is None:
            return 16.0
        return self._codes_per_row * self.setting.bits / self.columns

    @property
    def all_in(self) -> float:
        """Bits per weight of codes as stored, codebooks and scales (of float16 weights if dense)."""
        if self.setting is None:
            return 16.0
        s = self.setting
        width = 8 * -(-s.bits // 8) if self.aqlm else s.bits
        codes = self.rows * 8 * -(-self._codes_per_row * width // 8)
        codebooks = 16 * s.codebooks * 2**s.bits * s.group
        scales = 16 * self.rows * {"none": 0, "row": 1, "group": self._groups}[s.scale]
        return (codes + codebooks + scales) / self.entries

    @property
    def _groups(self) -> int:
        return -(-self.columns // self.setting.group)

    @property
    def _codes_per_row(self) -> int:
        return self.setting.codebooks * self._groups


def make_plan(blocks: Blocks, options: Options) -> list[PlannedLayer]:
    """Return all linear layers of all blocks with their settings, and check their weights.

    Raises
    ------
    ConfigError
        If an override matches no layer.
    InputError
        If a weight is not finite.
    """
    plan = []
    for index in range(len(blocks.modules)):
        for name, layer in blocks.layers(index).items():
            weight = get_weight(layer)
            _require_finite(weight, name)
            setting = setting_for(name, options.setting, options.overrides)
            plan.append(PlannedLayer(name, *weight.shape, setting, aqlm=not options.dense))
    for override in options.overrides:
        if not any(re.search(override.pattern, layer.name) for layer in plan):
            raise ConfigError(
                f"the override {override.pattern!r} matches no layer; names look like {plan[0].name!r}, see --dry-run"
            )
    if all(layer.setting is None for layer in plan):
        raise ConfigError("the overrides leave every layer dense; nothing would be quantized")
    return plan


def _require_finite(weight: torch.Tensor, name: str) -> None:
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise InputError(f"the weights of {name} must be finite, but {bad} are NaN or infinite; get an intact model")


def require_aqlm(plan: Iterable[PlannedLayer], blocks: Blocks) -> list[str]:
    """Refuse what an AQLM checkpoint cannot express, and return warnings about what only some loaders run.

    Raises
    ------
    ConfigError
        With the reason; ``dense=True`` (``--dense``) is the way out.
    """
    quantized = [layer for layer in plan if layer.setting is not None]
    settings = {layer.setting for layer in quantized}
    modules = dict(blocks.modules.named_modules(prefix=blocks.name))
    reasons = []
    if len(settings) > 1:
        reasons.append(f"it has one setting for the whole model, here are {', '.join(sorted(map(str, settings)))}")
    if any(setting.scale == "group" for setting in settings):
        reasons.append("it has one scale per row, not per group")
    reasons += [f"it holds torch.nn.Linear layers only, {layer.name} is a {type(modules[layer.name]).__name__}"
                for layer in quantized if not isinstance(modules[layer.name], nn.Linear)][:1]
    reasons += [f"{layer.name} has {layer.columns} inputs, which groups of {layer.setting.group} do not divide"
                for layer in quantized if layer.columns % layer.setting.group][:1]
    experts = fused_experts(blocks.modules)
    if experts:
        reasons.append(f"{blocks.name}.{experts[0]} holds all experts in one tensor, which no loader replaces")
    if reasons:
        raise ConfigError(f"an AQLM checkpoint cannot express this: {'; '.join(reasons)}. Add --dense to write weights")
    return _loader_limits(quantized, settings.pop())


def _loader_limits(quantized: list[PlannedLayer], setting: Setting) -> list[str]:
    warnings = []
    step = 8 * setting.group  # CUDA kernels read the codes of 8 groups at once
    odd = [layer.name for layer in quantized if layer.columns % step]
    if odd:
        warnings.append(f"{len(odd)} layers ({odd[0]}, ...) have inputs not divisible by {step}: aqlm's CUDA kernels need it")
    if setting.bits not in (8, 16):
        warnings.append(f"aqlm has no fast kernel for codes of {setting.bits} bits, only for 8 and 16")
    return warnings


def predict_seconds(plan: Iterable[PlannedLayer], rows: int = 256, columns: int = 256) -> dict[str, float]:
    """Predict the seconds that each layer takes on this machine, from one timed random matrix per setting.

    Work is proportional to the number of weights, so the sample is scaled by it. Calibration is not included.

    Returns
    -------
    dict of str to float
        Seconds by layer name; 0 for dense layers.
    """
    per_entry: dict[Setting, float] = {}
    rng = np.random.default_rng(0)
    for setting in {layer.setting for layer in plan} - {None}:
        weight = rng.standard_normal((rows, columns), dtype=np.float32)
        metric = mcq.Gram(np.cov(rng.standard_normal((columns, 4 * columns))))
        start = time.perf_counter()
        quantizer(setting).fit_encode(weight, metric=metric, seed=0)
        per_entry[setting] = (time.perf_counter() - start) / weight.size
    return {layer.name: per_entry.get(layer.setting, 0.0) * layer.entries for layer in plan}


def quantizer(setting: Setting) -> mcq.AdditiveQuantizer:
    """Return the unfitted quantizer of a setting."""
    return mcq.AdditiveQuantizer(
        num_codebooks=setting.codebooks, codebook_bits=setting.bits, group_size=setting.group, scale=setting.scale
    )


def mean_bits(plan: Iterable[PlannedLayer]) -> tuple[float, float]:
    """Return payload and all-in bits per weight over all layers of the plan."""
    plan = list(plan)
    entries = sum(layer.entries for layer in plan)
    payload = sum(layer.payload * layer.entries for layer in plan)
    return payload / entries, sum(layer.all_in * layer.entries for layer in plan) / entries


def plan_table(plan: Iterable[PlannedLayer], seconds: dict[str, float]) -> str:
    """Return the plan as text, one line per layer and a total."""
    plan = list(plan)
    width = max(len(layer.name) for layer in plan)
    lines = [f"{'layer':{width}}  {'shape':>13}  {'setting':>14}  payload  all-in  seconds"]
    for layer in plan:
        lines.append(
            f"{layer.name:{width}}  {f'{layer.rows}x{layer.columns}':>13}  {str(layer.setting or 'dense'):>14}  "
            f"{layer.payload:7.3f} {layer.all_in:7.3f}  {seconds[layer.name]:7.1f}"
        )
    entries = sum(layer.entries for layer in plan)
    payload, all_in = mean_bits(plan)
    lines.append(
        f"{f'{len(plan)} layers, {entries:,} weights':{width}}  {'':13}  {'':14}  "
        f"{payload:7.3f} {all_in:7.3f}  {sum(seconds.values()):7.1f}"
    )
    return "\n".join(lines)
