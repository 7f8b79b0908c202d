"""Everything of a checkpoint in Hugging Face form but its weights, and whole checkpoints from models in memory."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq_llm.aqlm_format import StoredLayer, quantization_config
from mcq_llm.blocks import LINEAR, find_blocks
from mcq_llm.card import Facts, write_card
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.config import Options
from mcq_llm.plan import Layer, PlannedLayer
from mcq_llm.setting import Setting


def describe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, setting: Setting, coded: list[str], folder: Path
) -> None:
    """Write configuration and tokenizer into `folder`.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    setting : Setting
        Of the layers that are stored as codes.
    coded : list of str
        These layers; if there are none, it is the configuration of an ordinary model.
    folder : Path
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float16"  # as other AQLM checkpoints say
    if coded:
        dense = [name for name, module in model.named_modules() if isinstance(module, LINEAR) and name not in coded]
        config["quantization_config"] = quantization_config(setting, dense)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: dict[str, StoredLayer],
    folder: Path,
    options: Options,
    name: str,
) -> None:
    """Write a model that is in memory, with the layers `stored` as codes and everything else as it is.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    stored : dict of str to StoredLayer
        By full name of the layer; all with one setting.
    folder : Path
        Empty.
    options : Options
        How the model came about, for its card.
    name : str
        Of the checkpoint, for its card.
    """
    blocks, setting = find_blocks(model), next(iter(stored.values())).setting
    plan: list[Layer] = [
        PlannedLayer(name, layer.codes.shape[0], layer.inputs, layer.setting, whole_bytes=True)
        for name, layer in stored.items()
    ]
    checkpoint = Checkpoint(folder, model, blocks, plan, dense=False, run={})
    checkpoint.open()
    for index in range(len(blocks.modules)):
        checkpoint.save_block(index, {name: stored[name] for name in blocks.layers(index).keys() & stored.keys()})
    describe(model, tokenizer, setting, checkpoint.write_shards(), folder)
    facts = Facts.of(model, tokenizer, options, name)
    facts.save(folder)
    write_card(folder, facts)
    checkpoint.seal()
