"""A linear layer computed from its codes, so that gradients reach codebooks and scales."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mcq_llm.aqlm_format import StoredLayer, decode


class CodedLinear(nn.Module):
    """A linear layer that decodes its weight on every call.

    The codes are fixed; everything else about the layer can be tuned. In float32, whatever the stored precision.

    Parameters
    ----------
    stored : StoredLayer
    bias : tensor of shape (outputs,), or None

    Attributes
    ----------
    codes : tensor of shape (outputs, groups, codebooks), int64
    codebooks : Parameter of shape (codebooks, 2**bits, group)
    scales : Parameter of shape (outputs, 1) or (outputs, groups)
    bias : Parameter of shape (outputs,), or None
    """

    codes: torch.Tensor

    def __init__(self, stored: StoredLayer, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.setting, self.inputs = stored.setting, stored.inputs
        self.register_buffer("codes", torch.from_numpy(stored.codes.astype(np.int64)))
        self.codebooks = nn.Parameter(torch.from_numpy(stored.codebooks.astype(np.float32)))
        self.scales = nn.Parameter(torch.from_numpy(stored.scales.astype(np.float32)))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    def weight(self) -> torch.Tensor:
        """Return the weight that the codes stand for now: shape (outputs, inputs)."""
        return decode(self.codes, self.codebooks, self.scales)[:, : self.inputs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias, computed in the precision of `x`: shape (..., outputs)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight().to(x.dtype), bias)

    def stored(self) -> StoredLayer:
        """Return the layer as it is written, with codebooks and scales rounded to float16."""
        return StoredLayer(
            self.setting,
            self.inputs,
            self.codes.cpu().numpy().astype(np.uint16),
            self.codebooks.detach().cpu().half().numpy(),
            self.scales.detach().cpu().half().numpy(),
        )
