"""How results reach the disk: in float16, and complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mcq.errors import InputError

#: Folder of what an allocation measures, in that of the run.
MEASURED = "measured"


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as it is written: float16, or float32 if a value is too large; integers unchanged."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor.float()


@torch.no_grad()
def round_to_stored(module: nn.Module) -> None:
    """Give every parameter that is in memory the value that it will have when it is loaded again."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            parameter.copy_(as_stored(parameter))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], fingerprint: str) -> None:
    """Write a safetensors file that is complete and on the disk as soon as it has its name."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt", "mcq": fingerprint})
    # safetensors writes the entries of the header in random order; equal tensors shall make equal files.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_bytes(path, len(header).to_bytes(8, "little") + header + data[end:])


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, make sure that it is on the disk, and rename it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; make room for it and start again") from error


def read_tensors(path: Path, fingerprint: str) -> dict[str, torch.Tensor]:
    """Read a file of `write_tensors`, and refuse one that another run has written."""
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("mcq")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, and it will be made anew") from None
    if found != fingerprint:
        raise InputError(f"{path} must be of run {fingerprint}, but is of run {found}; remove it, and start again")
    return tensors


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Provide a temporary folder that takes the name `path` when all goes well, and vanishes otherwise.

    Raises
    ------
    InputError
        At once, if `path` exists and is not an empty folder, or if nothing can be written beside it.
    """
    path = _free(path)
    with _writable(path.parent):
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp keeps others out
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def resumable_folder(path: Path, resume: bool) -> Iterator[Path]:
    """Provide the folder ``PATH.partial``, which takes the name `path` when all goes well.

    Otherwise it stays if there is a finished part of the checkpoint, or a measurement, in it.

    Parameters
    ----------
    path : Path
    resume : bool
        Whether to go on with the folder of an earlier run, if there is one.

    Raises
    ------
    InputError
        At once, if `path` exists and is not an empty folder, if nothing can be written beside it, if there is a folder
        of an earlier run that was not to be resumed, or if another process is at work in it.
    """
    path = _free(path)
    partial = path.with_name(f"{path.name}.partial")
    if partial.exists() and not resume:
        raise InputError(
            f"an unfinished run is in {partial}; add --resume to go on with it, remove it, or choose another folder"
        )
    with _writable(path.parent):
        partial.mkdir(exist_ok=True)
    with _locked(partial):
        try:
            yield partial
            partial.rename(path)
        except BaseException:
            if not any(partial.rglob("*.safetensors")) and not any(partial.glob(f"{MEASURED}/*")):
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _free(path: Path) -> Path:
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"the output folder {path} must not exist or be empty; name another one or remove it")
    return path


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another output folder") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of the lock even when this process is killed."""
    try:
        import fcntl
    except ImportError:  # not a Unix system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"another process is at work in {folder}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        os.close(descriptor)
