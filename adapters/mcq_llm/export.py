"""Everything of a checkpoint in Hugging Face form but its weights, and whole checkpoints from models in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq_llm import aqlm_format, mcq_format
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.blocks import LINEAR, find_blocks
from mcq_llm.card import Facts, write_card
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.config import Options
from mcq_llm.plan import Layer, planned, quantized


def describe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, quantization: dict[str, Any] | None, folder: Path
) -> None:
    """Write configuration and tokenizer into `folder`.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    quantization : dict or None
        The entry ``quantization_config``; None for an ordinary model.
    folder : Path
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float16"  # as other AQLM checkpoints say
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def finish(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Sequence[Layer],
    file_format: str,
) -> None:
    """Write the shards of a checkpoint all of whose blocks are written, and everything beside them.

    Parameters
    ----------
    checkpoint : Checkpoint
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    plan : sequence of Layer
    file_format : {"aqlm", "mcq", "dense"}
    """
    coded, shards = checkpoint.write_shards()
    quantization = None
    if coded and file_format == "aqlm":
        setting = quantized(plan)[0].setting
        assert isinstance(setting, AdditiveSetting)  # noqa: S101 (see `require_aqlm`)
        dense = [name for name, module in model.named_modules() if isinstance(module, LINEAR) and name not in coded]
        quantization = aqlm_format.quantization_config(setting, dense)
    elif coded:
        quantization = mcq_format.quantization_config(checkpoint.folder, shards)
    describe(model, tokenizer, quantization, checkpoint.folder)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: dict[str, AqlmLayer],
    folder: Path,
    options: Options,
    name: str,
) -> None:
    """Write a model that is in memory, with the layers `stored` as codes and everything else as it is.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    stored : dict of str to AqlmLayer
        By full name of the layer; all with one setting.
    folder : Path
        Empty.
    options : Options
        How the model came about, for its card.
    name : str
        Of the checkpoint, for its card.
    """
    blocks = find_blocks(model)
    plan: list[Layer] = [
        planned(name, layer.codes.shape[0], layer.inputs, layer.setting, options) for name, layer in stored.items()
    ]
    checkpoint = Checkpoint(folder, model, blocks, plan, file_format="aqlm", run={})
    checkpoint.open()
    for index in range(len(blocks.modules)):
        checkpoint.save_block(index, {name: stored[name] for name in blocks.layers(index).keys() & stored.keys()})
    finish(checkpoint, model, tokenizer, plan, "aqlm")
    facts = Facts.of(model, tokenizer, options, name)
    facts.save(folder)
    write_card(folder, facts)
    checkpoint.seal()
