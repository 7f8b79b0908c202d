"""How results reach the disk: in float16, and complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mcq.errors import InputError


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is written: float16, or float32 if a value is too large; integers unchanged."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor.float()


@torch.no_grad()
def round_to_stored(model: nn.Module) -> None:
    """Give every parameter the value that it will have when it is loaded again."""
    for parameter in model.parameters():
        parameter.copy_(as_stored(parameter))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Provide a temporary folder that takes the name `path` when all goes well, and vanishes otherwise.

    Raises
    ------
    InputError
        At once, if `path` exists and is not an empty folder, or if nothing can be written beside it.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"the output folder {path} must not exist or be empty; name another one or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}; choose another output folder") from None
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
