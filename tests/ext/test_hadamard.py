"""The randomised Hadamard transform of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from mcq_ext import cpu

#: Powers of two on both sides of every width of a vector and of every number of levels in a pass, and others.
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 16, 19, 32, 33, 64, 96, 127, 128, 129, 256, 512, 576, 1000, 1024, 2048, 4096]


def random_signs(steps, d, seed=0):
    return np.random.default_rng(seed).choice(np.float32([-1, 1]), (steps, d))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("inverse", [False, True])
def test_bits_are_those_of_the_specification(assert_same, d, steps, inverse):
    x, signs = np.random.default_rng(d).standard_normal((11, d)).astype(np.float32), random_signs(steps, d)
    before = x.copy()
    assert_same(lambda module: module.hadamard(x, signs, inverse))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("inverse", [False, True])
def test_result_may_replace_the_input(assert_same, inverse):
    x, signs = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32), random_signs(4, 70)

    def in_place(module):
        out = x.copy()
        assert module.hadamard(out, signs, inverse, out=out) is out
        return out

    np.testing.assert_array_equal(assert_same(in_place), cpu.hadamard(x, signs, inverse))


@given(st.integers(1, 300), st.integers(1, 6), st.integers(0, 2**32))
def test_matrix_is_orthogonal_and_undone(d, steps, seed):
    signs = random_signs(steps, d, seed)
    matrix = cpu.hadamard(np.eye(d, dtype=np.float32), signs)
    np.testing.assert_allclose(matrix.astype(np.float64) @ matrix.T, np.eye(d), atol=3e-6)
    np.testing.assert_allclose(cpu.hadamard(matrix, signs, inverse=True), np.eye(d), atol=3e-6)


@pytest.mark.parametrize("d", [1, 2, 8, 64, 256])
def test_one_step_of_a_power_of_two_is_the_hadamard_matrix(d):
    signs = random_signs(1, d)
    matrix = cpu.hadamard(np.eye(d, dtype=np.float32), signs)
    np.testing.assert_allclose(matrix, signs.T * hadamard(d) / np.sqrt(d), atol=1e-6)
