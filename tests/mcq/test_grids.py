"""Grids for a Gaussian and the quantizer that uses them."""

import numpy as np
import pytest

import mcq
from mcq.grids import GRID_BITS, gaussian_grid
from mcq.kmeans import nearest
from mcq.make_grids import line_grid, space_grid

SIZES = [(dimension, 1 << bits) for dimension, sizes in GRID_BITS.items() for bits in sizes]
#: Mean squared error per entry for a standard Gaussian.
KNOWN = {
    (1, 2): 0.3634,
    (1, 4): 0.1175,
    (1, 8): 0.03455,
    (1, 16): 0.00950,
    (2, 16): 0.1080,
    (2, 64): 0.0300,
    (2, 256): 0.00785,
    (4, 256): 0.0975,
    (4, 4096): 0.0258,
}


def distortion(grid, count=200_000):
    x = np.random.default_rng(7).standard_normal((count // grid.shape[1], grid.shape[1])).astype(np.float32)
    return np.mean((x - grid[nearest(x, grid)]) ** 2)


@pytest.mark.parametrize(("size", "limit"), KNOWN.items(), ids=str)
def test_known_distortions(size, limit):
    assert distortion(gaussian_grid(*size)) < 1.01 * limit


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_grid_is_there_and_above_the_limit_of_any_code(size):
    dimension, points = size
    grid = gaussian_grid(*size)
    assert grid.shape == (points, dimension)
    assert not grid.flags.writeable
    limit = points ** (-2 / dimension)
    assert limit < distortion(grid, 60_000) < 2.8 * limit


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_file_holds_what_the_script_makes_in_one_dimension(bits):
    np.testing.assert_allclose(gaussian_grid(1, 1 << bits), line_grid(1 << bits), atol=1e-6)


def test_script_makes_good_grids_in_more_dimensions():
    grid = space_grid(2, 16, np.random.default_rng(0))
    assert distortion(grid.astype(np.float32)) < 0.1095


@pytest.mark.parametrize(("dimension", "points"), [(2, 256), (3, 256), (4, 256), (1, 16)])
def test_any_matrix_loses_what_a_gaussian_would(dimension, points):
    """Heavy tails and columns of different size are rotated away."""
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (300, 200)) * np.exp(rng.standard_normal(200))
    quantizer = mcq.GridQuantizer(dimension, points)
    codes = quantizer.fit_encode(x)
    expected = distortion(gaussian_grid(dimension, points))
    assert mcq.Identity().relative_error(x, quantizer.decode(codes)) < 1.06 * expected
    assert quantizer.bits(codes).payload == pytest.approx(np.log2(points) / dimension, rel=0.01)


def test_bits_are_those_that_are_stored():
    quantizer = mcq.GridQuantizer(4, 256)
    codes = quantizer.fit_encode(np.random.default_rng(0).standard_normal((50, 64)))
    assert quantizer.bits(codes).all_in == pytest.approx(8 * (50 * (16 + 2) + 12) / (50 * 64))


def test_metric_counts():
    rng = np.random.default_rng(0)
    x, inputs = rng.standard_normal((100, 64)), rng.standard_normal((200, 64)) * np.exp(rng.standard_normal(64))
    gram, quantizer = mcq.Gram(inputs.T @ inputs), mcq.GridQuantizer(2, 16)
    weighted = gram.relative_error(x, quantizer.decode(quantizer.fit_encode(x, gram)))
    assert weighted < 0.8 * gram.relative_error(x, quantizer.decode(quantizer.fit_encode(x)))


def test_seed_is_that_of_the_rotation(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 24))
    first, second = (mcq.GridQuantizer().fit(x, seed=seed) for seed in (0, 2**64 - 1))
    assert first.encode(x) != second.encode(x)
    second.save(tmp_path / "q.mcq")
    assert mcq.load(tmp_path / "q.mcq").encode(x) == second.encode(x)


def test_other_codes_are_refused():
    x = np.random.default_rng(0).standard_normal((20, 24))
    with pytest.raises(mcq.InputError, match="same options"):
        mcq.GridQuantizer(2, 256).fit(x).decode(mcq.GridQuantizer(4, 256).fit_encode(x))


@pytest.mark.parametrize(
    "options",
    [{"dimension": 5}, {"points": 100}, {"points": 2}, {"dimension": 1, "points": 512}, {"search_steps": -1}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(mcq.ConfigError, match="must be"):
        mcq.GridQuantizer(**options)
