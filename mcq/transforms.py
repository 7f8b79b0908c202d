"""Transforms: invertible linear maps of a matrix before it is quantized, undone after it is decoded.

A transform maps x (n, d) to y of the same shape. Codes are chosen for y, under the metric that `apply_metric` returns:

    sum over rows of (x - x^)^T H (x - x^)  =  sum over rows of (y - y^)^T H' (y - y^)

so quantizing y under H' minimises what quantizing x under H would. Each transform acts along one axis, on the columns
of every row or on the rows of every column; a two-sided rotation is the composition of one of each.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcq import io
from mcq.errors import InputError
from mcq.metric import Diagonal, Gram, Identity, Metric
from mcq.validate import as_matrix, as_real_matrix, config_from_dict, in_range, one_of
from mcq_ext import cpu

Floats = NDArray[np.float32]
Axis = Literal["columns", "rows"]

VERSION = 1
MAX_WIDTH = 1 << 24
#: Steps of a Hadamard transform whose width is not a power of two; with fewer, some entries hardly meet.
STEPS = 4
SEED_BITS = 64
#: The normal numbers of float16.
LEAST_FACTOR, LARGEST_FACTOR = 2.0**-14, 65504.0


@io.register("transform")
class Transform(io.Stored):
    """Base of the transforms, which are frozen and made again from a few numbers."""

    @abstractmethod
    def apply(self, x: ArrayLike) -> Floats:
        """Return the transform y (n, d), float32, of a matrix x (n, d).

        Raises
        ------
        InputError
            If `x` is no finite real matrix, or not of the transform's width.
        """

    @abstractmethod
    def invert(self, y: ArrayLike) -> Floats:
        """Return the matrix x (n, d), float32, whose transform is y, up to rounding.

        Raises
        ------
        InputError
            As `apply`.
        """

    @abstractmethod
    def apply_metric(self, metric: Metric) -> Metric:
        """Return the metric that weighs errors of y as `metric` weighs those of x.

        Raises
        ------
        InputError
            If the metric weighs another number of columns.
        """

    @abstractmethod
    def steps(self) -> tuple[OneAxis, ...]:
        """Return the transforms along one axis that make up this one, in order."""

    def bits(self) -> int:
        """Return the bits that decoding needs, beside the shape of the matrix."""
        return sum(step.stored_bits for step in self.steps())

    def container(self) -> io.Container:
        """Return what `save` writes; `mcq.io.restore` makes the transform again."""
        steps = self.steps()
        arrays = {f"{i}.{name}": array for i, step in enumerate(steps) for name, array in step.arrays.items()}
        return io.Container("transform", {"version": VERSION, "steps": [step.config for step in steps]}, arrays)

    @classmethod
    def _from_container(cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Transform:
        in_range(config["version"], 1, VERSION, "version")
        steps = []
        for i, options in enumerate(config["steps"]):
            kind = one_of(options.pop("kind"), KINDS, "kind")
            own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{i}.")}
            steps.append(config_from_dict(KINDS[kind], {**options, **own}))
        return steps[0] if len(steps) == 1 else Composition(steps)


class OneAxis(Transform):
    """A transform of the columns of every row, or of the rows of every column; its subclasses are dataclasses.

    Attributes
    ----------
    axis : "columns" or "rows"
    """

    kind: ClassVar[str]
    arrays_of: ClassVar[tuple[str, ...]] = ()
    axis: Axis = "columns"

    @property
    @abstractmethod
    def stored_bits(self) -> int:
        """Bits that decoding needs."""

    @property
    @abstractmethod
    def _width(self) -> int:
        """Entries along the axis."""

    @abstractmethod
    def _map(self, x: Floats) -> Floats:
        """Return ``x @ T`` for rows of the transform's width."""

    @abstractmethod
    def _unmap(self, y: Floats) -> Floats:
        """Return ``y @ T^-1``."""

    @abstractmethod
    def _map_metric(self, metric: Metric) -> Metric:
        """Return T^-1 H T^-T."""

    def apply(self, x: ArrayLike) -> Floats:  # noqa: D102
        return self._along_axis(self._map, as_matrix(x, "x"))

    def invert(self, y: ArrayLike) -> Floats:  # noqa: D102
        return self._along_axis(self._unmap, as_matrix(y, "y"))

    def apply_metric(self, metric: Metric) -> Metric:  # noqa: D102
        if self.axis == "rows":  # orthogonal: the sum over rows does not notice
            return metric
        metric.check_width(self._width)
        return self._map_metric(metric)

    def steps(self) -> tuple[OneAxis, ...]:  # noqa: D102
        return (self,)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What does not go into a JSON config."""
        return {name: getattr(self, name) for name in self.arrays_of}

    @property
    def config(self) -> dict[str, Any]:
        """Kind and all other options."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in self.arrays_of]  # type: ignore[arg-type]
        return {"kind": self.kind} | {name: getattr(self, name) for name in names}

    def _along_axis(self, change: Callable[[Floats], Floats], matrix: Floats) -> Floats:
        size = matrix.shape[self.axis == "columns"]
        if size != self._width:
            raise InputError(f"the transform is for {self._width} {self.axis}, but the matrix has {size}")
        if self.axis == "columns":
            return change(matrix)
        return np.ascontiguousarray(change(np.ascontiguousarray(matrix.T)).T)


