"""Every quantizer, in several configurations, under every metric. A new quantizer needs a line in `QUANTIZERS`."""

import functools
import itertools
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
QUANTIZERS = [mcq.AdditiveQuantizer, mcq.ResidualQuantizer, mcq.ProductQuantizer]
#: What has no codebooks: group_size, pulses or squared_norm, gain_bits, scale, gains, groups_per_word
LATTICES = {
    mcq.PyramidQuantizer: [
        (8, 6, 1, "none", "lloyd", 1),
        (4, 5, 2, "row", "lloyd", 3),
        (16, 23, 3, "none", "theory", 1),
        (3, 2, 0, "row", "lloyd", 15),
    ],
    mcq.ShellQuantizer: [
        (8, 12, 1, "row", "lloyd", 1),
        (4, 10, 2, "none", "lloyd", 4),
        (16, 19, 1, "none", "theory", 2),
        (1, 4, 3, "row", "lloyd", 1),
    ],
}
ROUNDS = 3


class Case(NamedTuple):
    """One quantizer under one metric."""

    quantizer: type
    options: tuple
    metric_name: str

    @property
    def metric(self):
        return METRICS[self.metric_name]

    @property
    def is_lattice(self):
        return self.quantizer in LATTICES

    @property
    def num_splits(self):
        """Sets of codebooks: one for each slice of a product quantizer, else one for all groups."""
        return -(-D // (self.options[2] or D)) if self.quantizer is mcq.ProductQuantizer else 1

    @property
    def costs(self):
        """Bits of a row of codes, bytes of the scales of a row, and bytes that are stored once."""
        if self.is_lattice:
            size, _, gain_bits, scale, _, per_word = self.options
            bits = ((self.new().lattice.count << gain_bits) ** per_word - 1).bit_length()
            groups = -(-D // size)
            return -(-groups // per_word) * bits, 2 * (scale == "row"), 2 * 2**gain_bits + 4
        num_codebooks, codebook_bits, group_size, scale = self.options
        groups = -(-D // (group_size or D))
        shared = self.num_splits * 2 * num_codebooks * 2**codebook_bits * (group_size or D) + 4
        if self.quantizer is mcq.ProductQuantizer:  # slices are as even as they can be, and there is a rotation
            product = self.fitted()[0]
            shared = product.codebooks.nbytes + 4 + (0 if product.rotation is None else 4 * D * D)
        return groups * num_codebooks * codebook_bits, 2 * {"none": 0, "row": 1, "group": groups}[scale], shared

    def new(self):
        if self.is_lattice:
            return self.quantizer(*self.options, rounds=ROUNDS)
        num_codebooks, codebook_bits, group_size, scale = self.options
        if self.quantizer is mcq.ProductQuantizer:
            kind = {"method": "residual", "rotation": "learned"} if codebook_bits == 4 else {"rotation": "random"}
            if self.metric_name != "identity":
                kind["rotation"] = "none"
            return self.quantizer(self.num_splits, num_codebooks, codebook_bits, rounds=ROUNDS, **kind)
        return self.quantizer(num_codebooks, codebook_bits, group_size, scale, rounds=ROUNDS)

    @property
    def exists(self):
        """Product quantizers know neither metrics that couple columns nor scales."""
        plain = self.options[3] == "none" and not self.metric.couples
        return plain or self.quantizer is not mcq.ProductQuantizer

    @property
    def wrong_option(self):
        """An option for which the arrays of this quantizer are too few."""
        return {"gain_bits": 7} if self.is_lattice else {"num_codebooks": 7}

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


WITH_CODEBOOKS = list(itertools.product(QUANTIZERS, OPTIONS, METRICS))
WITHOUT = [(kind, options, metric) for kind in LATTICES for options in LATTICES[kind] for metric in METRICS]
EVERY = [case for case in itertools.starmap(Case, WITH_CODEBOOKS + WITHOUT) if case.exists]
#: Each quantizer and each metric with few options, for what has little to do with the options.
SOME = [
    case
    for case in EVERY
    if case.options in (LATTICES[case.quantizer][:2] if case.is_lattice else (OPTIONS[1], OPTIONS[4], OPTIONS[6]))
]


@pytest.fixture(params=EVERY, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=SOME, ids=str)
def some_case(request):
    return request.param


@pytest.fixture(params=[case for case in SOME if case.metric_name != "identity"], ids=str)
def weighted_case(request):
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
