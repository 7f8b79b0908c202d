"""Tables of a group against the quadratic form they stand for."""

import itertools

import numpy as np
import pytest

from mcq.energy import MAX_PAIR_BYTES, Energy, has_pair_tables

N, M, K, G = 6, 3, 5, 4


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    codebooks, x = rng.standard_normal((M, K, G)).astype(np.float32), rng.standard_normal((N, G)).astype(np.float32)
    factor = rng.standard_normal((G, 2 * G))
    return codebooks, x, (factor @ factor.T).astype(np.float32)


def test_tables_sum_to_the_distortion_up_to_a_constant(parts):
    codebooks, x, h = parts
    energy = Energy(codebooks, h)
    unary = [energy.unary(x @ h, m) for m in range(M)]
    pair = [energy.pair(m) for m in range(M)]
    assert [table.shape for table in pair[1:]] == [(K, K), (2 * K, K)]
    constant = np.einsum("ng,gh,nh->n", x, h, x)
    for choice in itertools.product(range(K), repeat=M):
        error = x - sum(codebooks[m, choice[m]] for m in range(M))
        cost = sum(unary[m][:, choice[m]] for m in range(M))
        cost += sum(pair[m][o * K + choice[o], choice[m]] for m in range(M) for o in range(m))
        np.testing.assert_allclose(cost + constant, np.einsum("ng,gh,nh->n", error, h, error), rtol=1e-4, atol=1e-3)


def test_pair_tables_exist_up_to_their_memory_bound():
    assert has_pair_tables(2, 256)
    assert not has_pair_tables(2, 1 << 16)
    largest = max(k for bits in range(1, 17) if has_pair_tables(2, k := 1 << bits))
    assert 4 * largest**2 <= MAX_PAIR_BYTES < 16 * largest**2


def test_pair_tables_are_bounded_together():
    assert has_pair_tables(64, 256)
    assert has_pair_tables(4, 4096)
    assert not has_pair_tables(8, 4096)
