"""The Cholesky factorisation and what is solved with it."""

import numpy as np
import pytest

from mcq_ext import cpu


def positive_definite(n, seed=0):
    a = np.random.default_rng(seed).standard_normal((n, n + 3))
    return a @ a.T


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 65, 150])
def test_factor_is_that_of_the_specification(assert_same, n):
    a = positive_definite(n)
    u = assert_same(lambda module: module.cholesky(a))
    np.testing.assert_allclose(u.T @ u, a, rtol=1e-10, atol=1e-10 * np.trace(a))
    np.testing.assert_array_equal(u, np.triu(u))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (40, 1), (70, 8)])
def test_solution_solves(assert_same, n, k):
    a, b = positive_definite(n), np.random.default_rng(1).standard_normal((n, k))
    u = cpu.cholesky(a)
    x = assert_same(lambda module: module.cholesky_solve(u, b))
    np.testing.assert_allclose(a @ x, b, atol=1e-6)


@pytest.mark.parametrize("bad", [0, 40, 79])
def test_a_matrix_that_is_not_positive_definite_is_refused(bad):
    a = positive_definite(80)
    a[bad, bad] = -1
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        cpu.cholesky(a)


def test_the_input_stays_as_it_was():
    a = positive_definite(50)
    before = a.copy()
    cpu.cholesky(a[::-1, ::-1])
    np.testing.assert_array_equal(a, before)
