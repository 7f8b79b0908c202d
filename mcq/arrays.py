"""Plain arrays in .npy and .safetensors files, as the command line reads and writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mcq.errors import FormatError, InputError
from mcq.io import replacing


def read_array(source: str) -> NDArray[Any]:
    """Read one array.

    Parameters
    ----------
    source : str
        ``file.npy``, ``file.safetensors`` if it holds one tensor, or ``file.safetensors:name``.

    Returns
    -------
    array, bfloat16 widened to float32

    Raises
    ------
    FormatError
        If the file is not whole or of another format.
    InputError
        If the name is missing, or no tensor has it.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "x.npy")
    >>> write_array(path, np.arange(3.0))
    >>> read_array(path)
    array([0., 1., 2.])
    """
    file, separator, name = source.partition(".safetensors")
    if separator and name[:1] in ("", ":"):
        return _read_tensor(file + separator, name[1:])
    if source.endswith(".npy"):
        return _read_npy(source)
    raise InputError(f"{source} must be FILE.npy, FILE.safetensors or FILE.safetensors:TENSOR")


def write_array(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write a .npy file; `path` gets the whole file or, whatever happens, stays as it was.

    Raises
    ------
    InputError
        If `path` does not end in .npy.
    """
    if Path(path).suffix != ".npy":
        raise InputError(f"{path} must end in .npy")
    with replacing(path) as temporary, open(temporary, "xb") as file:
        np.save(file, array, allow_pickle=False)


def _read_npy(path: str) -> NDArray[Any]:
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FormatError(f"{path} is not a whole .npy file of numbers: {error}") from error


def _read_tensor(path: str, name: str) -> NDArray[Any]:
    with open(path, "rb") as raw:
        try:
            with safe_open(path, framework="numpy") as file:
                chosen = _choose(path, name, list(file.keys()))
                if file.get_slice(chosen).get_dtype() != "BF16":
                    tensor: NDArray[Any] = file.get_tensor(chosen)
                    return tensor
        except SafetensorError as error:
            raise FormatError(f"{path} is not a whole safetensors file, perhaps truncated: {error}") from error
        # NumPy has no bfloat16, and the package refuses it; the file was checked above.
        length = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(length))[chosen]
        start, end = entry["data_offsets"]
        raw.seek(start, os.SEEK_CUR)
        halves = np.frombuffer(raw.read(end - start), "<u2")
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _choose(path: str, name: str, names: list[str]) -> str:
    if name in names:
        return name
    if not name and len(names) == 1:
        return names[0]
    listed = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
    problem = f"has no tensor {name!r}" if name else f"holds {len(names)} tensors"
    raise InputError(f"{path} {problem}; name one as {path}:TENSOR, of: {listed}")
