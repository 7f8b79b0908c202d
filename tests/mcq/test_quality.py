"""Floors of quality on small problems, about three per cent above what is reached: a regression shows here first.

More training data, as in the benchmarks, lead much lower.
"""

import numpy as np
import pytest

import mcq

ADDITIVE, RESIDUAL = mcq.AdditiveQuantizer, mcq.ResidualQuantizer


@pytest.mark.parametrize(
    ("quantizer", "num_codebooks", "codebook_bits", "bound"),
    [
        (ADDITIVE, 1, 8, 0.348),
        (ADDITIVE, 2, 8, 0.101),
        (ADDITIVE, 3, 8, 0.0298),
        (ADDITIVE, 4, 8, 0.0095),
        (ADDITIVE, 2, 4, 0.351),
        (ADDITIVE, 4, 4, 0.101),
        (RESIDUAL, 2, 8, 0.104),
    ],
)
def test_unit_gaussian(quantizer, num_codebooks, codebook_bits, bound):
    """Held-out groups of 8, in mean squared error of an entry."""
    rng = np.random.default_rng(0)
    training, held_out = rng.standard_normal((6000, 8)), rng.standard_normal((2000, 8))
    q = quantizer(num_codebooks, codebook_bits, 8).fit(training)
    assert mcq.Identity().relative_error(held_out, q.decode(q.encode(held_out))) < bound


@pytest.fixture(scope="module")
def layer():
    """Weights and Gram of a layer whose inputs have a decaying spectrum and columns of unequal size."""
    rng, n, d = np.random.default_rng(0), 192, 128
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    inputs = (
        rng.standard_normal((4 * d, d)) * np.arange(1, d + 1) ** -0.5 @ basis.T * np.exp(rng.standard_normal(d) / 2)
    )
    weights = rng.standard_normal((n, d)) * np.exp(rng.standard_normal((n, 1)) / 3)
    return weights, mcq.Gram(inputs.T @ inputs)


@pytest.mark.parametrize(
    ("quantizer", "num_codebooks", "codebook_bits", "bound"),
    [
        (ADDITIVE, 1, 8, 0.0690),
        (ADDITIVE, 2, 8, 0.0118),
        (ADDITIVE, 4, 4, 0.0243),
        (RESIDUAL, 2, 8, 0.0250),
    ],
)
def test_layer_under_its_gram(layer, quantizer, num_codebooks, codebook_bits, bound):
    weights, metric = layer
    q = quantizer(num_codebooks, codebook_bits, 8, "row")
    error = metric.relative_error(weights, q.decode(q.fit_encode(weights, metric)))
    assert error < bound
    unaware = quantizer(num_codebooks, codebook_bits, 8, "row")
    assert error < 0.5 * metric.relative_error(weights, unaware.decode(unaware.fit_encode(weights)))


@pytest.mark.parametrize(("scale", "gain"), [("row", 1.5), ("group", 1.5)])
def test_scales_help_where_sizes_differ(scale, gain):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 32)) * np.exp(rng.standard_normal((300, 1)))
    errors = {}
    for kind in ("none", scale):
        q = mcq.AdditiveQuantizer(2, 4, 8, kind)
        errors[kind] = mcq.Identity().relative_error(x, q.decode(q.fit_encode(x)))
    assert gain * errors[scale] < errors["none"]


def test_more_bits_less_error():
    x = np.random.default_rng(0).standard_normal((500, 16))
    errors = []
    for num_codebooks, bits in [(1, 2), (1, 4), (2, 4), (3, 4), (3, 6), (4, 6)]:
        q = mcq.AdditiveQuantizer(num_codebooks, bits, 4)
        errors.append(mcq.Identity().relative_error(x, q.decode(q.fit_encode(x))))
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("metric_name", ["identity", "gram"])
def test_prefixes_of_residual_codes_improve_step_by_step(layer, metric_name):
    weights, gram = layer
    metric = {"identity": mcq.Identity(), "gram": gram}[metric_name]
    q = mcq.ResidualQuantizer(4, 4, 8, "row")
    codes = q.fit_encode(weights, metric)
    errors = [metric.relative_error(weights, q.decode(codes, num_codebooks=m)) for m in range(1, 5)]
    assert all(after < 0.9 * before for before, after in zip(errors, errors[1:], strict=False))
    np.testing.assert_array_equal(q.decode(codes, num_codebooks=4), q.decode(codes))
    for wrong in (0, 5):
        with pytest.raises(mcq.ConfigError, match="num_codebooks must be"):
            q.decode(codes, num_codebooks=wrong)
