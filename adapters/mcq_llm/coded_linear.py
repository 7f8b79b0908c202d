"""Linear layers computed from their codes, so that gradients reach what can be tuned of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from mcq_llm.aqlm_format import AqlmLayer, decode
from mcq_llm.formats import StoredLayer
from mcq_llm.mcq_format import McqLayer


class CodedLinear(nn.Module):
    """A linear layer that decodes its weight on every call.

    The codes are fixed; everything else about the layer can be tuned. In float32, whatever the stored precision.

    Parameters
    ----------
    stored : AqlmLayer
    bias : tensor of shape (outputs,), or None

    Attributes
    ----------
    codes : tensor of shape (outputs, groups, codebooks), int32
    codebooks : Parameter of shape (codebooks, 2**bits, group)
    scales : Parameter of shape (outputs, 1) or (outputs, groups)
    bias : Parameter of shape (outputs,), or None
    """

    codes: torch.Tensor
    users: torch.Tensor
    starts: torch.Tensor

    def __init__(self, stored: AqlmLayer, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.setting, self.inputs = stored.setting, stored.inputs
        self.register_buffer("codes", torch.from_numpy(stored.codes.astype(np.int32)))
        self.codebooks = nn.Parameter(torch.from_numpy(stored.codebooks.astype(np.float32)))
        self.scales = nn.Parameter(torch.from_numpy(stored.scales.astype(np.float32)))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        users, starts = _users(self.codes, self.codebooks.shape[1])
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    def weight(self) -> torch.Tensor:
        """Return the weight that the codes stand for now: shape (outputs, inputs)."""
        weight: torch.Tensor = _Decode.apply(self.codebooks, self.scales, self.codes, self.users, self.starts)
        return weight[:, : self.inputs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias, computed in the precision of `x`: shape (..., outputs)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight().to(x.dtype), bias)

    @property
    def halves(self) -> list[nn.Parameter]:
        """The parameters that are stored as float16, whatever their values."""
        return [self.codebooks, self.scales]

    def stored(self) -> AqlmLayer:
        """Return the layer as it is written, with codebooks and scales rounded to float16."""
        return AqlmLayer(
            self.setting,
            self.inputs,
            self.codes.cpu().numpy().astype(np.uint16),
            self.codebooks.detach().cpu().half().numpy(),
            self.scales.detach().cpu().half().numpy(),
        )


class ScaledLinear(nn.Module):
    """A linear layer whose codes are fixed as a whole, and whose rows have scales that can be tuned.

    For any codec. In float32, whatever the stored precision.

    Parameters
    ----------
    layer : McqLayer
    bias : tensor of shape (outputs,), or None

    Attributes
    ----------
    decoded : tensor of shape (outputs, inputs)
        What the codes stand for without these scales.
    row_scale : Parameter of shape (outputs,)
    bias : Parameter of shape (outputs,), or None
    """

    decoded: torch.Tensor

    def __init__(self, layer: McqLayer, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        unscaled = dataclasses.replace(layer, row_scale=None).weight()
        scale = np.ones(len(unscaled), np.float32) if layer.row_scale is None else layer.row_scale.astype(np.float32)
        self.register_buffer("decoded", unscaled)
        self.row_scale = nn.Parameter(torch.from_numpy(scale))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + bias, computed in the precision of `x`: shape (..., outputs)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, (self.decoded * self.row_scale[:, None]).to(x.dtype), bias)

    @property
    def halves(self) -> list[nn.Parameter]:
        """The parameters that are stored as float16, whatever their values."""
        return [self.row_scale]


def tunable(stored: StoredLayer, bias: torch.Tensor | None) -> CodedLinear | ScaledLinear:
    """Return a linear layer of fixed codes, and of parameters for as much of the rest as the codec lets be tuned."""
    additive = stored if isinstance(stored, AqlmLayer) else stored.as_additive()
    if additive is not None:
        return CodedLinear(additive, bias)
    assert isinstance(stored, McqLayer)  # noqa: S101 (others are additive)
    return ScaledLinear(stored, bias)


def tuned(stored: StoredLayer, layer: CodedLinear | ScaledLinear) -> StoredLayer:
    """Return `stored` with the parameters of `layer`, which `tunable` made of it, rounded to float16."""
    if isinstance(stored, AqlmLayer):
        assert isinstance(layer, CodedLinear)  # noqa: S101
        return layer.stored()
    if isinstance(layer, CodedLinear):
        return stored.with_additive(layer.stored())
    return dataclasses.replace(stored, row_scale=layer.row_scale.detach().cpu().half().numpy())


class _Decode(torch.autograd.Function):
    """`decode`, with a gradient that is a gather: faster than torch's scatter, and the same in every run on a GPU.

    The backward pass decodes once more instead of keeping a float32 weight per layer alive.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        codebooks: torch.Tensor,
        scales: torch.Tensor,
        codes: torch.Tensor,
        users: torch.Tensor,
        starts: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(codebooks, scales, codes, users, starts)
        return decode(codes, codebooks, scales)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        codebooks, scales, codes, users, starts = ctx.saved_tensors
        per_group = gradient.unflatten(1, (codes.shape[1], -1))
        to_codebooks = to_scales = None
        if ctx.needs_input_grad[0]:
            scaled = (per_group * scales[:, :, None]).flatten(0, 1)
            sums = nn.functional.embedding_bag(users, scaled, starts, mode="sum")
            to_codebooks = sums.view_as(codebooks)
        if ctx.needs_input_grad[1]:
            unscaled = decode(codes, codebooks, torch.ones_like(scales)).view_as(per_group)
            to_scales = (per_group * unscaled).sum(2).sum_to_size(scales.shape)
        return to_codebooks, to_scales, None, None, None


def _users(codes: torch.Tensor, entries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the groups that use each entry, entry by entry, and where in this list those of an entry start."""
    by_codebook = codes.flatten(0, 1).T
    users = by_codebook.argsort(dim=1, stable=True)
    counts = torch.stack([torch.bincount(chosen, minlength=entries) for chosen in by_codebook]).flatten()
    return users.flatten().int(), (counts.cumsum(0) - counts).int()
