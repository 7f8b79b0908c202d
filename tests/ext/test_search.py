"""What the searches promise: the cheapest choice there is, and never a worse one than before."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcq_ext import cpu

SEEDS = st.integers(0, 2**32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def psd(rng, d):
    factor = rng.standard_normal((d, d + 2))
    return (factor @ factor.T / d).astype(np.float32)


@given(SEEDS, st.integers(1, 20), st.integers(1, 20))
def test_pair_search_is_brute_force(seed, n, k):
    rng = np.random.default_rng(seed)
    unary_a, unary_b, pair = normal(rng, n, k), normal(rng, n, k), normal(rng, k, k)
    codes, value = cpu.pair_search(unary_a, unary_b, pair)
    every = (unary_b[:, None, :] + pair) + unary_a[:, :, None]
    np.testing.assert_array_equal(value, every.min((1, 2)))
    np.testing.assert_array_equal(value, every[np.arange(n), codes[:, 0], codes[:, 1]])


@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_beam_of_full_width_is_brute_force(seed, num_codebooks, k):
    rng = np.random.default_rng(seed)
    n = 5
    unary = normal(rng, num_codebooks, n, k)
    pair = {m: normal(rng, m * k, k) for m in range(num_codebooks)}
    every = {
        choice: sum(unary[m, :, choice[m]] for m in range(num_codebooks))
        + sum(pair[m][o * k + choice[o], choice[m]] for m in range(num_codebooks) for o in range(m))
        for choice in itertools.product(range(k), repeat=num_codebooks)
    }
    codes, cost = np.empty((n, 1, 0), np.uint16), np.zeros((n, 1), np.float32)
    for m in range(num_codebooks):
        parent, entry, cost = cpu.beam_step(unary[m], pair[m], codes, cost, k**num_codebooks)
        codes = np.concatenate([np.take_along_axis(codes, parent[:, :, None], 1), entry[:, :, None]], axis=2)
    np.testing.assert_allclose(cost[:, 0], np.min(list(every.values()), axis=0), atol=1e-5)
    for i in range(n):
        np.testing.assert_allclose(every[tuple(codes[i, 0].tolist())][i], cost[i, 0], atol=1e-5)


@given(SEEDS)
def test_beam_of_width_one_is_greedy(seed):
    rng = np.random.default_rng(seed)
    n, k = 9, 16
    unary, pair = normal(rng, 2, n, k), normal(rng, k, k)
    nothing, empty = np.empty((0, k), np.float32), np.empty((n, 1, 0), np.uint16)
    _, first, cost = cpu.beam_step(unary[0], nothing, empty, np.zeros((n, 1), np.float32), 1)
    _, second, _ = cpu.beam_step(unary[1], pair, first[:, :, None], cost, 1)
    np.testing.assert_array_equal(first[:, 0], unary[0].argmin(1))
    np.testing.assert_array_equal(second[:, 0], (unary[1] + pair[first[:, 0]]).argmin(1))


#: Costs that leave nothing to choose by, as overflow makes them; 3e38 is also the cost of padding.
HOPELESS = [np.inf, np.nan, 3e38, -np.inf]


@pytest.mark.parametrize("cost", HOPELESS)
@pytest.mark.parametrize("k", [1, 3, 16, 20])
def test_codes_stay_in_range_whatever_the_costs(cost, k):
    """A code past the codebook would make `decode` read foreign memory."""
    n, g = 11, 2
    bad_row, bad_table = np.full((n, k), cost, np.float32), np.full((k, k), cost, np.float32)
    zeros, x = np.zeros((n, k), np.float32), np.zeros((n, g), np.float32)
    empty, start = np.empty((n, 1, 0), np.uint16), np.zeros((n, 1), np.float32)
    chosen = [
        cpu.assign(x, np.zeros((k, g), np.float32), bad_row[0])[0],
        cpu.assign(np.full((n, g), cost, np.float32), np.ones((k, g), np.float32), zeros[0])[0],
        cpu.pair_search(bad_row, zeros, np.zeros((k, k), np.float32))[0],
        cpu.pair_search(zeros, bad_row, np.zeros((k, k), np.float32))[0],
        cpu.pair_search(zeros, zeros, bad_table)[0],
        cpu.beam_step(bad_row, np.empty((0, k), np.float32), empty, start, 2)[1],
    ]
    assert max(int(codes.max()) for codes in chosen) < k


def test_real_entries_win_over_padding():
    """Entries are padded to a multiple of 16; only costs near the largest float could lose against that."""
    cost = np.full((9, 5), 1e38, np.float32)
    codes, value = cpu.pair_search(cost, cost, np.zeros((5, 5), np.float32))
    assert (codes == 0).all()
    assert (value == np.float32(2e38)).all()
    nearest, _ = cpu.assign(np.zeros((9, 1), np.float32), np.zeros((5, 1), np.float32), cost[0])
    assert (nearest == 0).all()


class Sweeping:
    """A random block under a metric, and its sweep."""

    def __init__(self, seed, num_codebooks=2, n=13, groups=3, g=4, k=8):
        rng = np.random.default_rng(seed)
        self.x, self.h = normal(rng, n, groups * g), psd(rng, groups * g)
        self.codebooks = normal(rng, num_codebooks, k, g)
        self.scale = np.broadcast_to(np.exp(normal(rng, n, 1) / 2), (n, groups))
        self.codes = rng.integers(k, size=(n, groups, num_codebooks)).astype(np.uint16)

    def run(self, moves, fresh=False, beam_width=0, starts=False):
        """Return error and gradient after the sweep."""
        error = self.x - cpu.decode(self.codes, self.codebooks, self.scale)
        gradient = cpu.matmul(error, self.h)
        moves = np.array(moves, np.uint8)
        tables = self.scale, self.codebooks, self.h
        cpu.sweep(error, gradient, self.codes, *tables, moves, fresh, beam_width, starts)
        return error, gradient

    def distortion(self):
        error = (self.x - cpu.decode(self.codes, self.codebooks, self.scale)).astype(np.float64)
        return np.einsum("nd,de,ne->n", error, self.h, error)


ALL_PAIRS = [(0, 1), (2, 2), (0, 2), (1, 2)]
PROPOSALS = st.sampled_from([{}, {"beam_width": 8}, {"starts": True}])


@given(SEEDS, st.sampled_from([ALL_PAIRS, [(1, 1), (2, 2), (0, 0)]]), PROPOSALS)
def test_sweep_never_raises_the_distortion(seed, moves, proposals):
    block = Sweeping(seed, num_codebooks=3)
    before = block.distortion()
    error, gradient = block.run(moves, **proposals)
    after = block.distortion()
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    true_error = block.x - cpu.decode(block.codes, block.codebooks, block.scale)
    np.testing.assert_allclose(error, true_error, atol=1e-4)
    np.testing.assert_allclose(gradient, true_error @ block.h, atol=1e-3)


@given(SEEDS, PROPOSALS)
def test_fresh_sweep_of_one_group_does_not_depend_on_old_codes(seed, proposals):
    block = Sweeping(seed, num_codebooks=3, groups=1)
    block.run(ALL_PAIRS, fresh=True, **proposals)
    first = block.distortion()
    block.codes[:] = 0
    block.run(ALL_PAIRS, fresh=True, **proposals)
    np.testing.assert_allclose(block.distortion(), first, rtol=1e-3, atol=1e-5)


@given(SEEDS)
def test_sweep_of_one_pair_is_brute_force(seed):
    block = Sweeping(seed, groups=1, k=5)
    block.run([(0, 1)])
    found = block.distortion()
    for choice in itertools.product(range(5), repeat=2):
        block.codes[:] = choice
        assert (found <= block.distortion() * (1 + 1e-4) + 1e-5).all()


@given(SEEDS)
def test_wider_beam_than_choices_finds_the_best(seed):
    k = 3
    block = Sweeping(seed, num_codebooks=3, groups=1, k=k)
    block.run([(0, 0)], beam_width=k**3)
    found = block.distortion()
    for choice in itertools.product(range(k), repeat=3):
        block.codes[:] = choice
        assert (found <= block.distortion() * (1 + 1e-4) + 1e-5).all()


@given(SEEDS)
def test_as_many_starts_as_entries_find_the_best_pair(seed):
    block = Sweeping(seed, groups=1, k=8)
    block.run([(0, 0)], starts=True)
    found = block.distortion()
    for choice in itertools.product(range(8), repeat=2):
        block.codes[:] = choice
        assert (found <= block.distortion() * (1 + 1e-4) + 1e-5).all()
