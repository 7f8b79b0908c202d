"""Vectors near a random subspace, of different lengths, and quantizers of every kind that FAISS can hold."""

import numpy as np
import pytest

import mcq

D = 18  # not divisible by the four slices below
FAMILIES = {
    "additive": lambda bits: mcq.AdditiveQuantizer(3, bits, group_size=None, rounds=2),
    "residual": lambda bits: mcq.ResidualQuantizer(3, bits, group_size=None, rounds=2),
    "pq": lambda bits: mcq.ProductQuantizer(num_splits=4, codebook_bits=bits, rounds=2),
    "opq": lambda bits: mcq.ProductQuantizer(num_splits=4, codebook_bits=bits, rotation="random", rounds=2),
    "prq": lambda bits: mcq.ProductQuantizer(
        num_splits=4, num_codebooks=2, codebook_bits=bits, method="residual", rotation="random", rounds=2
    ),
    "plsq": lambda bits: mcq.ProductQuantizer(num_splits=3, num_codebooks=2, codebook_bits=bits, rounds=2),
}


def make_vectors(n, seed):
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(0).standard_normal((6, D))
    x = rng.standard_normal((n, 6)) @ basis + 0.5 * rng.standard_normal((n, D))
    return (x * rng.uniform(0.7, 1.3, (n, 1))).astype(np.float32)


@pytest.fixture(scope="session")
def x():
    return make_vectors(700, seed=1)


@pytest.fixture(scope="session")
def queries():
    return make_vectors(30, seed=2)


@pytest.fixture(scope="session")
def coarse(x):
    return x[:5] / 2


@pytest.fixture(scope="session")
def lists(x, coarse):
    return ((x[:, None] - coarse) ** 2).sum(axis=2).argmin(axis=1)


@pytest.fixture(scope="session")
def encoded(x, coarse, lists):
    """Return a function: family, bits, whether relative to centroids -> quantizer, codes, reconstruction."""
    made = {}

    def get(family, bits, is_ivf):
        key = family, bits, is_ivf
        if key not in made:
            base = coarse[lists] if is_ivf else 0
            quantizer = FAMILIES[family](bits)
            codes = quantizer.fit_encode(x - base, seed=0)
            made[key] = quantizer, codes, quantizer.decode(codes) + base
        return made[key]

    return get
