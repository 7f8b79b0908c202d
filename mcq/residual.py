"""Residual quantization: additive codes whose every prefix is a code of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mcq import io
from mcq.additive import AdditiveConfig, AdditiveQuantizer, Chooser, choose_codes
from mcq.codes import Codes
from mcq.encoders.beam import beam_search
from mcq.encoders.tables import TableSearch
from mcq.energy import Energy
from mcq.kmeans import progressive_residual_kmeans
from mcq.metric import Identity
from mcq.problem import Problem
from mcq.quantizer import Progress
from mcq.scales import Scale, reciprocal, start_scale
from mcq.storage import CodebookDtype, as_stored, stored_codebooks
from mcq.validate import in_range
from mcq_ext import cpu

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]

#: Bytes that the pair tables of a beam may take; where they would take more, codebooks are chosen one after another.
MAX_TABLE_BYTES = 1 << 29


@dataclass(frozen=True)
class ResidualConfig(AdditiveConfig):
    """Options of `ResidualQuantizer`."""

    beam_width: int = 8


@io.register("residual")
class ResidualQuantizer(AdditiveQuantizer):
    """Sums of M entries, each codebook fitted to what those before it leave: decoding may stop after any of them.

    Minimises the same objective as `AdditiveQuantizer` one codebook at a time. Where no column is coupled to another
    (identity or diagonal metric) codes are found by a beam over the codebooks; under a Gram, or where the tables of a
    beam would exceed 512 MiB, each codebook in turn is chosen by error feedback and local search.

    Parameters
    ----------
    num_codebooks, codebook_bits, group_size, scale, rounds
        As in `AdditiveQuantizer`; `rounds` counts for each codebook. For whole vectors a
        round is an iteration of k-means in each of ten steps, from few principal coordinates to all.
    beam_width : int
        Partial codes that the beam keeps, 1 to 256.
    search_steps : int
        Sweeps over the groups of a row, for each codebook, where there is no beam.
    codebook_dtype : "float16" or "int8"
        As in `AdditiveQuantizer`.

    Raises
    ------
    ConfigError
        If an option is out of range.

    References
    ----------
    Chen, Guan and Wang, Approximate nearest neighbor search by residual vector quantization, Sensors 2010.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32)
    >>> q = ResidualQuantizer(num_codebooks=3, codebook_bits=4)
    >>> codes = q.fit_encode(x)
    >>> errors = [Identity().relative_error(x, q.decode(codes, num_codebooks=m)) for m in (1, 2, 3)]
    >>> errors == sorted(errors, reverse=True)
    True
    """

    kind = "residual"
    config_type = ResidualConfig
    config: ResidualConfig

    def __init__(
        self,
        num_codebooks: int = 2,
        codebook_bits: int = 8,
        group_size: int | None = 8,
        scale: Scale = "none",
        rounds: int = 8,
        beam_width: int = 8,
        search_steps: int = 3,
        codebook_dtype: CodebookDtype = "float16",
    ) -> None:
        super().__init__(
            num_codebooks, codebook_bits, group_size, scale, rounds, beam_width, search_steps, codebook_dtype
        )
        self.config = ResidualConfig(**dataclasses.asdict(self.config))

    def decode(self, codes: Codes, num_codebooks: int | None = None) -> Floats:
        """Return the reconstruction (n, d) from the first `num_codebooks` codes of each group, or from all.

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        InputError
            If the codes were made with other options.
        ConfigError
            If `num_codebooks` is not from 1 to M.
        """
        self._require_fitted()
        self._check_codes(codes)
        total = self.config.num_codebooks
        first = total if num_codebooks is None else in_range(num_codebooks, 1, total, "num_codebooks")
        return self._decode(codes.unpack()[:, :, :first], codes)

    def prefix(self, num_codebooks: int) -> ResidualQuantizer:
        """Return the quantizer of the first codebooks alone, which decodes ``codes.prefix(num_codebooks)``.

        Raises
        ------
        NotFittedError
            If there are no codebooks yet.
        ConfigError
            If `num_codebooks` is not from 1 to M.
        """
        first = in_range(num_codebooks, 1, self.config.num_codebooks, "num_codebooks")
        config = replace(self.config, num_codebooks=first)
        arrays = self.arrays | stored_codebooks(self.codebooks[:first], config.codebook_dtype)
        return ResidualQuantizer._from_container(dataclasses.asdict(config), arrays)

    def _learn(
        self, problem: Problem, scale: Floats, rng: np.random.Generator, progress: Progress
    ) -> tuple[NDArray[np.float16], Words, Floats]:
        config = self.config
        if self._beams(problem) and self._is_plain(problem):
            found = progressive_residual_kmeans(
                problem.x, config.num_codebooks, config.num_entries, config.rounds, rng, progress
            )
            codebooks = as_stored(found, config.codebook_dtype)
            return codebooks, *self._chooser(problem, codebooks.astype(np.float32))(problem)
        stage = AdditiveQuantizer(
            num_codebooks=1,
            codebook_bits=config.codebook_bits,
            group_size=config.group_size,
            scale=config.scale,
            rounds=config.rounds,
            codebook_dtype=config.codebook_dtype,
        )
        rest, stored = problem, []
        for m in range(config.num_codebooks):
            codebook, codes, scale = stage._learn(
                rest,
                scale,
                rng,
                _stage_progress(progress, m, config.num_codebooks),
            )
            stored.append(codebook[0])
            rest = _without(rest, codes, codebook.astype(np.float32), scale)
            # All codebooks share the scale that the first one found.
            stage.config = replace(stage.config, scale="none")
        codebooks = np.stack(stored)
        return codebooks, *self._chooser(problem, codebooks.astype(np.float32))(problem)

    def _beams(self, problem: Problem) -> bool:
        """Return whether codes are found by a beam: nothing couples the groups, and its tables fit."""
        config = self.config
        fits = config.num_codebooks * (config.num_codebooks - 1) * 2 * config.num_entries**2 <= MAX_TABLE_BYTES
        return not problem.metric.couples and config.num_codebooks > 1 and fits

    def _chooser(self, problem: Problem, codebooks: Floats) -> Chooser:
        if not self._beams(problem):
            return lambda part: self._in_turn(part, codebooks)
        tables = TableSearch(codebooks, moves=False) if isinstance(problem.metric, Identity) else None
        return lambda part: self._by_beam(part, codebooks, tables)

    def _in_turn(self, problem: Problem, codebooks: Floats) -> tuple[Words, Floats]:
        """Return codes and scales, one codebook after another."""
        kind, scale, stages = self.config.scale, start_scale(problem, self.config.scale), []
        for codebook in codebooks[:, None]:
            codes, scale = choose_codes(problem, codebook, scale, kind, self.config)
            problem, kind = _without(problem, codes, codebook, scale), "none"
            stages.append(codes)
        return np.concatenate(stages, axis=2), scale

    def _by_beam(self, problem: Problem, codebooks: Floats, tables: TableSearch | None) -> tuple[Words, Floats]:
        """Return codes (n, G, M), each group by a beam of its own, and the scales that the first codebook finds.

        `tables` are those of the identity.
        """
        config, scale = self.config, start_scale(problem, self.config.scale)
        if config.scale != "none":
            scale = choose_codes(problem, codebooks[:1], scale, config.scale, config)[1]
        n, groups, g = len(problem.x), problem.num_groups, problem.group_size
        inverse = reciprocal(scale)
        targets = problem.x.reshape(n, groups, g) * inverse[:, :, None]
        if tables is not None:
            return tables.choose(targets.reshape(-1, g), config.beam_width, []).reshape(n, groups, -1), scale
        codes = np.empty((n, groups, len(codebooks)), np.uint16)
        for j in range(groups):
            h = problem.metric.block(slice(j * g, (j + 1) * g))
            codes[:, j] = beam_search(Energy(codebooks, h), cpu.matmul(targets[:, j], h), config.beam_width)
        return codes, scale


def _stage_progress(progress: Progress, stage: int, num_stages: int) -> Progress:
    """Count the steps of one stage as a part of all."""
    return lambda done, total: progress(stage * total + done, num_stages * total)


def _without(problem: Problem, codes: Words, codebook: Floats, scale: Floats) -> Problem:
    """Return the problem of coding what one codebook leaves."""
    decoded = cpu.decode(codes, codebook, np.broadcast_to(scale, codes.shape[:2]))
    return replace(problem, x=problem.x - decoded)
