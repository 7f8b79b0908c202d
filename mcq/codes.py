"""Codes as they are stored: packed bits, optional scales, and what they cost.

Each row is one byte-aligned, little-endian bit string. It holds G * M codes of B bits, group by group and
within a group codebook by codebook; bit 0 of the first code is bit 0 of the first byte, and the last byte is
filled with zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcq import io
from mcq.errors import InputError
from mcq.validate import in_range
from mcq_ext import cpu

MAX_CODE_BITS = 64


@dataclass(frozen=True)
class Bits:
    """Cost of a compressed matrix of n rows and d columns, in bits per entry.

    Attributes
    ----------
    payload : float
        The codes alone: G * M * B / d.
    all_in : float
        All that decoding needs: 8 * (bytes of the codes with their row padding + of the scales
        + of what is stored once for all rows, such as codebooks) / (n * d).
    """

    payload: float
    all_in: float


@io.register("codes")
@dataclass(frozen=True, eq=False)
class Codes(io.Stored):
    """The packed codes of a matrix of n rows and d columns.

    Attributes
    ----------
    packed : array of shape (n, ceil(G * M * B / 8)), uint8
        One bit string a row, in the order given at the head of this module.
    shape : (int, int)
        n and d of the matrix that was encoded.
    num_groups, num_codebooks, codebook_bits : int
        G groups a row, M codes a group, B bits a code (1 to 64).
    scales : array of shape (n, 1) or (n, G), float16, optional
        Factor of each row or of each group.
    outliers : array of shape (n, any), uint8, optional
        What `OutlierQuantizer` stores beside the codes.

    Raises
    ------
    InputError
        If the arrays do not have these shapes and types.
    ConfigError
        If a number is out of range.

    Examples
    --------
    >>> codes = Codes.pack(np.array([[[1, 2]], [[3, 0]]]), codebook_bits=2, d=4)
    >>> codes.packed.tolist()
    [[9], [3]]
    >>> codes.unpack().tolist()
    [[[1, 2]], [[3, 0]]]
    """

    packed: NDArray[np.uint8]
    shape: tuple[int, int]
    num_groups: int
    num_codebooks: int
    codebook_bits: int
    scales: NDArray[np.float16] | None = None
    outliers: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        n, _ = (in_range(size, 0, None, "shape") for size in self.shape)
        groups = in_range(self.num_groups, 1, None, "num_groups")
        in_range(self.num_codebooks, 1, None, "num_codebooks")
        in_range(self.codebook_bits, 1, MAX_CODE_BITS, "codebook_bits")
        _require(self.packed, "packed", np.uint8, [(n, -(-self._row_bits // 8))])
        if self.scales is not None:
            _require(self.scales, "scales", np.float16, [(n, 1), (n, groups)])
        if self.outliers is not None:
            _require(self.outliers, "outliers", np.uint8, [(n, self.outliers.shape[-1])])

    @classmethod
    def pack(
        cls,
        codes_nGM: NDArray[np.integer[Any]],  # noqa: N803
        *,
        codebook_bits: int,
        d: int,
        scales: NDArray[np.float16] | None = None,
    ) -> Codes:
        """Pack codes given as integers.

        Parameters
        ----------
        codes_nGM : array of shape (n, G, M), any integer type
        codebook_bits : int
            B, 1 to 64; every code is below 2**B.
        d : int
            Columns of the matrix that the codes stand for.
        scales : array of shape (n, 1) or (n, G), float16, optional

        Raises
        ------
        InputError
            If the codes are not such an array or one does not fit in B bits.
        """
        if codes_nGM.ndim != 3 or codes_nGM.dtype.kind not in "iu":
            raise InputError(
                f"codes must be integers of shape (n, G, M), got {codes_nGM.dtype} of shape {codes_nGM.shape}"
            )
        bits = in_range(codebook_bits, 1, MAX_CODE_BITS, "codebook_bits")
        lowest, highest = int(codes_nGM.min(initial=0)), int(codes_nGM.max(initial=0))
        if lowest < 0 or highest >= 1 << bits:
            raise InputError(f"codes must lie in 0..{2**bits - 1} to fit {bits} bits, got {lowest}..{highest}")
        n, groups, codebooks = codes_nGM.shape
        words = np.ascontiguousarray(codes_nGM, _word_type(bits)).reshape(n, groups * codebooks)
        return cls(cpu.pack_bits(words, bits), (n, d), groups, codebooks, bits, scales)

    def unpack(self) -> NDArray[Any]:
        """Return the codes as an array of shape (n, G, M): uint16 up to 16 bits, else uint64."""
        words = cpu.unpack_bits(self.packed, self.codebook_bits, self.num_groups * self.num_codebooks)
        return words.reshape(len(self), self.num_groups, self.num_codebooks)

    def prefix(self, num_codebooks: int) -> Codes:
        """Return the codes of the first `num_codebooks` codebooks alone, packed anew.

        Raises
        ------
        ConfigError
            If `num_codebooks` is not from 1 to M.

        Examples
        --------
        >>> codes = Codes.pack(np.array([[[1, 2]], [[3, 0]]]), codebook_bits=2, d=4)
        >>> codes.prefix(1).unpack().tolist()
        [[[1]], [[3]]]
        """
        first = in_range(num_codebooks, 1, self.num_codebooks, "num_codebooks")
        words = self.unpack()[:, :, :first]
        return Codes.pack(words, codebook_bits=self.codebook_bits, d=self.shape[1], scales=self.scales)

    def bits(self, shared_bytes: int = 0) -> Bits:
        """Count the bits per entry; `shared_bytes` is what is stored once for all rows."""
        n, d = self.shape
        entries = max(n * d, 1)
        stored = sum(array.nbytes for array in self._arrays.values()) + shared_bytes
        return Bits(payload=n * self._row_bits / entries, all_in=8 * stored / entries)

    def container(self) -> io.Container:
        """Return what `save` writes; `mcq.io.restore` makes codes of it again."""
        config = {
            "shape": list(self.shape),
            "num_groups": self.num_groups,
            "num_codebooks": self.num_codebooks,
            "codebook_bits": self.codebook_bits,
        }
        return io.Container("codes", config, self._arrays)

    @classmethod
    def concatenate(cls, parts: Sequence[Codes]) -> Codes:
        """Join codes of the same layout along the rows.

        Raises
        ------
        InputError
            If `parts` is empty, or the layouts differ.
        """
        if not parts:
            raise InputError("concatenate needs at least one part, got none")
        first = parts[0]
        for part in parts:
            if part._layout != first._layout:
                raise InputError(f"all parts must share one layout, got {first._layout} and {part._layout}")
        joined: dict[str, Any] = {
            name: np.concatenate([part._arrays[name] for part in parts]) for name in first._arrays
        }
        return dataclasses.replace(first, shape=(len(joined["packed"]), first.shape[1]), **joined)

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Codes:
        n, d = config["shape"]
        return cls(**{"packed": arrays["packed"], **arrays, **config, "shape": (n, d)})

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Codes:
        if not isinstance(rows, slice):
            raise TypeError(f"codes are cut by a slice over rows, such as codes[10:20], got {rows!r}")
        cut: dict[str, Any] = {name: np.ascontiguousarray(array[rows]) for name, array in self._arrays.items()}
        return dataclasses.replace(self, shape=(len(cut["packed"]), self.shape[1]), **cut)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return (
            self.shape == other.shape
            and self._layout == other._layout
            and all(np.array_equal(array, other._arrays[name]) for name, array in self._arrays.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        layout = ", ".join(f"{name}={value}" for name, value in self._layout.items())
        return f"Codes(n={len(self)}, {layout})"

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What there is for each row, by name."""
        arrays = {"packed": self.packed, "scales": self.scales, "outliers": self.outliers}
        return {name: array for name, array in arrays.items() if array is not None}

    @property
    def _row_bits(self) -> int:
        return self.num_groups * self.num_codebooks * self.codebook_bits

    @property
    def _layout(self) -> dict[str, int]:
        """All that codes must share to be joined; scale_columns is 0 without scales."""
        return {
            "d": self.shape[1],
            "num_groups": self.num_groups,
            "num_codebooks": self.num_codebooks,
            "codebook_bits": self.codebook_bits,
            "scale_columns": 0 if self.scales is None else self.scales.shape[1],
            **({} if self.outliers is None else {"outlier_bytes": self.outliers.shape[1]}),
        }


def _word_type(bits: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if bits <= 16 else np.uint64


def _require(array: NDArray[Any], name: str, dtype: type[np.generic], shapes: list[tuple[int, int]]) -> None:
    if array.dtype != dtype or array.shape not in shapes:
        wanted = f"{dtype.__name__} of shape {' or '.join(map(str, dict.fromkeys(shapes)))}"
        raise InputError(f"{name} must be {wanted}, got {array.dtype} of shape {array.shape}")
