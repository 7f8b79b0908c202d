"""Encoders: feedback against a naive sequential coding, local search, beam."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq.encoders import local_search
from mcq.encoders.beam import beam_search
from mcq.encoders.feedback import DAMPING, Triangular
from mcq.encoders.local_search import Search, Visit, sweep
from mcq.energy import Energy
from mcq.problem import Problem
from mcq_ext import cpu

N, D, GROUP, K = 11, 12, 3, 6
GROUPS = D // GROUP


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def make(seed, num_codebooks, n=N):
    rng = np.random.default_rng(seed)
    inputs = normal(rng, 40, D) @ normal(rng, D, D)
    metric = mcq.Gram(inputs.T @ inputs / np.float32(400))
    scale = np.broadcast_to(np.exp(normal(rng, n, 1) / 3), (n, GROUPS))
    codes = rng.integers(K, size=(n, GROUPS, num_codebooks)).astype(np.uint16)
    return normal(rng, n, D), metric, normal(rng, num_codebooks, K, GROUP), scale, codes


def test_triangular_matrix_is_what_its_definition_says():
    """Part j of |U^T e|^2 is a quadratic form in e_j with metric T_jj and cross terms T_ij to the groups before."""
    _, metric, _, _, _ = make(0, 1)
    triangular = Triangular(metric, D, GROUP)
    damped = metric.matrix.astype(np.float64) + DAMPING * np.trace(metric.matrix) / D * np.eye(D)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    assert np.allclose(upper, np.triu(upper))
    np.testing.assert_allclose(upper @ upper.T, damped, rtol=1e-6)
    for j in range(GROUPS):
        own = slice(j * GROUP, (j + 1) * GROUP)
        np.testing.assert_allclose(triangular.matrix[:, own], upper[:, own] @ upper[own, own].T, rtol=1e-4, atol=1e-4)
        assert (triangular.matrix[own.stop :, own] == 0).all()


def naive_sequential_coding(x, metric, codebooks, scale):
    """Groups in order, each by trying all codes for the least |(U^T e)_j|^2, its errors carried on to the rest."""
    damped = metric.matrix.astype(np.float64) + DAMPING * np.trace(metric.matrix) / D * np.eye(D)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    num_codebooks = len(codebooks)
    choices = np.array(list(itertools.product(range(K), repeat=num_codebooks)))
    sums = sum(codebooks[m, choices[:, m]].astype(np.float64) for m in range(num_codebooks))
    parts = np.zeros((len(x), GROUPS))
    for i, row in enumerate(x.astype(np.float64)):
        error = np.zeros(D)
        for j in range(GROUPS):
            own, upto = slice(j * GROUP, (j + 1) * GROUP), (j + 1) * GROUP
            errors = np.tile(error, (len(sums), 1))
            errors[:, own] = row[own] - scale[i, j] * sums
            cost = np.square(errors[:, :upto] @ upper[:upto, own]).sum(1)
            parts[i, j] = cost.min()
            error = errors[cost.argmin()]
    return parts


@pytest.mark.parametrize("num_codebooks", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_fresh_sweep_under_the_triangle_is_sequential_coding(num_codebooks, seed):
    x, metric, codebooks, scale, codes = make(seed, num_codebooks)
    triangular = Triangular(metric, D, GROUP)
    sweep(x, codes, codebooks, scale, triangular, Visit.of(num_codebooks, K, 16), fresh=True)
    damped = metric.matrix.astype(np.float64) + DAMPING * np.trace(metric.matrix) / D * np.eye(D)
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    error = (x - cpu.decode(codes, codebooks, scale)).astype(np.float64)
    found = np.square(error @ upper).reshape(N, GROUPS, GROUP).sum(2)
    np.testing.assert_allclose(found, naive_sequential_coding(x, metric, codebooks, scale), rtol=1e-3, atol=1e-3)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 5]))
def test_local_search_never_raises_the_distortion(seed, num_codebooks):
    x, metric, codebooks, scale, codes = make(seed, num_codebooks)
    distortions = [metric.distortion(x, cpu.decode(codes, codebooks, scale))]
    for _ in range(3):
        sweep(x, codes, codebooks, scale, metric, Visit.of(num_codebooks, K, 16))
        distortions.append(metric.distortion(x, cpu.decode(codes, codebooks, scale)))
    assert (np.diff(distortions) <= 1e-5 * distortions[0]).all()
    assert distortions[-1] < distortions[0]


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_blocks_of_groups_change_nothing(num_codebooks, monkeypatch):
    """The gradient is refreshed between blocks and followed within them: the same up to rounding."""
    found = []
    for groups in (1, 2, 8):
        monkeypatch.setattr(local_search, "BLOCK_GROUPS", groups)
        x, metric, codebooks, scale, codes = make(0, num_codebooks)
        sweep(x, codes, codebooks, scale, metric, Visit.of(num_codebooks, K, 16))
        found.append(codes)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_feedback_beats_coding_each_group_alone():
    """Under a Gram, errors of the first groups are mended by the later ones."""
    x, metric, codebooks, scale, codes = make(0, 2, n=200)
    alone = codes.copy()
    sweep(x, alone, codebooks, scale, mcq.Diagonal(np.diagonal(metric.matrix)), Visit.of(2, K, 16), fresh=True)
    sweep(x, codes, codebooks, scale, Triangular(metric, D, GROUP), Visit.of(2, K, 16), fresh=True)
    distortions = [metric.distortion(x, cpu.decode(c, codebooks, scale)) for c in (alone, codes)]
    assert distortions[1] < 0.7 * distortions[0]


@pytest.mark.parametrize("num_codebooks", range(1, 17))
@pytest.mark.parametrize("num_entries", [256, 1 << 16])
def test_moves_cover_all_codebooks_once_before_they_repeat_one(num_codebooks, num_entries):
    moves = Visit.of(num_codebooks, num_entries, 16).moves.tolist()
    assert {m for move in moves for m in move} == set(range(num_codebooks))
    assert all(first <= second < num_codebooks for first, second in moves)
    assert len({tuple(move) for move in moves}) == len(moves)
    cover = moves[: -(-num_codebooks // 2)] if num_entries == 256 else moves
    assert sorted({m for move in cover for m in move}) == list(range(num_codebooks))
    if num_entries > 256:  # no pair table could be held
        assert all(first == second for first, second in moves)


def test_search_of_one_group_needs_no_feedback():
    x, metric, _, _, _ = make(0, 1)
    assert Search(Problem.arrange(x, metric, GROUP), 1, K, 1).feeds_back
    assert not Search(Problem.arrange(x, metric, None), 1, K, 1).feeds_back
    assert not Search(Problem.arrange(x, mcq.Diagonal(np.ones(D)), GROUP), 1, K, 1).feeds_back


def all_costs(energy, target):
    """Costs (n, K, ..., K) of all codes."""
    costs = {}
    for choice in itertools.product(range(K), repeat=len(energy.codebooks)):
        total = sum(energy.codebooks[m, k] for m, k in enumerate(choice)).astype(np.float64)
        costs[choice] = total @ energy.h @ total - 2 * target @ total
    return costs


@given(st.integers(0, 2**32))
def test_wide_beam_finds_the_best_codes(seed):
    x, metric, codebooks, _, _ = make(seed, 3)
    h = metric.block(slice(0, GROUP))
    energy, target = Energy(codebooks, h), np.ascontiguousarray(x[:, :GROUP] @ h)
    costs = all_costs(energy, target)
    codes = beam_search(energy, target, K**2)
    found = np.array([costs[tuple(row)][i] for i, row in enumerate(codes.tolist())])
    np.testing.assert_allclose(found, np.min(list(costs.values()), axis=0), rtol=1e-3, atol=1e-3)


def test_wider_beams_do_better():
    x, metric, codebooks, _, _ = make(0, 3, n=500)
    h = metric.block(slice(0, GROUP))
    energy, target = Energy(codebooks, h), np.ascontiguousarray(x[:, :GROUP] @ h)
    costs = all_costs(energy, target)
    totals = []
    for width in (1, 2, 4, 16):
        codes = beam_search(energy, target, width)
        totals.append(sum(costs[tuple(row)][i] for i, row in enumerate(codes.tolist())))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0]


def test_beam_cuts_many_rows_into_parts(monkeypatch):
    x, metric, codebooks, _, _ = make(0, 2, n=100)
    h = metric.block(slice(0, GROUP))
    energy, target = Energy(codebooks, h), np.ascontiguousarray(x[:, :GROUP] @ h)
    whole = beam_search(energy, target, 4)
    monkeypatch.setattr("mcq.encoders.beam.ROWS", 33)
    np.testing.assert_array_equal(beam_search(energy, target, 4), whole)
