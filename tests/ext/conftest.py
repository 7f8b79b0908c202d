"""Runs kernels at every SIMD level and thread count."""

import numpy as np
import pytest

import mcq_ext
from mcq_ext import cpu, reference

THREADS = [1, 2, 3, 5]


@pytest.fixture(autouse=True, scope="session")
def _restore_settings():
    level, threads = mcq_ext.simd_level(), mcq_ext.num_threads()
    yield
    mcq_ext.set_simd_level(level)
    mcq_ext.set_num_threads(threads)


@pytest.fixture(scope="session")
def assert_same():
    """Return a function that compares kernels with their specification, bit by bit.

    ``assert_same(compute)`` calls ``compute(module)`` with `mcq_ext.reference` and, for each SIMD level and
    number of threads, with `mcq_ext.cpu`, or with other twins; it returns the first result, an array or a tuple of
    arrays.
    """

    def check(compute, kernels=cpu, specification=reference):
        expected = compute(specification)
        for level in mcq_ext.simd_levels():
            mcq_ext.set_simd_level(level)
            for threads in THREADS:
                mcq_ext.set_num_threads(threads)
                compare(compute(kernels), expected, f"{level}, {threads} threads")
        return expected

    def compare(found, expected, where):
        if isinstance(expected, tuple):
            assert len(found) == len(expected)
            for pair in zip(found, expected, strict=True):
                compare(*pair, where)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=where, strict=True)

    return check
