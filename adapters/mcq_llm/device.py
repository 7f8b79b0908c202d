"""Where a model computes: the processor, or a GPU, to which one block at a time is moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mcq.errors import ConfigError
from mcq.validate import one_of

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


def resolve_device(name: str) -> str:
    """Return what the name of a device stands for on this machine: "auto" is "cuda" where there is a GPU.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    one_of(name, DEVICES, "device")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU; install a build of torch for CUDA, or take the device cpu")
    return name


def own_device(name: str) -> torch.device:
    """Return the device of this process: those on one machine take its GPUs in turns."""
    if resolve_device(name) == "cpu":
        return CPU
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def device_of(module: nn.Module) -> torch.device:
    """Return where the first parameter of `module` is."""
    return next(module.parameters()).device


@contextmanager
def moved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have `module` on `device` for a while."""
    home = device_of(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