@dataclass(frozen=True)
class Hadamard(OneAxis):
    """Randomised Hadamard rotation of any width: orthogonal, in O(n d log d), and stored as its seed.

    For d a power of two, y = x S H with random signs S and the Hadamard matrix H / sqrt(d). For any other d four steps,
    each with signs of its own, transform the first w and the last w entries in turns, w the largest power of two below
    d; the first and the third also rotate entry i and entry i + ceil(d / 2) by 45 degrees.

    Parameters
    ----------
    width : int
        d, along the axis.
    seed : int
        0 to 2**64 - 1.
    axis : "columns" or "rows"

    Raises
    ------
    ConfigError
        If an option is out of range.

    References
    ----------
    Ailon and Chazelle, The fast Johnson-Lindenstrauss transform, SIAM J. Computing 2009. Ashkboos et
    al., QuaRot, NeurIPS 2024.

    Examples
    --------
    >>> rotation = Hadamard(width=96, seed=1)
    >>> spike = np.eye(96)[:1]
    >>> bool(np.abs(rotation.apply(spike)).max() < 0.5), rotation.bits()
    (True, 64)
    >>> bool(np.allclose(rotation.invert(rotation.apply(spike)), spike, atol=1e-6))
    True
    """

    width: int
    seed: int = 0
    axis: Axis = "columns"
    version: int = 1
    kind: ClassVar[str] = "hadamard"

    def __post_init__(self) -> None:
        in_range(self.width, 1, MAX_WIDTH, "width")
        in_range(self.seed, 0, (1 << SEED_BITS) - 1, "seed")
        one_of(self.axis, ("columns", "rows"), "axis")

    @property
    def stored_bits(self) -> int:  # noqa: D102
        return SEED_BITS

    @property
    def _width(self) -> int:
        return self.width

    @property
    def signs(self) -> Floats:
        """The signs (S, d) of the steps, float32."""
        # From raw bits: NumPy keeps these the same for ever, but not its distributions.
        count = 1 if self.width & (self.width - 1) == 0 else STEPS
        words = np.random.PCG64(self.seed).random_raw(-(-count * self.width // 64)).astype("<u8")
        digits = np.unpackbits(words.view(np.uint8), count=count * self.width, bitorder="little")
        return 1 - 2 * digits.reshape(count, self.width).astype(np.float32)

    def apply(self, x: ArrayLike) -> Floats:  # noqa: D102
        return self._rotate(self._map, x, "x")

    def invert(self, y: ArrayLike) -> Floats:  # noqa: D102
        return self._rotate(self._unmap, y, "y")

    def _rotate(self, change: Callable[[Floats], Floats], x: ArrayLike, name: str) -> Floats:
        """Change a matrix and check it after: all that becomes of a row with an entry that is not finite is not either.

        One column of the result then tells what else takes a pass over the whole matrix.
        """
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(as_real_matrix(x, name), np.float32)
        result = self._along_axis(change, matrix)
        if not np.isfinite(result[:, 0] if self.axis == "columns" else result[0]).all():
            as_matrix(x, name)  # refuses it and says where, unless finite entries have become too large
        return result

    def _map(self, x: Floats) -> Floats:
        return cpu.hadamard(x, self.signs)

    def _unmap(self, y: Floats) -> Floats:
        return cpu.hadamard(y, self.signs, inverse=True)

    def _map_metric(self, metric: Metric) -> Metric:
        if isinstance(metric, Identity):
            return metric
        half = np.ascontiguousarray(self._map(metric.block(slice(0, self.width))).T)
        return _like(metric, self._map(half))


@dataclass(frozen=True, eq=False)
class Scaling(OneAxis):
    """Columns divided by factors: y_j = x_j / s_j, the metric's weights times s_j^2.

    Parameters
    ----------
    factors : array-like of shape (d,)
        s, kept in float16, the normal numbers of which they must lie among: 6.1e-5 to 65504.

    Raises
    ------
    InputError
        If a factor is out of range.

    Examples
    --------
    >>> Scaling([2.0, 4.0]).apply([[1.0, 1.0]]).tolist()
    [[0.5, 0.25]]
    """

    factors: NDArray[np.float16]
    version: int = 1
    kind: ClassVar[str] = "scaling"
    arrays_of: ClassVar[tuple[str, ...]] = ("factors",)

    def __post_init__(self) -> None:
        factors = as_matrix(np.atleast_2d(np.asarray(self.factors)), "factors")
        if len(factors) != 1 or factors.min() < LEAST_FACTOR or factors.max() > LARGEST_FACTOR:
            raise InputError(
                f"factors must be a vector of numbers from {LEAST_FACTOR:.1e} to {LARGEST_FACTOR:g}, got shape "
                f"{np.shape(self.factors)} from {factors.min():g} to {factors.max():g}; divide by their mean"
            )
        object.__setattr__(self, "factors", factors[0].astype(np.float16))

    @property
    def _width(self) -> int:
        return len(self.factors)

    @property
    def stored_bits(self) -> int:  # noqa: D102
        return 8 * self.factors.nbytes

    def _map(self, x: Floats) -> Floats:
        return np.divide(x, self.factors, dtype=np.float32)

    def _unmap(self, y: Floats) -> Floats:
        return y * self.factors.astype(np.float32)

    def _map_metric(self, metric: Metric) -> Metric:
        factors = self.factors.astype(np.float32)
        if isinstance(metric, Identity | Diagonal):
            return Diagonal(metric.diagonal(self._width) * factors**2)
        return _like(metric, metric.block(slice(0, self._width)) * np.outer(factors, factors))


@dataclass(frozen=True, eq=False)
class Permutation(OneAxis):
    """Columns or rows in another order: y_j = x_order[j].

    Parameters
    ----------
    order : array-like of shape (d,)
        Each of 0 to d - 1 once.
    axis : "columns" or "rows"

    Raises
    ------
    InputError
        If `order` is no permutation.

    Examples
    --------
    >>> Permutation([2, 0, 1]).apply([[1.0, 2.0, 3.0]]).tolist()
    [[3.0, 1.0, 2.0]]
    """

    order: NDArray[np.uint16] | NDArray[np.uint32]
    axis: Axis = "columns"
    version: int = 1
    kind: ClassVar[str] = "permutation"
    arrays_of: ClassVar[tuple[str, ...]] = ("order",)

    def __post_init__(self) -> None:
        one_of(self.axis, ("columns", "rows"), "axis")
        order = np.asarray(self.order)
        if order.ndim != 1 or order.dtype.kind not in "iu" or not np.array_equal(np.sort(order), np.arange(order.size)):
            raise InputError(f"order must hold each of 0 to d - 1 once, got {order.dtype} of shape {order.shape}")
        object.__setattr__(self, "order", order.astype(np.uint16 if order.size <= 1 << 16 else np.uint32))

    @property
    def _width(self) -> int:
        return len(self.order)

    @property
    def stored_bits(self) -> int:  # noqa: D102
        return 8 * self.order.nbytes

    def _map(self, x: Floats) -> Floats:
        return np.ascontiguousarray(x[:, self.order])

    def _unmap(self, y: Floats) -> Floats:
        x = np.empty_like(y)
        x[:, self.order] = y
        return x

    def _map_metric(self, metric: Metric) -> Metric:
        return metric.arranged(self.order.astype(np.intp), self._width)


@dataclass(frozen=True)
class Composition(Transform):
    """Transforms one after another.

    Parameters
    ----------
    parts : sequence of Transform
        In the order in which `apply` runs them; compositions among them are taken apart.

    Examples
    --------
    >>> both_sides = Composition([Hadamard(4, seed=0), Hadamard(2, seed=1, axis="rows")])
    >>> both_sides.apply(np.ones((2, 4))).shape, both_sides.bits()
    ((2, 4), 128)
    """

    parts: Sequence[Transform]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(step for part in self.parts for step in part.steps()))

    def apply(self, x: ArrayLike) -> Floats:  # noqa: D102
        matrix = as_matrix(x, "x")
        for step in self.parts:
            matrix = step.apply(matrix)
        return matrix

    def invert(self, y: ArrayLike) -> Floats:  # noqa: D102
        matrix = as_matrix(y, "y")
        for step in reversed(self.parts):
            matrix = step.invert(matrix)
        return matrix

    def apply_metric(self, metric: Metric) -> Metric:  # noqa: D102
        for step in self.parts:
            metric = step.apply_metric(metric)
        return metric

    def steps(self) -> tuple[OneAxis, ...]:  # noqa: D102
        return self.parts  # type: ignore[return-value]


KINDS: dict[str, type[OneAxis]] = {"hadamard": Hadamard, "scaling": Scaling, "permutation": Permutation}


def _like(metric: Metric, matrix: Floats) -> Gram:
    """Return the Gram of a matrix that is PSD but for rounding, damped as `metric` is."""
    return Gram.trusted((matrix + matrix.T) * np.float32(0.5), getattr(metric, "damping", 0.0))
