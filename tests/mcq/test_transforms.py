"""Transforms: undone exactly, the same objective on both sides, files and their bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
import mcq_ext
from mcq import io
from mcq.transforms import Composition, Hadamard, Permutation, Scaling, Transform

N, D = 7, 19
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, D)).astype(np.float32)
INPUTS = RNG.standard_normal((30, D))
FACTORS = np.exp(RNG.standard_normal(D))
ORDER = RNG.permutation(D)

TRANSFORMS = {
    "hadamard": Hadamard(D, seed=3),
    "hadamard of rows": Hadamard(N, axis="rows"),
    "two-sided": Composition([Hadamard(D, seed=1), Hadamard(N, seed=2, axis="rows")]),
    "scaling": Scaling(FACTORS),
    "permutation": Permutation(ORDER),
    "permutation of rows": Permutation(RNG.permutation(N), axis="rows"),
    "scaled, permuted, rotated": Composition([Composition([Scaling(FACTORS), Permutation(ORDER)]), Hadamard(D)]),
}
METRICS = {
    "identity": mcq.Identity(),
    "diagonal": mcq.Diagonal(FACTORS),
    "gram": mcq.Gram(INPUTS.T @ INPUTS, damping=0.03),
    "lowrank": mcq.LowRank(FACTORS, INPUTS[:2].T),
}

EVERY = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@EVERY
def test_inverse_gives_the_matrix_back(transform):
    np.testing.assert_allclose(transform.invert(transform.apply(X)), X, atol=1e-5)
    np.testing.assert_allclose(transform.apply(transform.invert(X)), X, atol=1e-5)


@EVERY
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_distortion_is_the_same_on_both_sides(transform, metric):
    x_hat = X + RNG.standard_normal(X.shape).astype(np.float32)
    there = transform.apply_metric(metric).distortion(transform.apply(X), transform.apply(x_hat))
    assert there == pytest.approx(metric.distortion(X, x_hat), rel=1e-4)


def test_damping_is_kept():
    assert Hadamard(D).apply_metric(METRICS["gram"]).damping == 0.03


@EVERY
def test_file_gives_back_an_equal_transform(transform, tmp_path):
    transform.save(tmp_path / "t.mcq")
    for loaded in (mcq.load(tmp_path / "t.mcq"), Transform.load(tmp_path / "t.mcq")):
        np.testing.assert_array_equal(loaded.apply(X), transform.apply(X))
        assert loaded.bits() == transform.bits()
        assert type(loaded) is type(transform)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"version": 2, "steps": []}, "version"),
        ({"version": 1, "steps": [{"kind": "shear", "version": 1}]}, "kind must be one of 'hadamard'"),
        ({"version": 1, "steps": [{"kind": "hadamard", "width": 3, "version": 2}]}, "upgrade"),
        ({"version": 1, "steps": [{"kind": "hadamard", "breadth": 3}]}, "no option 'breadth'.*'width'"),
    ],
)
def test_bad_files_are_refused(tmp_path, config, message):
    io.write(tmp_path / "t.mcq", "transform", config, {})
    with pytest.raises(mcq.FormatError, match=message):
        mcq.load(tmp_path / "t.mcq")


def test_bits_are_those_that_are_stored():
    assert Hadamard(5000).bits() == 64
    assert Scaling(np.ones(10)).bits() == 160
    assert Permutation(np.arange(10)).bits() == 160
    assert Permutation(np.arange(1 << 17)).bits() == 32 << 17
    assert TRANSFORMS["scaled, permuted, rotated"].bits() == 32 * D + 64


@given(st.integers(1, 200), st.integers(0, 2**64 - 1))
def test_rotations_of_any_width_are_orthogonal(d, seed):
    matrix = Hadamard(d, seed).apply(np.eye(d)).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=3e-6)


@pytest.mark.parametrize("d", [96, 129, 255, 576, 1000, 1024, 1025, 1536])
def test_rotation_spreads_every_entry_and_every_block(d):
    """As evenly as a random rotation, about: no entry meets only a few others."""
    squares = d * np.square(Hadamard(d, seed=5).apply(np.eye(d)), dtype=np.float64)
    assert squares.max() < 40
    assert np.square(squares).mean(1).max() < 8  # 3 for a Gaussian, d for a row that stays as it is
    for block in (slice(d // 4), slice(d // 2), slice(d - d // 4, d)):
        assert squares[block].mean(0).std() < 0.5


def test_signs_never_change():
    """Files hold the seed alone."""
    signs = Hadamard(8, seed=7).apply(np.eye(8))[:, 0]
    np.testing.assert_array_equal(np.sign(signs), [-1, -1, 1, -1, 1, 1, 1, -1])


def test_no_bit_depends_on_threads_or_simd_level():
    x = RNG.standard_normal((65, 77))
    level, threads = mcq_ext.simd_level(), mcq_ext.num_threads()
    expected = Hadamard(77).apply(x)
    try:
        for name in mcq_ext.simd_levels():
            mcq_ext.set_simd_level(name)
            mcq_ext.set_num_threads(3)
            np.testing.assert_array_equal(Hadamard(77).apply(x), expected)
    finally:
        mcq_ext.set_simd_level(level)
        mcq_ext.set_num_threads(threads)


@EVERY
def test_matrix_of_another_size_is_refused(transform):
    for change in (transform.apply, transform.invert):
        with pytest.raises(mcq.InputError, match="but the matrix has"):
            change(np.ones((N + 1, D + 1)))


@given(st.integers(1, 300), st.data(), st.sampled_from([np.nan, np.inf, -np.inf, 1e39]))
def test_rotation_refuses_what_is_not_finite_wherever_it_is(d, data, bad):
    x = RNG.standard_normal((3, d))
    column = data.draw(st.integers(0, d - 1))
    x[1, column] = bad
    for rotation, matrix, place in (
        (Hadamard(d), x, f"row 1 column {column}"),
        (Hadamard(d, axis="rows"), x.T, f"row {column} column 1"),
    ):
        for change in (rotation.apply, rotation.invert):
            with pytest.raises(mcq.InputError, match=f"must be finite.* at {place} "):
                change(matrix)


def test_metric_of_another_size_is_refused():
    with pytest.raises(mcq.InputError, match="weighs 5 columns"):
        Hadamard(D).apply_metric(mcq.Diagonal(np.ones(5)))


@pytest.mark.parametrize("factors", [[1, 0], [1, -1], [1, 1e6], [1, 1e-6], [1, np.nan], [[1, 1], [1, 1]]])
def test_bad_factors_are_refused(factors):
    with pytest.raises(mcq.InputError, match="factors must be"):
        Scaling(factors)


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [0.0, 1.0], [[0, 1]]])
def test_bad_orders_are_refused(order):
    with pytest.raises(mcq.InputError, match="order must hold each"):
        Permutation(order)


@pytest.mark.parametrize("options", [{"width": 0}, {"width": 8, "seed": -1}, {"width": 8, "axis": "both"}])
def test_bad_rotations_are_refused(options):
    with pytest.raises(mcq.ConfigError, match="must be"):
        Hadamard(**options)
