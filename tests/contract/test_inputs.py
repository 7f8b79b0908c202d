"""Inputs of every kind: other types and layouts, degenerate data and metrics, and what is refused."""

import numpy as np
import pytest

import mcq

QUANTIZERS = pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer])
SCALES = pytest.mark.parametrize("scale", ["none", "row", "group"])
METRICS = ["identity", "diagonal", "gram", "lowrank"]


def make_metric(name, d):
    rng = np.random.default_rng(1)
    weights, inputs = np.exp(rng.standard_normal(d)), rng.standard_normal((2 * d, d))
    if name == "gram":
        return mcq.Gram(inputs.T @ inputs)
    return {
        "identity": mcq.Identity(),
        "diagonal": mcq.Diagonal(weights),
        "lowrank": mcq.LowRank(weights, inputs[:2].T),
    }[name]


ALL_METRICS = pytest.mark.parametrize("metric", [make_metric(name, 19) for name in METRICS], ids=METRICS)


def relative_error(quantizer, x, metric, scale="none", **options):
    """Relative error of fit and of encode, the worse of both; everything decoded must be finite."""
    q = quantizer(**{"num_codebooks": 2, "codebook_bits": 4, "group_size": 8, "scale": scale, "rounds": 3} | options)
    decoded = [q.decode(q.fit_encode(x, metric)), q.decode(q.encode(x, metric))]
    assert all(np.isfinite(x_hat).all() for x_hat in decoded)
    return max((metric or mcq.Identity()).relative_error(x, x_hat) for x_hat in decoded)


@QUANTIZERS
@pytest.mark.parametrize(
    "convert",
    [
        np.float64,
        np.float16,
        np.int8,
        lambda x: x[::-1][::-1],
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x.tolist(),
    ],
    ids=["float64", "float16", "int8", "reversed", "fortran", "strided", "byteswapped", "list"],
)
def test_types_and_layouts_do_not_matter(quantizer, convert):
    x = np.random.default_rng(0).integers(-9, 10, (21, 19)).astype(np.float32)
    metric = make_metric("gram", 19)
    q = quantizer(num_codebooks=2, codebook_bits=3, group_size=8, scale="row", rounds=2)
    codes = q.fit_encode(x, metric)
    assert quantizer(*codes_options(q)).fit_encode(convert(x), metric) == codes
    assert q.encode(convert(x), metric) == q.encode(x, metric)


def codes_options(q):
    config = q.config
    return config.num_codebooks, config.codebook_bits, config.group_size, config.scale, config.rounds


@QUANTIZERS
def test_inputs_are_read_only(quantizer):
    x = np.random.default_rng(0).standard_normal((21, 16)).astype(np.float32)
    gram = x.T @ x
    before = x.copy(), gram.copy()
    x.flags.writeable = gram.flags.writeable = False
    q = quantizer(num_codebooks=2, codebook_bits=3, group_size=8, rounds=2)
    q.decode(q.fit_encode(x, mcq.Gram(gram)))
    q.encode(x, mcq.Gram(gram))
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(gram, before[1])


@QUANTIZERS
@ALL_METRICS
@SCALES
@pytest.mark.parametrize("n", [1, 2, 15])
def test_fewer_rows_than_entries(quantizer, metric, scale, n):
    """With an entry for each group the error is that of float16 and of the search."""
    x = np.random.default_rng(0).standard_normal((n, 19)).astype(np.float32)
    assert relative_error(quantizer, x, metric, scale, codebook_bits=6) < 0.02


@QUANTIZERS
@ALL_METRICS
@SCALES
def test_all_zero_matrix(quantizer, metric, scale):
    q = quantizer(num_codebooks=2, codebook_bits=4, group_size=8, scale=scale, rounds=2)
    x = np.zeros((9, 19), np.float32)
    for codes in (q.fit_encode(x, metric), q.encode(x, metric)):
        np.testing.assert_array_equal(q.decode(codes), x)


@QUANTIZERS
@ALL_METRICS
@pytest.mark.parametrize("scale", ["row", "group"])
def test_zero_rows_come_back_as_zeros(quantizer, metric, scale):
    x = np.random.default_rng(0).standard_normal((30, 19)).astype(np.float32)
    x[[0, 7, 8, 29]] = 0
    q = quantizer(num_codebooks=2, codebook_bits=4, group_size=8, scale=scale, rounds=3)
    for codes in (q.fit_encode(x, metric), q.encode(x, metric)):
        np.testing.assert_array_equal(q.decode(codes)[[0, 7, 8, 29]], 0)
        assert metric.relative_error(x, q.decode(codes)) < 0.5


@QUANTIZERS
@ALL_METRICS
@SCALES
def test_constant_rows(quantizer, metric, scale):
    x = np.repeat(np.random.default_rng(0).standard_normal((30, 1)), 19, axis=1)
    assert relative_error(quantizer, x, metric, scale) < 0.01


@QUANTIZERS
@ALL_METRICS
@SCALES
def test_constant_matrix(quantizer, metric, scale):
    assert relative_error(quantizer, np.full((30, 19), -3.7), metric, scale) < 1e-4


@QUANTIZERS
@ALL_METRICS
@SCALES
def test_one_entry_far_from_all_others(quantizer, metric, scale):
    x = np.random.default_rng(0).standard_normal((30, 19)).astype(np.float32)
    x[3, 5] = 1e6
    assert relative_error(quantizer, x, metric, scale) < 1e-3


