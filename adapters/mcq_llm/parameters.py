"""Parameters that are tuned: their steps, and the values that they will have when they are loaded again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from mcq_llm.storage import as_stored

LARGEST = torch.finfo(torch.float16).max
#: Least size that a learning rate refers to; what starts at zero, as biases may, could not move otherwise.
LEAST_SIZE = 1e-3
BETAS = (0.9, 0.95)

State = list[torch.Tensor]


def adam(parameters: Sequence[torch.Tensor], learning_rate: float) -> torch.optim.Adam:
    """Return an optimiser whose learning rate is a fraction of each tensor's root mean square."""
    sizes = [float(parameter.detach().square().mean().sqrt()) for parameter in parameters]
    groups = [
        {"params": [parameter], "lr": learning_rate * max(size, LEAST_SIZE)}
        for parameter, size in zip(parameters, sizes, strict=True)
    ]
    return torch.optim.Adam(groups, betas=BETAS)


@torch.no_grad()
def rounded(parameters: Sequence[torch.Tensor], always_half: Collection[int]) -> State:
    """Return the value that each parameter will have when it is loaded again; float16 if its id is `always_half`."""
    return [(p.clamp(-LARGEST, LARGEST).half() if id(p) in always_half else as_stored(p)).float() for p in parameters]


@torch.no_grad()
def overwrite(parameters: Sequence[torch.Tensor], state: State) -> None:
    """Give every parameter its value in `state`."""
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)
