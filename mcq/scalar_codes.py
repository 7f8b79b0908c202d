"""Codes of single entries, as scalar quantizers store them: rows of bit strings that need not be equally long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcq import io
from mcq.codes import Bits
from mcq.errors import InputError
from mcq.validate import in_range

LAYOUTS = "layouts"
#: Entries whose bits are spread out at once, to bytes.
ENTRIES = 1 << 20


@io.register("scalar codes")
@dataclass(frozen=True, eq=False)
class ScalarCodes(io.Stored):
    """The packed codes of a matrix of n rows and d columns, one code an entry.

    Attributes
    ----------
    packed : array of bytes, uint8
        The little-endian bit strings of the rows one after another, each filled with zeros to whole bytes.
    shape : (int, int)
        n and d of the matrix that was encoded.
    row_bits : tuple of int
        Bits of a row in each of the layouts that there are.
    side : mapping of str to array of n rows
        What else decoding needs of each row. ``side["layouts"]``, uint8 (n,), names the layout of each row; it is
        missing where there is only one.

    Raises
    ------
    InputError
        If the arrays do not fit together.
    """

    packed: NDArray[np.uint8]
    shape: tuple[int, int]
    row_bits: tuple[int, ...]
    side: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, _ = (in_range(size, 0, None, "shape") for size in self.shape)
        lengths = {name: len(array) for name, array in self.side.items()}
        if set(lengths.values()) - {n} or (LAYOUTS in self.side) != (len(self.row_bits) > 1):
            raise InputError(f"side must hold {n} rows each, and layouts if there are several, got {lengths}")
        if self._layouts.max(initial=0) >= len(self.row_bits):
            raise InputError(f"layouts must be below {len(self.row_bits)}, got {self._layouts.max()}")
        total = int(self._starts[-1])
        if self.packed.dtype != np.uint8 or self.packed.shape != (total,):
            raise InputError(f"packed must be {total} bytes, got {self.packed.dtype} of shape {self.packed.shape}")

    @classmethod
    def pack(
        cls, codes: NDArray[np.uint8], widths: NDArray[np.integer[Any]], side: Mapping[str, NDArray[Any]]
    ) -> ScalarCodes:
        """Pack codes (n, d), each below 2 ** its width, with the bits (layouts, d) that each layout gives a column."""
        n, d = codes.shape
        row_bits = tuple(int(bits) for bits in widths.sum(1))
        empty = np.zeros(int(_starts(row_bits, side.get(LAYOUTS), n)[-1]), np.uint8)
        packed = cls(empty, (n, d), row_bits, side)
        for layout, rows, places in packed._strings():
            digits = np.unpackbits(codes[rows, :, None], axis=2, bitorder="little")
            chosen = digits[:, np.arange(8) < widths[layout, :, None]]
            empty[places] = np.packbits(chosen, axis=1, bitorder="little")
        return packed

    def unpack(self, widths: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the codes (n, d) for the widths that they were packed with."""
        codes = np.zeros(self.shape, np.uint8)
        for layout, rows, places in self._strings():
            digits = np.zeros((len(rows), self.shape[1], 8), np.uint8)
            bits = np.unpackbits(self.packed[places], axis=1, count=self.row_bits[layout], bitorder="little")
            digits[:, np.arange(8) < widths[layout, :, None]] = bits
            codes[rows] = np.packbits(digits, axis=2, bitorder="little")[:, :, 0]
        return codes

    def bits(self, shared_bytes: int = 0) -> Bits:
        """Count the bits per entry; `shared_bytes` is what is stored once for all rows."""
        entries = max(self.shape[0] * self.shape[1], 1)
        stored = self.packed.nbytes + sum(array.nbytes for array in self.side.values()) + shared_bytes
        payload = int(np.take(self.row_bits, self._layouts).sum())
        return Bits(payload=payload / entries, all_in=8 * stored / entries)

    def container(self) -> io.Container:
        """Return what `save` writes; `mcq.io.restore` makes codes of it again."""
        config = {"shape": list(self.shape), "row_bits": list(self.row_bits)}
        arrays = {f"side.{name}": array for name, array in self.side.items()}
        return io.Container("scalar codes", config, {"packed": self.packed, **arrays})

    @classmethod
    def concatenate(cls, parts: Sequence[ScalarCodes]) -> ScalarCodes:
        """Join codes of the same layouts along the rows.

        Raises
        ------
        InputError
            If `parts` is empty, or the layouts differ.
        """
        if not parts:
            raise InputError("concatenate needs at least one part, got none")
        first = parts[0]
        for part in parts:
            if part._kind != first._kind:
                raise InputError(f"all parts must share one layout, got {first._kind} and {part._kind}")
        side = {name: np.concatenate([part.side[name] for part in parts]) for name in first.side}
        packed = np.concatenate([part.packed for part in parts])
        return replace(first, packed=packed, shape=(sum(map(len, parts)), first.shape[1]), side=side)

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ScalarCodes:
        n, d = config["shape"]
        side = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith("side.")}
        return cls(arrays["packed"], (n, d), tuple(config["row_bits"]), side)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> ScalarCodes:
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"codes are cut by a slice of neighbouring rows, such as codes[10:20], got {rows!r}")
        start, stop, _ = rows.indices(len(self))
        stop = max(start, stop)
        side = {name: array[start:stop] for name, array in self.side.items()}
        packed = self.packed[self._starts[start] : self._starts[stop]]
        return replace(self, packed=packed, shape=(stop - start, self.shape[1]), side=side)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScalarCodes):
            return NotImplemented
        return (
            self.shape == other.shape
            and self._kind == other._kind
            and np.array_equal(self.packed, other.packed)
            and all(np.array_equal(array, other.side[name]) for name, array in self.side.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ScalarCodes(n={len(self)}, d={self.shape[1]}, payload={self.bits().payload:.3f})"

    @property
    def _kind(self) -> tuple[Any, ...]:
        """All that codes must share to be joined."""
        side = [(name, array.dtype.name, array.shape[1:]) for name, array in sorted(self.side.items())]
        return self.shape[1], self.row_bits, side

    @property
    def _layouts(self) -> NDArray[np.integer[Any]]:
        return self.side.get(LAYOUTS, np.zeros(len(self), np.uint8))

    @property
    def _starts(self) -> NDArray[np.int64]:
        return _starts(self.row_bits, self.side.get(LAYOUTS), len(self))

    def _strings(self) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.int64]]]:
        """Yield each layout with some of its rows (r,), and where their bytes are, (r, bytes)."""
        step, starts = max(1, ENTRIES // max(1, self.shape[1])), self._starts
        for layout, bits in enumerate(self.row_bits):
            every = np.flatnonzero(self._layouts == layout)
            for first in range(0, len(every), step):
                rows = every[first : first + step]
                yield layout, rows, starts[rows, None] + np.arange(-(-bits // 8))


def require_scalar(codes: object) -> None:
    """Raise `InputError` unless these are codes of single entries."""
    if not isinstance(codes, ScalarCodes):
        raise InputError(
            f"the codes must come from a quantizer with the same options, as ScalarCodes, got {type(codes).__name__}"
        )


def _starts(row_bits: Sequence[int], layouts: NDArray[Any] | None, n: int) -> NDArray[np.int64]:
    """Return the first byte of each row, and the number of all bytes."""
    row_bytes = np.take([-(-bits // 8) for bits in row_bits], np.zeros(n, int) if layouts is None else layouts)
    return np.concatenate([[0], np.cumsum(row_bytes, dtype=np.int64)])
