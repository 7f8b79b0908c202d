"""Checkpoints in Hugging Face form: AQLM codes that stock transformers loads, or ordinary weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mcq_llm.aqlm_format import StoredLayer, quantization_config
from mcq_llm.blocks import LINEAR
from mcq_llm.card import Facts, write_card
from mcq_llm.config import Options
from mcq_llm.plan import quantized
from mcq_llm.prepare import Prepared
from mcq_llm.storage import as_stored


def describe(prepared: Prepared, coded: list[str], folder: Path, name: str) -> None:
    """Write everything of a checkpoint called `name` but its weights into `folder`.

    Parameters
    ----------
    prepared : Prepared
    coded : list of str
        The layers that are stored as codes.
    folder : Path
    name : str
    """
    model, tokenizer, options = prepared.model, prepared.tokenizer, prepared.options
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    skipped = [name for name, module in model.named_modules() if isinstance(module, LINEAR) and name not in coded]
    setting = next(layer.setting for layer in quantized(prepared.plan))
    _edit_config(folder / "config.json", quantization_config(setting, skipped) if coded else None)
    Facts.of(model, tokenizer, options, name, prepared.text).save(folder)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: dict[str, StoredLayer],
    folder: Path,
    options: Options,
    name: str,
) -> None:
    """Write model, tokenizer and a short card into `folder`.

    Parameters
    ----------
    model : PreTrainedModel
        As `quantize` left it.
    tokenizer : PreTrainedTokenizerBase
    stored : dict of str to StoredLayer
        The quantized layers; written as codes unless ``options.dense``.
    folder : Path
    options : Options
    name : str
        Of the checkpoint, for its card.

    Notes
    -----
    All other tensors are written as float16, or as float32 if a value is beyond float16. The config says
    float16, as other AQLM checkpoints do.
    """
    codes = {} if options.dense else stored
    model.save_pretrained(folder, state_dict=_tensors(model, codes))
    tokenizer.save_pretrained(folder)
    setting = next(iter(stored.values())).setting
    _edit_config(folder / "config.json", quantization_config(setting, _kept_dense(model, codes)) if codes else None)
    facts = Facts.of(model, tokenizer, options, name)
    facts.save(folder)
    write_card(folder, facts)


def _tensors(model: nn.Module, codes: dict[str, StoredLayer]) -> dict[str, torch.Tensor]:
    """Return what the checkpoint holds, by name."""
    converted: dict[int, torch.Tensor] = {}  # so that tied weights stay one tensor, as save_pretrained expects
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        if path in codes and kind == "weight":
            tensors |= {f"{path}.{part}": value for part, value in codes[path].tensors().items()}
        else:
            tensors[name] = converted.setdefault(tensor.data_ptr(), as_stored(tensor))
    return tensors


def _kept_dense(model: nn.Module, codes: dict[str, StoredLayer]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LINEAR) and name not in codes]


def _edit_config(path: Path, quantization: dict[str, Any] | None) -> None:
    config = json.loads(path.read_text())
    config["dtype"] = "float16"
    if quantization:
        config["quantization_config"] = quantization
    path.write_text(json.dumps(config, indent=2) + "\n")
