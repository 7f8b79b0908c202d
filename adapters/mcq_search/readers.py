"""Vectors in files, read a few rows at a time: .npy, HDF5, .fvecs and its kin, .fbin and its kin, Parquet."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mcq.errors import FormatError, InputError

#: Every record: its number of entries as int32, then the entries.
XVECS = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}
#: Number of rows and of columns as uint32, then the entries row by row.
BIN = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}


class Vectors(ABC):
    """A matrix in a file; rows are read when a slice asks for them.

    The file is opened for each read, so that the object can be sent to another process which sees the same path.

    Attributes
    ----------
    path : Path
    shape : (int, int)
        n and d.
    dtype : numpy dtype
        As stored, in the byte order of this machine.
    """

    ndim = 2

    def __init__(self, path: Path, shape: tuple[int, int], dtype: DTypeLike) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype.kind not in "fiu":
            raise FormatError(f"{path} must hold real numbers, got {self.dtype}")
        if 0 in shape:
            raise FormatError(f"{path} must hold at least one row and one column, got shape {shape}")

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`, all columns, in any byte order."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | tuple[slice, slice]) -> NDArray[Any]:
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if not all(isinstance(part, slice) and part.step in (None, 1) for part in (rows, columns)):
            raise TypeError(f"vectors in a file are cut by slices without a step, such as x[10:20], got {key!r}")
        start, stop, _ = rows.indices(len(self))
        return np.ascontiguousarray(self._read(start, max(start, stop))[:, columns], self.dtype)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the rows of a file cannot become an array without a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, shape={self.shape}, dtype={self.dtype})"


def open_vectors(path: str | os.PathLike[str], name: str | None = None) -> Vectors:
    """Open a file of vectors without reading them.

    Parameters
    ----------
    path : path of the file
        The ending tells the format: ``.npy``; ``.hdf5`` or ``.h5``; ``.fvecs``, ``.bvecs``, ``.ivecs``; ``.fbin``,
        ``.u8bin``, ``.i8bin``, ``.ibin``; ``.parquet``.
    name : str, optional
        HDF5: the data set, such as ``train``, ``test`` or ``neighbors`` in files of ann-benchmarks. Parquet: the column
        of lists. May be left out if there is only one. ``.ibin``: ``distances`` for those that may follow the numbers.

    Returns
    -------
    Vectors
        Has `shape` and `dtype`; ``x[start:stop]`` reads rows, ``np.asarray(x)`` all of them.

    Raises
    ------
    FormatError
        If the file is truncated, empty, or not of the format that its ending promises. Records of varying lengths are
        noticed when they are read.
    InputError
        If the ending is unknown, the name missing or unknown, or the package that reads the format not installed.

    Notes
    -----
    A read takes memory for its rows, with Parquet for a row group besides.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.arange(12.0).reshape(6, 2))
    >>> x = open_vectors(path)
    >>> x.shape, x[2:4].tolist()
    ((6, 2), [[4.0, 5.0], [6.0, 7.0]])
    """
    path = Path(path)
    with open(path, "rb"):  # so that a missing file or a folder is named as such whatever the format
        pass
    ending = path.suffix.lower()
    if ending in NAMED:
        return NAMED[ending](path, name)
    if ending not in PLAIN:
        known = ", ".join([*PLAIN, *NAMED])
        raise InputError(f"{path} must have an ending that tells its format, one of {known}")
    if name is not None:
        raise InputError(f"{path} holds a single matrix, leave out the name {name!r}")
    return PLAIN[ending](path)


class NpyVectors(Vectors):
    """The matrix of a .npy file."""

    def __init__(self, path: Path) -> None:
        mapped = self._map(path)
        if mapped.ndim != 2:
            raise FormatError(f"{path} must hold a matrix of shape (n, d), got shape {mapped.shape}")
        super().__init__(path, (mapped.shape[0], mapped.shape[1]), mapped.dtype)
        _require_bytes(path, mapped.offset + mapped.nbytes)

    @staticmethod
    def _map(path: Path) -> np.memmap[Any, Any]:
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError) as error:
            raise FormatError(f"{path} is not a whole .npy file of numbers: {error}") from error

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        return np.array(self._map(self.path)[start:stop])


class RecordVectors(Vectors):
    """Rows of equal size one after another in a file, each perhaps led by its number of entries.

    Parameters
    ----------
    path, shape, dtype
        As in `Vectors`; `dtype` in the byte order of the file.
    offset : int
        Bytes before the first record.
    counted : bool
        Whether d stands before every row, as int32.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str, offset: int, counted: bool) -> None:
        super().__init__(path, shape, dtype)
        self.stored = np.dtype(dtype)
        self.offset = offset
        self.lead = 4 if counted else 0

    @classmethod
    def xvecs(cls, path: Path) -> RecordVectors:
        """Open a .fvecs, .bvecs or .ivecs file."""
        dtype, size = XVECS[path.suffix.lower()], path.stat().st_size
        d = int(_head(path, "<i4", 1)[0])
        record = 4 + d * np.dtype(dtype).itemsize
        if d < 1:
            raise FormatError(f"{path} must start with the number of entries of its first row, got {d}")
        if size % record:
            raise FormatError(
                f"{path} must be whole records of {record} bytes (rows of {d} entries), but has {size} bytes; it is "
                "truncated or of another format"
            )
        vectors = cls(path, (size // record, d), dtype, 0, counted=True)
        vectors[-1:]  # a file of varying lengths seldom ends with a row like the first one
        return vectors

    @classmethod
    def bin(cls, path: Path, name: str | None = None) -> RecordVectors:
        """Open a .fbin, .u8bin, .i8bin or .ibin file."""
        dtype = BIN[path.suffix.lower()]
        n, d = (int(size) for size in _head(path, "<u4", 2))
        end = 8 + n * d * np.dtype(dtype).itemsize
        # Nearest neighbours may be followed by their distances.
        has_distances = dtype == "<i4" and path.stat().st_size == end + 4 * n * d
        if name is not None and not (name == "distances" and has_distances):
            raise InputError(f"{path} has no part called {name!r}; leave out the name")
        _require_bytes(path, end + 4 * n * d if has_distances else end)
        return cls(path, (n, d), *(("<f4", end) if name else (dtype, 8)), counted=False)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        d = self.shape[1]
        record = self.lead + d * self.stored.itemsize
        raw = np.fromfile(self.path, np.uint8, (stop - start) * record, offset=self.offset + start * record)
        if raw.size != (stop - start) * record:
            raise FormatError(f"{self.path} has become shorter since it was opened; open it again")
        rows = raw.reshape(-1, record)
        if self.lead:
            lengths = rows[:, :4].view("<i4")[:, 0]
            if (lengths != d).any():
                where = int((lengths != d).argmax())
                raise FormatError(
                    f"{self.path} must hold rows of one length, {d}, but row {start + where} claims {lengths[where]}; "
                    "it is damaged, or its rows vary in length"
                )
        return rows[:, self.lead :].view(self.stored)


class Hdf5Vectors(Vectors):
    """A two-dimensional data set of an HDF5 file."""

    def __init__(self, path: Path, name: str | None) -> None:
        self.name = ""
        with self._file(path) as file:
            names: list[str] = []
            file.visititems(lambda key, item: names.append(key) if hasattr(item, "shape") else None)
            self.name = _choose(path, "data set", name, names)
            shape, dtype = file[self.name].shape, file[self.name].dtype
        if len(shape or ()) != 2:
            raise FormatError(f"the data set {self.name!r} of {path} must have shape (n, d), got {shape}")
        super().__init__(path, shape, dtype)

    @staticmethod
    def _file(path: Path) -> Any:
        h5py = _optional("h5py", path)
        try:
            return h5py.File(path, "r")
        except OSError as error:
            raise FormatError(f"{path} is not a whole HDF5 file, perhaps truncated: {error}") from error

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        with self._file(self.path) as file:
            try:
                return file[self.name][start:stop]
            except (OSError, KeyError) as error:
                raise FormatError(f"rows {start} to {stop} of {self.path} cannot be read: {error}") from error


class ParquetVectors(Vectors):
    """A column of lists of one length in a Parquet file, read one row group at a time.

    The row group read last is kept: blocks smaller than a row group do not read it again and again.
    """

    def __init__(self, path: Path, name: str | None) -> None:
        self._kept: tuple[int, NDArray[Any]] | None = None
        file = self._file(path)
        fields = {field.name: field.type for field in file.schema_arrow if hasattr(field.type, "value_type")}
        self.name = _choose(path, "column of lists", name, list(fields))
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self.starts = np.cumsum([0, *sizes])
        first = next(file.iter_batches(1, columns=[self.name]), None)
        d = 0 if first is None else len(first.column(0).flatten())
        super().__init__(path, (file.metadata.num_rows, d), fields[self.name].value_type.to_pandas_dtype())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    @staticmethod
    def _file(path: Path) -> Any:
        parquet = _optional("pyarrow.parquet", path)
        try:
            return parquet.ParquetFile(path)
        except (ValueError, OSError) as error:
            raise FormatError(f"{path} is not a whole Parquet file, perhaps truncated: {error}") from error

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        parts = [np.empty((0, self.shape[1]), self.dtype)]
        for group in range(first, int(np.searchsorted(self.starts, stop, "left"))):
            at = self.starts[group]
            parts.append(self._group(group)[max(start - at, 0) : stop - at])
        return np.concatenate(parts)

    def _group(self, group: int) -> NDArray[Any]:
        kept = self._kept  # one look, since another thread may replace it
        if kept is None or kept[0] != group:
            self._kept = kept = group, self._read_group(group)
        return kept[1]

    def _read_group(self, group: int) -> NDArray[Any]:
        try:
            lists = self._file(self.path).read_row_group(group, columns=[self.name]).column(0)
        except (ValueError, OSError) as error:
            raise FormatError(f"row group {group} of {self.path} cannot be read: {error}") from error
        compute, at, parts = _optional("pyarrow.compute", self.path), int(self.starts[group]), []
        for chunk in lists.chunks:
            lengths = compute.fill_null(compute.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
            self._require_whole(lengths == self.shape[1], at, f"{self.shape[1]} entries")
            values = chunk.flatten()
            present = values.is_valid().to_numpy(zero_copy_only=False).reshape(-1, self.shape[1])
            self._require_whole(present.all(1), at, "entries without nulls")
            parts.append(values.to_numpy(zero_copy_only=False).reshape(-1, self.shape[1]))
            at += len(chunk)
        return np.concatenate(parts)

    def _require_whole(self, whole: NDArray[np.bool_], at: int, wanted: str) -> None:
        if not whole.all():
            raise FormatError(
                f"every row of column {self.name!r} of {self.path} must have {wanted}, but row "
                f"{at + int(whole.argmin())} has not; drop such rows"
            )


PLAIN: dict[str, Callable[[Path], Vectors]] = {".npy": NpyVectors, **dict.fromkeys(XVECS, RecordVectors.xvecs)}
NAMED: dict[str, Callable[[Path, str | None], Vectors]] = {
    **dict.fromkeys(BIN, RecordVectors.bin),
    **dict.fromkeys((".hdf5", ".h5"), Hdf5Vectors),
    ".parquet": ParquetVectors,
}


def _head(path: Path, dtype: str, count: int) -> NDArray[Any]:
    """Return the numbers at the start of a file."""
    numbers = np.fromfile(path, dtype, count)
    if numbers.size != count:
        raise FormatError(f"{path} must start with {4 * count} bytes that tell its size, got {path.stat().st_size}")
    return numbers


def _require_bytes(path: Path, wanted: int) -> None:
    found = path.stat().st_size
    if found != wanted:
        raise FormatError(
            f"{path} must have {wanted} bytes by what its head says, but has {found}; it is truncated, or of another "
            "format"
        )


def _choose(path: Path, what: str, name: str | None, names: list[str]) -> str:
    """Return `name` if the file has it, or the only name there is."""
    if name in names:
        return str(name)
    if name is None and len(names) == 1:
        return names[0]
    found = f"has no {what} {name!r}" if name else f"holds {len(names) or 'no'} {what}s"
    raise InputError(f"{path} {found}; name one of: {', '.join(names)}" if names else f"{path} {found}")


def _optional(module: str, path: Path) -> Any:
    """Import a package that only some formats need."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"reading {path} needs {error.name}; run: pip install 'multicodebook[data]'") from error
