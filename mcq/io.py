"""The container file: safetensors with a kind, a JSON config and a checksum in its metadata. Never pickle.

docs/file-format.md describes it; any safetensors reader can open it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mcq.errors import FormatError

FORMAT = "mcq"
FORMAT_VERSION = "1"
READABLE_VERSIONS = ("1",)

# numpy dtype -> safetensors dtype
DTYPES = {
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bool": "BOOL",
}

StrPath = str | os.PathLike[str]


class Loadable(Protocol):
    """What `register` asks of a class."""

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any: ...


C = TypeVar("C", bound=type[Loadable])
T = TypeVar("T")

_CLASSES: dict[str, type[Loadable]] = {}


class Container(NamedTuple):
    """What an object consists of, as a container file holds it."""

    kind: str
    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Stored(ABC):
    """What goes into a container file of its own."""

    @abstractmethod
    def container(self) -> Container:
        """Return what `save` writes; `mcq.io.restore` makes the object again."""

    def save(self, path: StrPath) -> None:
        """Write a container file, whole or not at all; `mcq.load` or the class's own `load` reads it back."""
        write(path, *self.container())

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        FormatError
            If the file is damaged or holds something else.
        """
        return load_as(cls, path)


def register(kind: str) -> Callable[[C], C]:
    """Make `load` build the decorated class, by its `_from_container(config, arrays)`, from this kind."""

    def decorate(cls: C) -> C:
        _CLASSES[kind] = cls
        return cls

    return decorate


def load(path: StrPath) -> Any:
    """Read a container and return the quantizer or the codes that it holds.

    Raises
    ------
    FormatError
        If the file is damaged, foreign, newer than this mcq, or of an unknown kind.
    """
    return restore(read(path), str(path))


def restore(container: Container, source: str) -> Any:
    """Return the object whose ``container()`` this is; `source` is how errors call the place it comes from.

    Raises
    ------
    FormatError
        If the kind is unknown, or config and arrays do not make an object of it.
    """
    kind, config, arrays = container
    if kind not in _CLASSES:
        known = ", ".join(sorted(_CLASSES))
        raise FormatError(f"{source} holds the unknown kind {kind!r} (known: {known}); upgrade multicodebook")
    try:
        return build(kind, config, arrays)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(f"{source} is not a usable container of kind {kind!r}: {error}") from error


def build(kind: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the object of a registered kind that these make up; errors are those of its class."""
    return _CLASSES[kind]._from_container(config, arrays)


def load_as(cls: type[T], path: StrPath) -> T:
    """Read a container that must hold an object of type `cls`.

    Raises
    ------
    FormatError
        As `load`, and if the file holds something else.
    """
    found = load(path)
    if not isinstance(found, cls):
        raise FormatError(f"{path} holds {type(found).__name__}, but {cls.__name__} is needed here")
    return found


def write(path: StrPath, kind: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a container; `path` gets the whole file or, whatever happens, stays as it was.

    Parameters
    ----------
    path : path of the file
    kind : str
        Name under which the class is registered.
    config : mapping
        What JSON can hold.
    arrays : mapping of str to array
    """
    stored = {name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()}
    text = json.dumps(config, sort_keys=True, allow_nan=False)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": text,
        "sha256": digest(kind, text, stored),
    }
    with replacing(path) as temporary, open(temporary, "xb") as file:
        _write_safetensors(file, stored, metadata)


def read(path: StrPath) -> Container:
    """Read a container and check it against its checksum.

    Raises
    ------
    FormatError
        If the file is not a whole, unaltered container that this mcq understands.
    """
    with open(path, "rb"):  # safe_open words a missing file or a folder badly
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _require_ours(path, metadata)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise FormatError(f"{path} is not a whole safetensors file, perhaps truncated: {error}") from error
    try:
        kind, text, stored = metadata["kind"], metadata["config"], metadata["sha256"]
    except KeyError as error:
        raise FormatError(f"{path} lacks the metadata entry {error}; it was altered") from None
    if digest(kind, text, arrays) != stored:
        raise FormatError(f"{path} does not match its checksum; it was altered or damaged, make it again")
    return Container(kind, json.loads(text), arrays)


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which becomes `path` only if the block succeeds.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole or absent")
    >>> target.read_text()
    'whole or absent'
    """
    target = Path(path)
    temporary = target.with_name(f".mcq-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write the layout by hand: the package's writer orders metadata at random and copies every array."""
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        dtype = DTYPES[arrays[name].dtype.name]
        header[name] = {"dtype": dtype, "shape": arrays[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes(arrays[name]))


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _require_ours(path: StrPath, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise FormatError(f"{path} is a safetensors file, but not one that mcq wrote")
    version = metadata.get("format_version")
    if version not in READABLE_VERSIONS:
        raise FormatError(f"{path} has format version {version}, newer than this mcq; upgrade multicodebook")


def digest(kind: str, config: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hash kind, config and arrays with their names, dtypes and shapes, so that no part can be exchanged."""
    names = sorted(arrays)
    layout = [[name, arrays[name].dtype.str, list(arrays[name].shape)] for name in names]
    total = hashlib.sha256(json.dumps([kind, config, layout]).encode())
    for name in names:
        total.update(_bytes(arrays[name]))
    return total.hexdigest()
