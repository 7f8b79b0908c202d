"""In which type matrix products are computed."""

from __future__ import annotations

import torch

from mcq.validate import one_of

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve(device: torch.device, precision: str) -> str:
    """Return what a precision stands for on `device`: "auto" is bfloat16 where it computes in it natively."""
    one_of(precision, PRECISIONS, "precision")
    if precision != "auto":
        return precision
    return "bfloat16" if _native_bfloat16(device) else "float32"


def compute_type(device: torch.device, precision: str) -> torch.dtype:
    """Return the type that a precision stands for on `device`."""
    return torch.bfloat16 if resolve(device, precision) == "bfloat16" else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which matrix products are computed in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_type(device, precision) == torch.bfloat16)


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without native instructions bfloat16 is slower than float32.
    # get_capabilities is newer than the oldest torch that we support.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
