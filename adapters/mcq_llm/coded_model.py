"""A whole model computed from codes, decoded once per step instead of once per call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

from mcq.errors import InputError
from mcq_llm.aqlm_format import CODED, AqlmLayer, densify
from mcq_llm.blocks import find_blocks, set_weight
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.coded_linear import CodedLinear
from mcq_llm.load import load


def load_coded(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, AqlmLayer]]:
    """Load an AQLM checkpoint as codes, and as an ordinary model with the weights that they stand for.

    Returns
    -------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    stored : dict of str to AqlmLayer
        By full name of the layer.
    """
    from aqlm import QuantizedLinear

    model, tokenizer = load(source)
    stored = {name: _stored(layer) for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    if not stored:
        raise InputError(f"{source} must hold AQLM layers, but it has none; give a folder that was written as codes")
    densify(model)
    # Or it would be saved as what it no longer is.
    cast(HfQuantizer, model.hf_quantizer).remove_quantization_config(model)
    return model, tokenizer, stored


class CodedModel:
    """A model whose quantized layers compute with weights that stand in for their codes.

    A layer that decodes on every call does so again for each part of a batch and for each recomputation. Here the
    model keeps ordinary layers. `decode` gives them their weights; the gradients that these then gather are handed
    on to codebooks and scales by `push_gradients`. Each happens once per step.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place: nothing but the weights of the coded layers requires gradients.
    stored : mapping of str to AqlmLayer
        By full name of the layer.
    dtype : torch.dtype
        Of the weights while the model is tuned.

    Attributes
    ----------
    layers : dict of str to CodedLinear
        What the weights are decoded from, without biases: these stay in `model`.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, AqlmLayer], dtype: torch.dtype) -> None:
        self.model = model.requires_grad_(False)
        self.layers = {name: CodedLinear(layer).to(model.device) for name, layer in stored.items()}
        self._set_weights(dtype)
        self.decode()

    @torch.no_grad()
    def decode(self) -> None:
        """Give all coded layers the weights that their codes stand for now."""
        for name, coded in self.layers.items():
            set_weight(self.model.get_submodule(name), coded.weight())

    def push_gradients(self) -> None:
        """Add the gradients of the weights, as far as they go, to those of codebooks and scales; drop the former."""
        for name, coded in self.layers.items():
            layer = self.model.get_submodule(name)
            gradient, layer.weight.grad = layer.weight.grad, None
            if gradient is not None:
                coded.weight().backward((gradient.T if isinstance(layer, Conv1D) else gradient).float())

    @contextmanager
    def recomputing(self, active: bool) -> Iterator[None]:
        """Let each block of the model, if `active`, compute again for its gradients instead of holding activations."""
        blocks = list(find_blocks(self.model).modules) if active else []
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def finish(self) -> dict[str, AqlmLayer]:
        """Leave the model in float32 with exactly the weights that the returned layers stand for."""
        stored = {name: coded.stored() for name, coded in self.layers.items()}
        self._set_weights(torch.float32)
        for name, layer in stored.items():
            set_weight(self.model.get_submodule(name), layer.weight())
        self.model.requires_grad_(False)
        return stored

    def _set_weights(self, dtype: torch.dtype) -> None:
        for name in self.layers:
            layer = self.model.get_submodule(name)
            layer.weight = nn.Parameter(torch.empty_like(layer.get_parameter("weight"), dtype=dtype))


def _stored(layer: Any) -> AqlmLayer:
    """Return what a loaded AQLM layer holds."""
    setting = AdditiveSetting(layer.num_codebooks, layer.nbits_per_codebook, layer.in_group_size)
    tensors = {part: getattr(layer, part).detach() for part in CODED}
    return AqlmLayer.of_tensors(
        setting, layer.in_features, {part: t.half() if t.is_floating_point() else t for part, t in tensors.items()}
    )
