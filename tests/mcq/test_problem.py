"""Cutting into groups, ordering, padding."""

import numpy as np
import pytest

import mcq
from mcq.problem import Problem


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32)


def test_columns_keep_their_order_where_nothing_is_coupled(x):
    problem = Problem.arrange(x, mcq.Diagonal(np.arange(1, 11)), 4)
    assert problem.group_order.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(problem.x[:, :10] * np.float32(problem.gain), x)
    np.testing.assert_array_equal(problem.x[:, 10:], 0)


def test_heaviest_groups_come_first_under_a_gram(x):
    weights = np.array([1, 1, 1, 1, 9, 9, 9, 9, 5, 5], float)
    problem = Problem.arrange(x, mcq.Gram(np.diag(weights)), 4)
    assert problem.group_order.tolist() == [1, 2, 0]
    columns = [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    np.testing.assert_array_equal(problem.x[:, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]] * problem.gain, x[:, columns])
    np.testing.assert_array_equal(problem.x[:, 6:8], 0)
    diagonal = np.diagonal(problem.metric.block(slice(0, 12)))
    np.testing.assert_array_equal(diagonal * 9 / diagonal[0], [9, 9, 9, 9, 5, 5, 0, 0, 1, 1, 1, 1])


def test_distortion_does_not_depend_on_the_arrangement(x):
    inputs = np.random.default_rng(1).standard_normal((30, 10))
    metric = mcq.Gram(inputs.T @ inputs)
    problem = Problem.arrange(x, metric, 4)
    arranged = problem.metric.distortion(problem.x, np.zeros_like(problem.x))
    factor = (
        problem.metric.block(slice(0, 1))[0, 0] / metric.matrix[problem.group_order[0] * 4, problem.group_order[0] * 4]
    )
    assert arranged * problem.gain**2 == pytest.approx(factor * metric.distortion(x, 0 * x), rel=1e-5)


def test_restore_undoes_the_order(x):
    problem = Problem.arrange(x, mcq.Gram(np.diag(np.arange(1.0, 11.0))), 2)
    assert problem.group_order.tolist() == [4, 3, 2, 1, 0]
    per_group = problem.x.reshape(5, 5, 2)
    np.testing.assert_array_equal(problem.restore(per_group).reshape(5, 10) * np.float32(problem.gain), x)


@pytest.mark.parametrize(("group_size", "groups"), [(1, 10), (3, 4), (10, 1), (16, 1), (None, 1)])
def test_number_of_groups(x, group_size, groups):
    problem = Problem.arrange(x, None, group_size)
    assert problem.num_groups == groups
    assert problem.x.shape == (5, groups * (group_size or 10))


def test_gain_is_a_power_of_two_near_the_data(x):
    for factor in (1.0, 1e-20, 1e20):
        problem = Problem.arrange(x * np.float32(factor), None, 2)
        assert np.log2(problem.gain) % 1 == 0
        assert 0.5 < np.sqrt(np.mean(np.square(problem.x))) < 2
    assert Problem.arrange(np.zeros((2, 2)), None, None).gain == 1


def test_data_far_out_of_the_range_of_a_fit_are_refused(x):
    assert Problem.arrange(x, None, None, gain=1e-3).gain == 1e-3
    with pytest.raises(mcq.InputError, match="fit on data of this size"):
        Problem.arrange(x, None, None, gain=1e-20)


@pytest.mark.parametrize(("metric", "count"), [(None, 4), (mcq.Diagonal(np.arange(1, 7)), 4), (mcq.Gram(np.eye(6)), 1)])
def test_parts_are_the_rows_in_turn(monkeypatch, metric, count):
    x = np.random.default_rng(0).integers(-9, 9, (10, 6), np.int8)
    monkeypatch.setattr("mcq.problem.PART_BYTES", 3 * 6 * 4)
    parts = list(Problem.parts(x, metric, 2, 0.5))
    assert len(parts) == count
    whole = Problem.arrange(x, metric, 2, 0.5)
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), whole.x)


def test_all_parts_are_checked_before_the_first_is_used(monkeypatch):
    monkeypatch.setattr("mcq.problem.PART_BYTES", 3 * 6 * 4)
    x = np.zeros((10, 6))
    x[7, 2] = np.nan
    with pytest.raises(mcq.InputError, match="nan at row 7 column 2"):
        next(Problem.parts(x, None, None, 1.0))
