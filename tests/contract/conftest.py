"""Every quantizer, in several configurations, under every metric. A new quantizer needs a line in `QUANTIZERS`."""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

import mcq
import mcq_ext

N, D = 101, 19
RNG = np.random.default_rng(0)
MIXING = RNG.standard_normal((D, D)) * np.exp(RNG.standard_normal(D) / 2)
X = (RNG.standard_normal((N, D)) + RNG.standard_normal((N, 1)) / 2).astype(np.float32)
WEIGHTS = np.exp(RNG.standard_normal(D))
INPUTS = RNG.standard_normal((60, D)) @ MIXING
FACTOR = RNG.standard_normal((D, 2))

METRICS = {
    "identity": mcq.Identity(),
    "diagonal": mcq.Diagonal(WEIGHTS),
    "gram": mcq.Gram(INPUTS.T @ INPUTS, damping=0.01),
    "lowrank": mcq.LowRank(WEIGHTS, FACTOR),
}

#: num_codebooks, codebook_bits, group_size, scale
OPTIONS = [
    (1, 8, 8, "none"),
    (1, 4, 3, "row"),
    (1, 1, None, "group"),
    (2, 8, 8, "row"),
    (2, 4, 8, "group"),
    (2, 1, 1, "none"),
    (3, 4, None, "none"),
    (3, 1, 3, "group"),
    (4, 4, 8, "row"),
    (4, 8, 3, "none"),
]
#: Quantizers without learned codebooks, with their options in order.
WITHOUT_CODEBOOKS = [
    (mcq.ScalarQuantizer, (3, 8, True, False)),
    (mcq.ScalarQuantizer, (4, None, False, True)),
    (mcq.ScalarQuantizer, (2, 5, True, True)),
    (mcq.CompandedQuantizer, (4.0, 512, "best")),
    (mcq.CompandedQuantizer, (5.5, 25, "lloyd")),
    (mcq.CompandedQuantizer, (3.0, 50, "companded")),
    (mcq.GridQuantizer, (1, 4)),
    (mcq.GridQuantizer, (2, 256, 1)),
    (mcq.GridQuantizer, (4, 1024, 0)),
    (mcq.PyramidQuantizer, (8, 6, 1, "none", "lloyd", 1)),
    (mcq.PyramidQuantizer, (4, 5, 2, "row", "lloyd", 3)),
    (mcq.PyramidQuantizer, (16, 23, 3, "none", "theory", 1)),
    (mcq.PyramidQuantizer, (3, 2, 0, "row", "lloyd", 15)),
    (mcq.ShellQuantizer, (8, 12, 1, "row", "lloyd", 1)),
    (mcq.ShellQuantizer, (4, 10, 2, "none", "lloyd", 4)),
    (mcq.ShellQuantizer, (16, 19, 1, "none", "theory", 2)),
    (mcq.ShellQuantizer, (1, 4, 3, "row", "lloyd", 1)),
    (mcq.TrellisQuantizer, (2, 9, "row", 16)),
    (mcq.TrellisQuantizer, (3.4, 9, "none", 20)),
    (mcq.TrellisQuantizer, (1, 9, "none", 1)),
    (mcq.TrellisQuantizer, (5, 10, "row", 7)),
    (mcq.BandedQuantizer, (mcq.GridQuantizer, 1, (2, 4, 16))),
    (mcq.BandedQuantizer, (mcq.ScalarQuantizer, 1, (2, 4))),
    (mcq.BandedQuantizer, (mcq.ShellQuantizer, 3, (9, 14, 22, 30))),
    (mcq.BandedQuantizer, (mcq.CompandedQuantizer, None, (4.0, 5.5))),
]
QUANTIZERS = [mcq.AdditiveQuantizer, mcq.ResidualQuantizer, mcq.ProductQuantizer, mcq.RelaxedQuantizer]
ROUNDS = 3
EXTENTS = (1.0, 0.7, 0.7, 0.3)


