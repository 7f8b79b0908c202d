"""Kernels of trellis codes against their specification, and against trying every code."""

import functools
import inspect
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcq_ext import cpu_trellis, reference_trellis

SEEDS = st.integers(0, 2**32)
ROWS = st.sampled_from([1, 2, 7, 9, 17])
STATE_BITS = st.sampled_from([9, 10, 12])


@pytest.fixture(scope="session")
def same(assert_same):
    return functools.partial(assert_same, kernels=cpu_trellis, specification=reference_trellis)


def public_functions(module):
    members = inspect.getmembers(module, inspect.isfunction)
    return {name for name, f in members if f.__module__ == module.__name__ and not name.startswith("_")}


def test_modules_have_the_same_functions():
    names = public_functions(reference_trellis)
    assert names == public_functions(cpu_trellis)
    for name in names:
        assert inspect.signature(getattr(cpu_trellis, name)) == inspect.signature(getattr(reference_trellis, name))


def test_modules_have_the_same_constants():
    assert (cpu_trellis.BLOCK, cpu_trellis.WINDOW) == (reference_trellis.BLOCK, reference_trellis.WINDOW)


def make(seed, n, d, state_bits):
    """Rows of many kinds: normal, tied, zero, tiny and huge; with scales, steps, values and weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * rng.choice([0, 1e-42, 1, 1, 1, 1e3, 1e12], (n, 1))
    x[rng.random(n) < 0.2] = rng.integers(-2, 3, d)
    inverse = np.where(rng.random(n) < 0.1, 0, np.exp(rng.standard_normal(n)))
    value = rng.permutation(np.linspace(-2, 2, 1 << state_bits)).round(int(rng.integers(0, 4)))
    weight = np.exp(2 * rng.standard_normal(d)) * (rng.random(d) > 0.1)
    widths = rng.integers(1, 6, d) if rng.random() < 0.5 else np.full(d, rng.integers(1, 6))
    offset = np.append(0, widths.cumsum()).astype(np.uint32)
    x, inverse, value, weight = (a.astype(np.float32) for a in (x, inverse, value, weight))
    return x, inverse, offset, value, weight


@settings(max_examples=25)
@given(SEEDS, ROWS, st.integers(1, 40), STATE_BITS)
def test_trellis_search(same, seed, n, d, state_bits):
    same(lambda kernels: kernels.trellis_search(*make(seed, n, d, state_bits)))


@settings(max_examples=25)
@given(SEEDS, ROWS, st.sampled_from([1, 15, 16, 17, 70, 100]), STATE_BITS, st.sampled_from([1, 3, 16, 37]))
def test_trellis_beam(same, seed, n, d, state_bits, width):
    feedback = (np.random.default_rng(seed).standard_normal((d, d)) / 4).astype(np.float32)
    same(lambda kernels: kernels.trellis_beam(*make(seed, n, d, state_bits), feedback, width))


@settings(max_examples=25)
@given(SEEDS, ROWS, st.integers(1, 40), STATE_BITS)
def test_trellis_decode(same, seed, n, d, state_bits):
    _, scale, offset, value, _ = make(seed, n, d, state_bits)
    packed = np.random.default_rng(seed).integers(0, 256, (n, -(-int(offset[-1]) // 8)), np.uint8)
    packed[:, -1] &= (1 << (int(offset[-1]) - 1) % 8 + 1) - 1
    same(lambda kernels: kernels.trellis_decode(packed, offset, value, scale))


NO_ROWS = {
    "trellis_search": lambda kernels: kernels.trellis_search(*make(0, 0, 4, 9)),
    "trellis_beam": lambda kernels: kernels.trellis_beam(*make(0, 0, 4, 9), np.zeros((4, 4), np.float32), 4),
    "trellis_decode": lambda kernels: kernels.trellis_decode(
        np.empty((0, 1), np.uint8), make(0, 1, 2, 9)[2], make(0, 1, 2, 9)[3], np.empty(0, np.float32)
    ),
}


@pytest.mark.parametrize("compute", NO_ROWS.values(), ids=NO_ROWS)
def test_no_rows(same, compute):
    same(compute)


def every_code(offset, value):
    """The values (codes, d) of all strings of bits."""
    bits = int(offset[-1])
    packed = np.array(list(itertools.product(range(256), repeat=-(-bits // 8))), np.uint8)[:, ::-1]
    packed = np.ascontiguousarray(packed[: 1 << bits])
    return reference_trellis.trellis_decode(packed, offset, value, np.ones(len(packed), np.float32))


@pytest.mark.parametrize("widths", [[1] * 10, [2] * 6, [3, 4, 5], [1, 2, 1, 2, 1, 2]], ids=str)
def test_no_code_is_better(widths):
    rng = np.random.default_rng(0)
    offset = np.append(0, np.cumsum(widths)).astype(np.uint32)
    x = rng.standard_normal((50, len(widths))).astype(np.float32)
    value, weight = rng.standard_normal(512, np.float32), rng.random(len(widths), np.float32)
    inverse = np.exp(rng.standard_normal(50) / 4).astype(np.float32)
    codes = cpu_trellis.trellis_search(x, inverse, offset, value, weight)
    found = cpu_trellis.trellis_decode(codes, offset, value, np.ones(50, np.float32))
    scaled = x * inverse[:, None]
    every = (weight * np.square(scaled[:, None] - every_code(offset, value))).sum(2)
    np.testing.assert_allclose((weight * np.square(scaled - found)).sum(1), every.min(1), rtol=1e-5)


def test_a_wide_beam_is_exact():
    """As many paths as codes: nothing is lost, whatever errors ask of later entries."""
    rng = np.random.default_rng(0)
    offset = np.arange(0, 13, 2, dtype=np.uint32)
    x, one = rng.standard_normal((20, 6)).astype(np.float32), np.ones(20, np.float32)
    value, weight = rng.standard_normal(512, np.float32), rng.random(6, np.float32)
    feedback = rng.standard_normal((6, 6)).astype(np.float32)
    codes = cpu_trellis.trellis_beam(x, one, offset, value, weight, feedback, 1 << 12)
    found = cpu_trellis.trellis_decode(codes, offset, value, one)
    whole = np.eye(6) + np.tril(feedback, -1)
    every = (weight * np.square((x[:, None] - every_code(offset, value)) @ whole)).sum(2)
    np.testing.assert_allclose((weight * np.square((x - found) @ whole)).sum(1), every.min(1), rtol=1e-4)


def test_a_beam_without_feedback_comes_near_the_exact_search():
    rng = np.random.default_rng(0)
    offset = np.arange(0, 401, 2, dtype=np.uint32)
    x, one = rng.standard_normal((8, 200)).astype(np.float32), np.ones(8, np.float32)
    value, weight = rng.standard_normal(1 << 10, np.float32), np.ones(200, np.float32)
    nothing = np.zeros((200, 200), np.float32)
    codes = [cpu_trellis.trellis_search(x, one, offset, value, weight)]
    codes += [cpu_trellis.trellis_beam(x, one, offset, value, weight, nothing, width) for width in (512, 16)]
    errors = [np.square(x - cpu_trellis.trellis_decode(c, offset, value, one)).mean() for c in codes]
    assert errors[0] < errors[1] < 1.08 * errors[0] < errors[2]
