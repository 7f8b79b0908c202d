"""Models and tokenizers from a Hugging Face id, a folder or a GGUF file; always on the CPU in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mcq.errors import FormatError, InputError
from mcq_llm import mcq_format
from mcq_llm.aqlm_format import densify
from mcq_llm.blocks import Blocks, find_blocks
from mcq_llm.shards import Shards, empty_model


def load(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    source : str or Path
        A folder that `save_pretrained` wrote, a .gguf file, or the id of a model on the Hugging Face hub.

    Returns
    -------
    model : PreTrainedModel
        In evaluation mode, float32. GGUF weights are dequantized, and so are layers in mcq's own format; AQLM layers
        stay as they are.
    tokenizer : PreTrainedTokenizerBase
    """
    name, arguments = _locate(source)
    if _method(Path(name)) == mcq_format.METHOD:
        return _load_mcq(Path(name))
    tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    if "gguf_file" in arguments:
        # Without dequantize=True the model counts as quantized and cannot be saved.
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **arguments)
    return model.eval(), tokenizer


def _load_mcq(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint in mcq's own format, with its layers decoded."""
    mcq_format.verify(folder, json.loads((folder / "config.json").read_text())["quantization_config"])
    model = empty_model(folder)
    Shards(folder, model).load_model(model)
    return model, AutoTokenizer.from_pretrained(folder)


def load_streamed(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Blocks]:
    """Load a model whose blocks stay on the disk until they are used.

    Parameters
    ----------
    source : str or Path
        A folder with safetensors files.

    Returns
    -------
    model : PreTrainedModel
        As of `load`, but the parameters of its blocks are empty.
    tokenizer : PreTrainedTokenizerBase
    blocks : Blocks
        Its blocks, with `Blocks.loaded` to fill them.
    """
    name, _ = _locate(source)
    if not Path(name).is_dir() or Path(source).suffix == ".gguf":
        raise InputError(f"a model can be read block by block from a folder with safetensors only, got {source}")
    _refuse(_method(Path(name)))
    model = empty_model(Path(name))
    shards = Shards(Path(name), model)
    blocks = find_blocks(model, shards)
    shards.load_model(model, without=blocks.name)
    return model, AutoTokenizer.from_pretrained(name), blocks


def load_dense(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model as `load` does, with AQLM layers replaced by the weights that they stand for."""
    model, tokenizer = load(source)
    if _method_of(model) == "aqlm":
        densify(model)
    return model, tokenizer


def require_dense(model: PreTrainedModel) -> None:
    """Refuse a model that is quantized already."""
    _refuse(_method_of(model))


def _refuse(method: str | None) -> None:
    if method is not None:
        raise InputError(f"the model is quantized already ({method}); quantize the original, unquantized model instead")


def _method_of(model: PreTrainedModel) -> str | None:
    """Return how a loaded model is, or was, quantized."""
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if config is not None:
        return str(getattr(config.quant_method, "value", config.quant_method))
    found = getattr(model.config, "quantization_config", None)
    return str(found["quant_method"]) if isinstance(found, dict) else None


def _method(folder: Path) -> str | None:
    """Return how the model in a folder is quantized."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise FormatError(f"{path} must be JSON, but: {error}; get an intact checkpoint") from None
    found = config.get("quantization_config")
    return None if found is None else str(found.get("quant_method"))


def _locate(source: str | Path) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {path}; check the path")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"the folder {path} holds no config.json, so it is no model; give the folder of a checkpoint")
    if not path.is_dir() and _looks_like_a_path(str(source)):
        raise InputError(f"there is no folder {path}; give a folder, a .gguf file, or a Hugging Face id (owner/name)")
    return str(source), {}


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1