class Case(NamedTuple):
    """One quantizer under one metric."""

    quantizer: type
    options: tuple
    metric_name: str

    @property
    def metric(self):
        return METRICS[self.metric_name]

    def new(self):
        if self.quantizer is mcq.BandedQuantizer:
            kind, first, sizes = self.options
            parts = {
                mcq.GridQuantizer: lambda size: (first, size),
                mcq.ShellQuantizer: lambda size: (first, size, 1, "row"),
            }.get(kind, lambda size: (size,))
            return mcq.BandedQuantizer([kind(*parts(size)) for size in sizes])
        if not self.has_codebooks:
            return self.quantizer(*self.options)
        num_codebooks, codebook_bits, group_size, scale = self.options
        if self.quantizer is mcq.ProductQuantizer:
            kind = {"method": "residual", "rotation": "learned"} if codebook_bits == 4 else {"rotation": "random"}
            if self.metric_name != "identity":
                kind["rotation"] = "none"
            return self.quantizer(-(-D // (group_size or D)), num_codebooks, codebook_bits, rounds=ROUNDS, **kind)
        if self.quantizer is mcq.RelaxedQuantizer:
            extents = EXTENTS[:num_codebooks]
            return self.quantizer(num_codebooks, codebook_bits, group_size, scale, rounds=ROUNDS, extents=extents)
        return self.quantizer(num_codebooks, codebook_bits, group_size, scale, rounds=ROUNDS)

    @property
    def has_codebooks(self):
        return self.quantizer in QUANTIZERS

    @property
    def is_random(self):
        """Whether the seed matters."""
        return self.has_codebooks or mcq.GridQuantizer in (self.quantizer, self.options[0])

    @property
    def row_bits(self):
        """Bits of the codes of a row; None where the data decide."""
        if self.quantizer in (mcq.CompandedQuantizer, mcq.BandedQuantizer):
            return None
        if self.quantizer is mcq.ScalarQuantizer:
            return D * self.options[0]
        if self.quantizer is mcq.GridQuantizer:
            return -(-D // self.options[0]) * (self.options[1] - 1).bit_length()
        if self.quantizer is mcq.TrellisQuantizer:
            return int(D * self.options[0])
        if not self.has_codebooks:  # a gain and a point of a lattice
            size, _, gain_bits, _, _, per_word = self.options
            word = (self.new().lattice.count << gain_bits) ** per_word
            return math.ceil(D / size / per_word) * (word - 1).bit_length()
        num_codebooks, codebook_bits, group_size, _ = self.options
        groups = -(-D // (group_size or D))
        extents = EXTENTS[:num_codebooks] if self.quantizer is mcq.RelaxedQuantizer else (1,) * num_codebooks
        return codebook_bits * sum(max(1, round(extent * groups)) for extent in extents)

    @property
    def wrong_option(self):
        """An option that the arrays of this quantizer do not fit, where there is one."""
        if self.has_codebooks:
            return {"num_codebooks": 7}
        return {"gain_bits": 7} if self.quantizer in (mcq.PyramidQuantizer, mcq.ShellQuantizer) else {}

    @property
    def exists(self):
        """Product quantizers know neither metrics that couple columns nor scales, relaxed ones no scales of groups."""
        if self.quantizer is mcq.RelaxedQuantizer:
            return self.options[3] != "group"
        plain = self.options[3] == "none" and not self.metric.couples
        return plain or self.quantizer is not mcq.ProductQuantizer

    def fitted(self):
        """The quantizer fitted to `X`, and the codes of the fit."""
        return fit(self)

    def distortion(self, x_hat):
        return self.metric.distortion(X, x_hat)

    def __str__(self):
        return "-".join(map(str, (self.quantizer.kind, *self.options, self.metric_name)))


@functools.cache
def fit(case):
    quantizer = case.new()
    return quantizer, quantizer.fit_encode(X, case.metric)


EVERY = [
    *(case for case in itertools.starmap(Case, itertools.product(QUANTIZERS, OPTIONS, METRICS)) if case.exists),
    *(Case(*other, metric) for other, metric in itertools.product(WITHOUT_CODEBOOKS, METRICS)),
]
#: Each quantizer and each metric with few options, for what has little to do with the options.
FEW = [OPTIONS[1], OPTIONS[4], OPTIONS[6], OPTIONS[8], *(options for _, options in WITHOUT_CODEBOOKS[1::3])]
SOME = [case for case in EVERY if case.options in FEW]


@pytest.fixture(params=EVERY, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=SOME, ids=str)
def some_case(request):
    return request.param


@pytest.fixture(params=[case for case in SOME if case.metric_name != "identity"], ids=str)
def weighted_case(request):
    return request.param


@pytest.fixture(params=[case for case in SOME if case.wrong_option], ids=str)
def sized_case(request):
    return request.param


@pytest.fixture
def x():
    return X.copy()


@pytest.fixture(autouse=True)
def _restore_settings():
    level, threads = mcq_ext.simd_level(), mcq_ext.num_threads()
    yield
    mcq_ext.set_simd_level(level)
    mcq_ext.set_num_threads(threads)