@QUANTIZERS
@ALL_METRICS
@SCALES
@pytest.mark.parametrize("factor", [1e20, 1e-20, 1e-38])
def test_tiny_and_huge_values(quantizer, metric, scale, factor):
    x = np.random.default_rng(0).standard_normal((30, 19))
    assert relative_error(quantizer, x * factor, metric, scale) < 0.2


@QUANTIZERS
@SCALES
@pytest.mark.parametrize("size", [1e12, 1e-12])
def test_rows_of_very_different_size(quantizer, scale, size):
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    x[::2] *= np.float32(size)
    assert relative_error(quantizer, x, None, scale) < 0.2


@QUANTIZERS
@SCALES
def test_rows_larger_than_a_scale_can_express_come_back_finite(quantizer, scale):
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    q = quantizer(num_codebooks=2, codebook_bits=4, scale=scale, rounds=2).fit(x)
    x_hat = q.decode(q.encode(x * np.float32(1e7)))
    assert np.isfinite(x_hat).all()
    assert mcq.Identity().relative_error(x * np.float32(1e7), x_hat) < 1


@QUANTIZERS
def test_rows_much_larger_than_those_of_the_fit_are_refused(quantizer):
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    q = quantizer(num_codebooks=1, codebook_bits=2).fit(x)
    with pytest.raises(mcq.InputError, match="fit on data of this size"):
        q.encode(x * np.float32(1e20))


def gram_of(inputs):
    return mcq.Gram(inputs.T @ inputs)


def hard_grams(d):
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((3 * d, d))
    dead, twins, huge = inputs.copy(), inputs.copy(), inputs.copy()
    dead[:, [0, 3, d - 1]] = 0
    twins[:, 1:4] = twins[:, :1]
    huge[:, 2] *= 1e4
    one = np.zeros((d, d))
    one[4, 4] = 1
    return {
        "singular": gram_of(inputs[:3]),
        "dead columns": gram_of(dead),
        "duplicate columns": gram_of(twins),
        "one heavy column": gram_of(huge),
        "one live column": mcq.Gram(one),
        "rank one": mcq.Gram(np.ones((d, d))),
        "tiny": mcq.Gram(inputs.T @ inputs * 1e-30),
        "huge": mcq.Gram(inputs.T @ inputs * 1e30),
        "singular, damped": mcq.Gram(inputs[:3].T @ inputs[:3], damping=0.1),
    }


@QUANTIZERS
@SCALES
@pytest.mark.parametrize("gram", hard_grams(19).values(), ids=hard_grams(19))
def test_hard_grams(quantizer, scale, gram):
    x = np.random.default_rng(0).standard_normal((40, 19)).astype(np.float32)
    assert relative_error(quantizer, x, gram, scale) < 0.2


@QUANTIZERS
def test_columns_without_weight_cost_nothing(quantizer):
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    metric = mcq.Diagonal([1] * 8 + [0] * 8)
    assert relative_error(quantizer, x, metric, codebook_bits=8) < 1e-3


@QUANTIZERS
@pytest.mark.parametrize("use", ["fit", "encode"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_located(quantizer, use, value):
    x = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    q = quantizer(num_codebooks=1, codebook_bits=2, rounds=1).fit(x)
    x[7, 11] = value
    with pytest.raises(mcq.InputError, match=rf"x must be finite.* {value} at row 7 column 11.*\(1 such"):
        getattr(q, use)(x)


@QUANTIZERS
@pytest.mark.parametrize("use", ["fit", "encode"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(16), "2-D"),
        (np.zeros((2, 3, 4)), "2-D"),
        (np.zeros((0, 16)), "at least one row"),
        (np.zeros((4, 0)), "at least one row"),
        (np.zeros((4, 16), complex), "real"),
        ([["a", "b"]], "real"),
        ([[1.0, 2.0], [3.0]], "2-D"),
        (np.full((4, 16), 1e300), "too large for float32"),
    ],
    ids=["1-D", "3-D", "no rows", "no columns", "complex", "strings", "ragged", "too large"],
)
def test_what_is_no_matrix_is_refused(quantizer, use, x, message):
    q = quantizer(num_codebooks=1, codebook_bits=2, rounds=1).fit(np.ones((4, 16)))
    with pytest.raises(mcq.InputError, match=message):
        getattr(q, use)(x)


@QUANTIZERS
@pytest.mark.parametrize("use", ["fit", "encode"])
@pytest.mark.parametrize("name", METRICS[1:])
def test_metric_of_another_width_is_refused(quantizer, use, name):
    x = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    q = quantizer(num_codebooks=1, codebook_bits=2, rounds=1).fit(x)
    with pytest.raises(mcq.InputError, match="weighs 15 columns, but the data have 16"):
        getattr(q, use)(x, make_metric(name, 15))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((4, 4)), "must not be all zero"),
        (np.diag([1.0, -1.0]), "positive semidefinite.*eigenvalue"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.ones((3, 4)), "square"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite.*row 0 column 1"),
    ],
    ids=["zero", "indefinite", "asymmetric", "oblong", "nan"],
)
def test_bad_gram_is_refused(matrix, message):
    with pytest.raises(mcq.InputError, match=message):
        mcq.Gram(matrix)
