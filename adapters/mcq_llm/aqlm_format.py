"""The layout of AQLM checkpoints, as stock transformers (4.38 to 5.x) and the package aqlm read it.

A linear layer at path P is stored as

| tensor        | type                              | shape                                     |
|---------------|-----------------------------------|-------------------------------------------|
| `P.codes`     | int8 up to 8 bits, int16 up to 16 | (outputs, groups, codebooks)              |
| `P.codebooks` | float16                           | (codebooks, 2**bits, 1, group)            |
| `P.scales`    | float16                           | (outputs, 1, 1, 1)                        |
| `P.bias`      | float16, if the layer has one     | (outputs,)                                |

and the weight is scale * (sum over codebooks of the chosen entries). Codes are unsigned, stored as two's
complement of their own width: values of 2**(bits-1) and above have 2**bits subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mcq
from mcq.errors import InputError
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.setting import Setting

CODED = ("codes", "codebooks", "scales")  # the tensors that stand for a weight


def quantization_config(setting: AdditiveSetting, skipped: list[str]) -> dict[str, Any]:
    """Return the entry ``quantization_config`` of config.json.

    Parameters
    ----------
    setting : AdditiveSetting
        The one setting of all quantized layers.
    skipped : list of str
        Paths of all linear layers that are not quantized.
    """
    return {
        "quant_method": "aqlm",
        "num_codebooks": setting.codebooks,
        "nbits_per_codebook": setting.bits,
        "in_group_size": setting.group,
        "out_group_size": 1,
        # transformers 4 compares these with parameter names, transformers 5 with module names.
        "linear_weights_not_to_quantize": [entry for name in skipped for entry in (name, f"{name}.weight")],
    }


def cost(setting: AdditiveSetting, rows: int, columns: int) -> mcq.Bits:
    """Return the bits per weight of a layer: each code takes one or two whole bytes, and every row has a scale."""
    codes = setting.codebooks * setting.groups(columns)
    codebooks = 16 * setting.codebooks * 2**setting.bits * setting.group
    all_in = rows * (8 * codes * -(-setting.bits // 8) + 16) + codebooks
    return mcq.Bits(codes * setting.bits / columns, all_in / (rows * columns))


@dataclass(frozen=True)
class AqlmLayer:
    """The codes of a layer with everything needed to decode them, at the precision in which they are written.

    Attributes
    ----------
    setting : AdditiveSetting
    inputs : int
        Columns of the weight; the last group of a row may reach beyond.
    codes : array of shape (outputs, groups, codebooks), uint16
    codebooks : array of shape (codebooks, 2**bits, group), float16
    scales : array of shape (outputs, 1) or (outputs, groups), float16
    """

    setting: AdditiveSetting
    inputs: int
    codes: NDArray[np.uint16]
    codebooks: NDArray[np.float16]
    scales: NDArray[np.float16]

    @classmethod
    def of(cls, setting: Setting, quantizer: mcq.Quantizer, codes: mcq.Codes) -> AqlmLayer:
        """Take over what a quantizer found; its overall gain, a power of two, moves into the scales."""
        if not isinstance(quantizer, mcq.AdditiveQuantizer):
            raise InputError(f"an AQLM layer must have additive codes, got {quantizer.kind} ones")
        outputs, inputs = codes.shape
        scales = np.ones((outputs, 1), np.float32) if codes.scales is None else codes.scales.astype(np.float32)
        return cls(
            _additive(setting),
            inputs,
            codes.unpack(),
            quantizer.codebooks,
            (scales * quantizer.gain).astype(np.float16),
        )

    @classmethod
    def of_tensors(cls, setting: Setting, inputs: int, tensors: Mapping[str, torch.Tensor]) -> AqlmLayer:
        """Return the layer that `tensors` returned the tensors of."""
        entries = 1 << _additive(setting).bits
        return cls(
            _additive(setting),
            inputs,
            (tensors["codes"].numpy().astype(np.int32) % entries).astype(np.uint16),
            tensors["codebooks"][:, :, 0].numpy(),
            tensors["scales"][:, :, 0, 0].numpy(),
        )

    def weight(self) -> torch.Tensor:
        """Return the weight that the codes stand for: shape (outputs, inputs), float32."""
        codebooks, scales = torch.from_numpy(self.codebooks).float(), torch.from_numpy(self.scales).float()
        return decode(torch.from_numpy(self.codes.astype(np.int64)), codebooks, scales)[:, : self.inputs].contiguous()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the layer in an AQLM checkpoint."""
        bits = self.setting.bits
        signed = self.codes.astype(np.int32)
        signed -= (signed >= 1 << (bits - 1)) * (1 << bits)
        return {
            "codes": torch.from_numpy(signed.astype(np.int8 if bits <= 8 else np.int16)),
            "codebooks": torch.from_numpy(self.codebooks[:, :, None].copy()),
            "scales": torch.from_numpy(self.scales[:, :, None, None].copy()),
        }


def _additive(setting: Setting) -> AdditiveSetting:
    if not isinstance(setting, AdditiveSetting):
        raise InputError(f"an AQLM layer must have additive codes, got {setting}")
    return setting


def decode(codes: torch.Tensor, codebooks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return scale * (sum of the chosen entries), in the order of operations of the loaders."""
    groups = codebooks[0][codes[..., 0]]
    for m in range(1, len(codebooks)):
        groups += codebooks[m][codes[..., m]]
    return (groups * scales[:, :, None]).flatten(1)


def densify(model: nn.Module) -> nn.Module:
    """Replace every AQLM layer by an ordinary one with exactly the weights that its codes stand for.

    A loaded AQLM checkpoint computes row by row on the CPU, and wrongly with more than one thread. This makes
    it fast and safe to evaluate. Call it before the first forward pass, which rearranges the codes.

    Parameters
    ----------
    model : Module
        Changed in place.

    Returns
    -------
    Module
        The same `model`.
    """
    from aqlm import QuantizedLinear

    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            codes = layer.codes.long() % layer.codebook_size
            weight = decode(codes, layer.codebooks[:, :, 0], layer.scales[:, :, 0, 0])
            dense.weight = nn.Parameter(weight, requires_grad=False)
            dense.bias = layer.bias
            model.set_submodule(name, dense)
    return model
