"""How much memory this process takes, and how to keep it from taking more than it needs."""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
import tempfile
from pathlib import Path

import torch


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far, in MB (10**6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def return_freed_memory(size: int = 2 << 20) -> None:
    """Make glibc hand blocks of `size` bytes and more back to the system as soon as they are freed.

    Left alone, it raises that limit to the largest block freed so far (up to 32 MB), keeps activations in the heap of
    every thread, and lets it fragment to several times what is in use. A smaller size saves more, and costs time. For
    programs to call at their start; a no-op where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_mmap_threshold = -3  # of malloc.h
        mallopt(m_mmap_threshold, size)


def apart(tensor: torch.Tensor, folder: Path | None) -> torch.Tensor:
    """Return a copy of `tensor` outside of the heap, for what lives long: there it would fragment what is freed.

    With a `folder` it is in a nameless file there, of which the system keeps in memory what there is room for.
    """
    size = max(tensor.nbytes, 1)
    if folder is None:
        mapped = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)[: tensor.nbytes].view(tensor.dtype)
    else:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.truncate(size)
            mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape).copy_(tensor)
