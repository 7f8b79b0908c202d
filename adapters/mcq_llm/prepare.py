"""Everything that can go wrong before the work starts: loading, planning, and refusing what could not be written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq.errors import ConfigError
from mcq.rate import Allocation
from mcq_llm.allocate import allocated
from mcq_llm.blocks import Blocks, find_blocks
from mcq_llm.config import Options
from mcq_llm.load import load, load_streamed, require_dense
from mcq_llm.plan import Layer, make_plan, plan_table, predict_seconds, quantized, require_aqlm, require_mcq
from mcq_llm.precision import resolve
from mcq_llm.text import spread_windows, text_hash, tokenize
from mcq_llm.world import ALONE, World

log = logging.getLogger("mcq")


@dataclass(frozen=True)
class Prepared:
    """A model that passed every check and can be quantized.

    Attributes
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    blocks : Blocks
        Of `model`.
    plan : list of Layer
    windows : tensor of shape (sequences, window), int64
        Calibration tokens.
    options : Options
        With the precisions that "auto" stands for on this machine.
    text : str
        `text_hash` of the calibration text.
    allocation : mcq.rate.Allocation or None
        How the settings were chosen, if that was asked for.
    spill : Path or None
        Folder for the activations, if they are not to stay in memory.
    world : World
        The processes that share the work; each has prepared the same.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    plan: list[Layer]
    windows: torch.Tensor
    options: Options
    text: str = ""
    allocation: Allocation | None = None
    spill: Path | None = None
    world: World = ALONE


def prepare(
    source: str | Path,
    text: str,
    options: Options,
    *,
    stream: bool = False,
    spill: Path | None = None,
    world: World = ALONE,
    cache: Path | None = None,
) -> Prepared:
    """Load a model and refuse whatever could fail later, before any work is done.

    Parameters
    ----------
    source : str or Path
        See `load`.
    text : str
        To calibrate on.
    options : Options
    stream : bool
        Whether to leave the weights on the disk and read them block by block; see `load_streamed`.
    spill, world
        See `Prepared`.
    cache : Path, optional
        Folder for the measurements that a budget is shared out by.
    """
    if stream and options.tune == "block" and options.tuning.lookahead:
        raise ConfigError(
            "a lookahead needs the blocks behind in memory, but weights are streamed; leave out one of both"
        )
    if stream:
        model, tokenizer, blocks = load_streamed(source)
    else:
        model, tokenizer = load(source)
        require_dense(model)
        blocks = find_blocks(model)
    options = _resolved(options, model.device)
    plan = make_plan(blocks, options)
    windows = spread_windows(tokenize(tokenizer, text), options.tokens // options.window, options.window)
    allocation = None
    if options.budget is not None:
        plan, allocation = world.from_first(lambda: allocated(model, blocks, windows, options, plan, cache))
    for setting in {layer.setting for layer in quantized(plan)}:
        setting.quantizer()  # refuses options that do not go together
    if options.format == "aqlm":
        for warning in require_aqlm(plan, blocks):
            log.warning(warning)
    elif options.format == "mcq":
        require_mcq(plan, blocks)
    return Prepared(model, tokenizer, blocks, plan, windows, options, text_hash(text), allocation, spill, world)


def described(prepared: Prepared) -> str:
    """Return the plan as text, with seconds measured here, and how its settings were chosen."""
    table = plan_table(prepared.plan, predict_seconds(prepared.plan))
    return table if prepared.allocation is None else f"{table}\n\n{prepared.allocation}"


def _resolved(options: Options, device: torch.device) -> Options:
    """Fix what depends on the machine, so that a run that goes on elsewhere is refused if it would differ."""
    tuning = replace(options.tuning, precision=resolve(device, options.tuning.precision))
    return replace(options, precision=resolve(device, options.precision), tuning=tuning)
