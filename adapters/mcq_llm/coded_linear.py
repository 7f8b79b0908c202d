"""A linear layer computed from its codes, so that gradients reach codebooks and scales."""

from __future__ import annotations

from typing import Any

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
    codes : tensor of shape (outputs, groups, codebooks), int32
    codebooks : Parameter of shape (codebooks, 2**bits, group)
    scales : Parameter of shape (outputs, 1) or (outputs, groups)
    bias : Parameter of shape (outputs,), or None
    """

    codes: torch.Tensor
    users: torch.Tensor
    starts: torch.Tensor

    def __init__(self, stored: StoredLayer, bias: torch.Tensor | None = None) -> None:
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

    def stored(self) -> StoredLayer:
        """Return the layer as it is written, with codebooks and scales rounded to float16."""
        return StoredLayer(
            self.setting,
            self.inputs,
            self.codes.cpu().numpy().astype(np.uint16),
            self.codebooks.detach().cpu().half().numpy(),
            self.scales.detach().cpu().half().numpy(),
        )


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
