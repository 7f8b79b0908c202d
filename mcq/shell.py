"""Shell quantization: groups of N entries are a gain times an integer vector of one squared norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcq import io
from mcq.gain_shape import GainShapeConfig, GainShapeQuantizer
from mcq.lattices import Shell


@dataclass(frozen=True)
class ShellConfig(GainShapeConfig):
    """Options of `ShellQuantizer`."""

    squared_norm: int = 19

    budget_name = "squared_norm"
    lattice_type = Shell


@io.register("shell")
class ShellQuantizer(GainShapeQuantizer):
    """Groups of N entries as a gain times an integer vector of one length, under any metric; only gains are learned.

    As `PyramidQuantizer`, with sum y_i^2 = R in place of sum |y_i| = K. A sphere suits normal entries, such as weights
    after a rotation: the squared error is 10 to 15 per cent lower than with a pyramid of the same rate.

    Parameters
    ----------
    group_size, gain_bits, scale, gains, groups_per_word, rounds, search_steps
        As in `PyramidQuantizer`.
    squared_norm : int
        R, 1 to 4095, so that a word of groups fits in 64 bits.

    Raises
    ------
    ConfigError
        If an option is out of range, no integer vector has the norm, or a word does not fit in 64 bits.

    Notes
    -----
    Points differ by sign and order from a few leaders, 9 for N = 16 and R = 19, 137 for R = 76: without weights a
    search costs a sort and a product with each of them, for all gains together. With weights it costs O(N R^1.5) for
    each group and gain.

    References
    ----------
    Sablayrolles et al., Spreading vectors for similarity search, ICLR 2019, for leaders of integer shells.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((64, 32))
    >>> q = ShellQuantizer(group_size=16, squared_norm=19, gain_bits=1)
    >>> codes = q.fit_encode(x)
    >>> q.decode(codes).shape, q.bits(codes).payload
    ((64, 32), 2.0)
    """

    kind = "shell"
    config_type = ShellConfig
    config: ShellConfig

    def __init__(
        self,
        group_size: int = 16,
        squared_norm: int = 19,
        gain_bits: int = 1,
        scale: Literal["none", "row"] = "none",
        gains: Literal["lloyd", "theory"] = "lloyd",
        groups_per_word: int = 1,
        rounds: int = 8,
        search_steps: int = 2,
    ) -> None:
        options = (group_size, gain_bits, scale, gains, groups_per_word, rounds, search_steps)
        super().__init__(ShellConfig(*options, squared_norm=squared_norm))
