"""Fit and encode over the partitions of a Dask array, or over a file larger than memory.

The least-squares update of codebooks needs sums over rows only: B^T B, which counts pairs of codes, and B^T X, the sum
of the rows that use an entry. Both are taken over blocks of `block_rows` rows, counted from the first row of the
matrix, and added up by a tree whose shape depends on the number of blocks alone. Partitions, workers and the order in
which they finish thus change no bit of the result.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

try:
    import dask.array as da
    from dask.delayed import delayed
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"distributed fits need {error.name}; run: pip install 'multicodebook[dask]'", name=error.name
    ) from error

import mcq
from mcq.codebooks import MAX_NORMAL_ROWS
from mcq.errors import ConfigError, InputError
from mcq.kmeans import SAMPLES_PER_ENTRY
from mcq.normal import NormalEquations
from mcq.quantizer import Progress, Quantizer, ignore_progress
from mcq.storage import stored_codebooks
from mcq.validate import as_matrix, in_range
from mcq_ext import cpu

logger = logging.getLogger("mcq")

Q = TypeVar("Q", bound=Quantizer)
Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Kinds whose codes are all that a row needs, and whose codebooks serve all rows alike.
KINDS = ("additive", "residual", "product")
#: Rows that are summed in one go; 32 MiB of a matrix with 128 columns.
BLOCK_ROWS = 1 << 16
TINY = float(np.finfo(np.float64).tiny)


@dataclass
class Statistics:
    """What a pass over the data adds up, of some rows.

    Attributes
    ----------
    equations : list of NormalEquations
        One for each set of codebooks.
    distortion, energy : float
        Squared error of the reconstruction, and squares of the data themselves.
    """

    equations: list[NormalEquations]
    distortion: float
    energy: float


def fit(
    quantizer: Q,
    x: Any,
    *,
    passes: int = 4,
    sample_rows: int | None = None,
    block_rows: int = BLOCK_ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Q:
    """Learn from all rows of a matrix that need not fit into memory.

    The quantizer is first fitted to a sample of rows. Each pass then encodes all rows and solves the least-squares
    problem of the codebooks for all of them at once; a residual quantizer keeps its order, each codebook being fitted
    to what those before it leave. A rotation stays as the sample determined it.

    Parameters
    ----------
    quantizer : Quantizer
        Additive, residual or product, without scales; gets the result.
    x : dask array, array or `open_vectors` result, of shape (n, d)
        Every pass computes it anew: ``persist()`` a dask array that fits into the memory of the workers. Workers must
        see a file under the same path.
    passes : int
        0 leaves the fit to the sample as it is.
    sample_rows : int, optional
        256 K by default. The sample depends on n, this number and the seed alone.
    block_rows : int
        Rows encoded together; a statistic of M K (M K + d) float64 is held for each block at work. Changes the result
        by rounding only.
    seed : int
    progress : callable, optional
        Called as ``progress(done, total)`` after the sample and after each pass.

    Returns
    -------
    The quantizer. The relative error before each refit is logged under "mcq".

    Raises
    ------
    InputError
        If `x` is not a finite real matrix of known size; a bad value is located within its block of rows.
    ConfigError
        If the quantizer has scales or more than 4096 entries in a set of codebooks, or an option is out of range.

    Notes
    -----
    A pass costs an encode of all rows. It runs where Dask runs: on the current ``distributed.Client`` if there is one,
    else on the threads of this process. Partitions, workers, and tasks that are lost and repeated do not change the
    result.

    Examples
    --------
    >>> x = da.from_array(np.random.default_rng(0).standard_normal((1000, 8)), chunks=300)
    >>> q = fit(mcq.AdditiveQuantizer(2, 4, group_size=None), x, sample_rows=500, passes=2)
    >>> encode(q, x)
    dask.array<_encode_block, shape=(1000, 2), dtype=uint8, chunksize=(300, 2), chunktype=numpy.ndarray>
    """
    _require_summable(quantizer)
    passes = in_range(passes, 0, None, "passes")
    x = _as_dask(x, in_range(block_rows, 1, None, "block_rows"))
    n, k = x.shape[0], 1 << quantizer.config.codebook_bits
    size = min(n, SAMPLES_PER_ENTRY * k if sample_rows is None else in_range(sample_rows, 1, None, "sample_rows"))
    progress = progress or ignore_progress
    rows = np.sort(np.random.default_rng(in_range(seed, 0, None, "seed")).choice(n, size, replace=False))
    with _placed(f"in the sample of {size} rows"):
        model = copy.copy(quantizer).fit(x[rows].compute(), seed=seed)
    progress(1, passes + 1)
    blocks = x.rechunk({0: block_rows}).to_delayed().ravel()
    for done in range(passes):
        total = _sum_over(model, blocks, block_rows)
        logger.info("pass %d: relative error %.5f", done + 1, total.distortion / max(total.energy, TINY))
        model = _refitted(model, total.equations)
        progress(done + 2, passes + 1)
    quantizer.arrays = model.arrays
    return quantizer


def encode(quantizer: Quantizer, x: Any, *, block_rows: int = BLOCK_ROWS) -> da.Array:
    """Return the codes of all rows, lazily: nothing is computed before the result is.

    Parameters
    ----------
    quantizer : Quantizer
        Fitted, without scales.
    x : dask array, array or `open_vectors` result, of shape (n, d)
    block_rows : int
        Rows encoded together where `x` is no dask array; partitions are kept as they are.

    Returns
    -------
    dask array of shape (n, number of codes), uint8, or uint16 if a code has more than 8 bits
        The same for every partition. `mcq.Codes.pack` makes codes to be saved from its rows, cut into groups.

    Raises
    ------
    InputError
        If `x` is not a matrix of known size; when computed, if it is not finite.
    ConfigError
        If the quantizer has scales.
    NotFittedError
        If it has no codebooks yet.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> q = mcq.AdditiveQuantizer(2, 4, group_size=None).fit(x)
    >>> codes = encode(q, da.from_array(x, chunks=300)).compute()
    >>> bool((codes == q.encode(x).unpack()[:, 0]).all())
    True
    """
    _require_no_scale(quantizer)
    x = _as_dask(x, in_range(block_rows, 1, None, "block_rows"))
    layout = quantizer.encode(np.zeros((1, x.shape[1])))
    columns, dtype = layout.num_groups * layout.num_codebooks, np.min_scalar_type((1 << layout.codebook_bits) - 1)
    return x.map_blocks(
        _encode_block,
        delayed(copy.copy(quantizer), traverse=False),  # a later fit shall not change codes not yet computed
        chunks=(x.chunks[0], (columns,)),
        meta=np.empty((0, 0), dtype),
    )


def _encode_block(x: NDArray[Any], quantizer: Quantizer) -> NDArray[np.unsignedinteger[Any]]:
    codes = quantizer.encode(x)
    return codes.unpack().reshape(len(x), -1).astype(np.min_scalar_type((1 << codes.codebook_bits) - 1))


def _require_no_scale(quantizer: Quantizer) -> None:
    if quantizer.kind not in KINDS:
        raise ConfigError(
            f"partitions are coded by additive, residual and product quantizers, got {type(quantizer).__name__}"
        )
    scale = getattr(quantizer.config, "scale", "none")
    if scale != "none":
        raise ConfigError(f"codes over partitions have no place for scales; make the quantizer without scale={scale!r}")


def _require_summable(quantizer: Quantizer) -> None:
    _require_no_scale(quantizer)
    entries = quantizer.config.num_codebooks << quantizer.config.codebook_bits
    if entries > MAX_NORMAL_ROWS:
        raise ConfigError(
            f"codebooks must have at most {MAX_NORMAL_ROWS} entries together, because the normal matrix has a row for "
            f"each, got {entries}; choose fewer bits, or fit to a sample"
        )


def _as_dask(x: Any, block_rows: int) -> da.Array:
    """Return a dask matrix whose rows are whole; rows of anything else are cut into blocks."""
    if not isinstance(x, da.Array):
        x = da.from_array(x, chunks=(block_rows, -1), fancy=False)
    if x.ndim != 2 or not all(size > 0 for size in x.shape):
        raise InputError(
            f"x must be a matrix of known size with at least one row and column, got shape {x.shape}; sizes that are "
            "nan become known by x.compute_chunk_sizes()"
        )
    return x.rechunk({1: -1})


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Tell what the row numbers in an error count."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _sum_over(model: Quantizer, blocks: Sequence[Any], block_rows: int) -> Statistics:
    """Return the statistics of all blocks, added up two by two."""
    shared = delayed(model, traverse=False)
    parts = [delayed(_statistics)(shared, block, at * block_rows) for at, block in enumerate(blocks)]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [delayed(_merged)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    total: Statistics = parts[0].compute()
    return total


def _statistics(model: Any, block: NDArray[Any], first_row: int) -> Statistics:
    with _placed(f"in the block of rows from {first_row} on"):
        x = as_matrix(block)
        codes = model.encode(x)
    equations = []
    for codes_nGM, values in _systems(model, x, codes):  # noqa: N806
        own = NormalEquations(*_codebooks(model).shape[1:])
        own.add(codes_nGM, values)
        equations.append(own)
    return Statistics(equations, _sum_of_squares(x - model.decode(codes)), _sum_of_squares(x))


def _systems(model: Any, x: Floats, codes: mcq.Codes) -> list[tuple[Words, Floats]]:
    """Return codes (n, G, M) and values (n, G * g) for each set of codebooks, in units of the gain."""
    words, (sets, _, _, g) = codes.unpack(), _codebooks(model).shape
    n, d = x.shape
    values = np.zeros((n, words.shape[1] * g), np.float32)
    np.divide(x, np.float32(model.gain), out=values[:, :d])
    rotation = getattr(model, "rotation", None)
    if rotation is not None:
        values[:, :d] = cpu.matmul(np.ascontiguousarray(values[:, :d]), np.ascontiguousarray(rotation))
    # One set serves all groups, or each slice has its own.
    parts = zip(np.split(words, sets, axis=1), np.split(values, sets, axis=1), strict=True)
    return [(np.ascontiguousarray(codes), np.ascontiguousarray(part)) for codes, part in parts]


def _codebooks(model: Any) -> Floats:
    """Return codebooks as (sets, M, K, g), in units of the gain."""
    codebooks = model.codebooks.astype(np.float32)
    return codebooks.reshape(-1, *codebooks.shape[-3:])


def _merged(left: Statistics, right: Statistics) -> Statistics:
    """Return the sum; both stay as they are, because a lost task may need them again."""
    equations = copy.deepcopy(left.equations)
    for own, other in zip(equations, right.equations, strict=True):
        own.merge(other)
    return Statistics(equations, left.distortion + right.distortion, left.energy + right.energy)


def _refitted(model: Q, equations: Sequence[NormalEquations]) -> Q:
    """Return the quantizer with the codebooks of least squares, as they are stored."""
    config = model.config
    in_turn = "residual" in (model.kind, getattr(config, "method", None))
    solve = NormalEquations.solve_in_turn if in_turn else NormalEquations.solve
    codebooks = np.stack([solve(own, old) for own, old in zip(equations, _codebooks(model), strict=True)])
    refitted = copy.copy(model)
    shaped = codebooks.reshape(model.arrays["codebooks"].shape)
    refitted.arrays = model.arrays | stored_codebooks(shaped, getattr(config, "codebook_dtype", "float16"))
    return refitted


def _sum_of_squares(x: Floats) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))
