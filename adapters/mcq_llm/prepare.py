"""Everything that can go wrong before the work starts: loading, planning, and refusing what could not be written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mcq.errors import ConfigError
from mcq_llm.allocate import allocated
from mcq_llm.blocks import find_blocks
from mcq_llm.config import SHARED, Options
from mcq_llm.device import own_device
from mcq_llm.load import load, load_streamed, require_dense
from mcq_llm.plan import free_layers, make_plan, plan_table, predict_seconds, quantized, require_aqlm, require_mcq
from mcq_llm.precision import resolve
from mcq_llm.prepared import Prepared
from mcq_llm.sensitivity import SHARED_TEXT
from mcq_llm.text import spread_windows, text_hash, tokenize, unseen_windows
from mcq_llm.world import ALONE, World

log = logging.getLogger("mcq")


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
    options = _resolved(options)
    blocks = replace(blocks, device=own_device(options.device))
    plan = make_plan(blocks, options)
    tokens, count = tokenize(tokenizer, text), options.tokens // options.window
    windows, unseen = spread_windows(tokens, count, options.window), None
    if options.budget is not None and options.budget.sensitivity in SHARED:
        sequences, length = SHARED_TEXT
        unseen = unseen_windows(tokens, count, options.window, sequences, min(length, options.window))
    prepared = Prepared(
        model, tokenizer, blocks, plan, windows, options, text_hash(text), unseen, spill=spill, world=world
    )
    _require_writable(prepared)
    if options.budget is not None:
        plan, allocation = world.from_first(lambda: allocated(prepared, cache))
        prepared = replace(prepared, plan=plan, allocation=allocation)
    return prepared


def _require_writable(prepared: Prepared) -> None:
    """Refuse what has no quantizer, or cannot be written."""
    plan, options = quantized(prepared.plan), prepared.options
    free = {layer.name for layer in free_layers(plan, options)}  # their settings are yet to be chosen
    for setting in {layer.setting for layer in plan if layer.name not in free}:
        setting.quantizer()
    if options.format == "aqlm":
        for warning in require_aqlm(plan, prepared.blocks):
            log.warning(warning)
    elif options.format == "mcq":
        require_mcq(plan, prepared.blocks)


def described(prepared: Prepared) -> str:
    """Return the plan as text, with seconds measured here, and how its settings were chosen."""
    table = plan_table(prepared.plan, predict_seconds(prepared.plan))
    return table if prepared.allocation is None else f"{table}\n\n{prepared.allocation}"


def _resolved(options: Options) -> Options:
    """Fix what depends on the machine, so that a run that goes on elsewhere is refused if it would differ."""
    device = own_device(options.device)
    tuning = replace(options.tuning, precision=resolve(device, options.tuning.precision))
    return replace(options, device=device.type, precision=resolve(device, options.precision), tuning=tuning)
