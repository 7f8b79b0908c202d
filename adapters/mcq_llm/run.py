"""A whole run: from the name of a model to a finished checkpoint folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq_llm.blocks import find_blocks
from mcq_llm.config import Options
from mcq_llm.export import export
from mcq_llm.load import load, require_dense
from mcq_llm.plan import Layer, make_plan, require_aqlm
from mcq_llm.quantize import quantize
from mcq_llm.storage import new_folder
from mcq_llm.text import spread_windows, tokenize

log = logging.getLogger("mcq")


@dataclass(frozen=True)
class Prepared:
    """A model that passed every check and can be quantized.

    Attributes
    ----------
    plan : list of Layer
    windows : tensor of shape (sequences, window), int64
        Calibration tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: list[Layer]
    windows: torch.Tensor
    options: Options


def prepare(source: str | Path, text: str, options: Options) -> Prepared:
    """Load a model and refuse whatever could fail later, before any work is done."""
    model, tokenizer = load(source)
    require_dense(model)
    blocks = find_blocks(model)
    plan = make_plan(blocks, options)
    if not options.dense:
        for warning in require_aqlm(plan, blocks):
            log.warning(warning)
    windows = spread_windows(tokenize(tokenizer, text), options.tokens // options.window, options.window)
    return Prepared(model, tokenizer, plan, windows, options)


def run(source: str | Path, text: str, options: Options, out: Path) -> None:
    """Quantize a model and write it to the folder `out`, completely or not at all."""
    with new_folder(out) as folder:
        write(prepare(source, text, options), folder, name=Path(out).name)


def write(prepared: Prepared, folder: Path, name: str) -> None:
    """Quantize a prepared model in place, and write a checkpoint called `name` into `folder`."""
    with open(folder / "quantize.jsonl", "w", encoding="utf-8") as lines:
        stored = quantize(
            prepared.model,
            prepared.plan,
            prepared.windows,
            prepared.options,
            report=lambda line: print(line.to_json(), file=lines, flush=True),
        )
    export(prepared.model, prepared.tokenizer, stored, folder, prepared.options, name)
