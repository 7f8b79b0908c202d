"""Pyramid vector quantization: groups of N entries are a gain times an integer vector of K pulses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcq import io
from mcq.gain_shape import GainShapeConfig, GainShapeQuantizer
from mcq.lattices import Pyramid


@dataclass(frozen=True)
class PyramidConfig(GainShapeConfig):
    """Options of `PyramidQuantizer`."""

    pulses: int = 11

    budget_name = "pulses"
    lattice_type = Pyramid


@io.register("pyramid")
class PyramidQuantizer(GainShapeQuantizer):
    """Groups of N entries as a gain times a point of a pyramid, under any metric; only the gains are learned.

    Minimises sum over rows of (x - x^)^T H (x - x^) with x^_j = s * gain_table[k_j] * y_j for group j and y_j any
    integer vector with sum |y_i| = K. Gain and point are found jointly and, where H is diagonal, exactly. A group takes
    the bits of 2**gain_bits * V codes, where V is the number of points, and no codebook is stored. Best on entries
    with heavy tails, such as a Laplacian; for normal ones see `ShellQuantizer`.

    Parameters
    ----------
    group_size : int
        N, 1 to 256; the last group of a row is padded where N does not divide d.
    pulses : int
        K, 1 to 4095, so that a word of groups fits in 64 bits.
    gain_bits : int
        Bits of a gain, 0 to 8.
    scale : "none" or "row"
        Whether rows have a factor s of their own.
    gains : "lloyd" or "theory"
        The gain table is the one of least distortion on the data of the fit, or the quantiles of the norm of a normal
        vector times one factor.
    groups_per_word : int
        Groups whose codes are joined into one number before they are rounded up to whole bits.
    rounds : int
        Alternations of codes and gains in a fit.
    search_steps : int
        Under a Gram, sweeps over the groups of a row after the first pass of an `encode`.

    Raises
    ------
    ConfigError
        If an option is out of range, or a word does not fit in 64 bits; the largest K that fits is named.

    Notes
    -----
    A search costs O(n d 2**gain_bits), a Gram O(n d^2) a sweep; memory is a few copies of x. Same data, same result at
    every thread count, SIMD level and batch split.

    References
    ----------
    Fischer, A pyramid vector quantizer, IEEE Trans. Information Theory 1986. Cover, Enumerative source encoding, 1973.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).laplace(size=(64, 32))
    >>> q = PyramidQuantizer(group_size=16, pulses=11, gain_bits=1)
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, q.bits(codes).payload
    ((64, 32), 2.0)
    """

    kind = "pyramid"
    config_type = PyramidConfig
    config: PyramidConfig

    def __init__(
        self,
        group_size: int = 16,
        pulses: int = 11,
        gain_bits: int = 1,
        scale: Literal["none", "row"] = "none",
        gains: Literal["lloyd", "theory"] = "lloyd",
        groups_per_word: int = 1,
        rounds: int = 8,
        search_steps: int = 2,
    ) -> None:
        options = (group_size, gain_bits, scale, gains, groups_per_word, rounds, search_steps)
        super().__init__(PyramidConfig(*options, pulses=pulses))
