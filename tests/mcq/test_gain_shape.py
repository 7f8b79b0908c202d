"""Pyramid and shell quantizers: bounds of quality, hard data, objectives that never rise, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcq
from mcq.encoders.lattice_search import LatticeSearch
from mcq.lattices import Pyramid, Shell
from mcq.problem import Problem

PYRAMID, SHELL = mcq.PyramidQuantizer, mcq.ShellQuantizer
KINDS = pytest.mark.parametrize("quantizer", [PYRAMID, SHELL])
SCALES = pytest.mark.parametrize("scale", ["none", "row"])


def relative_error(quantizer, x, metric=None):
    """Of fit and of encode, the worse of both; everything decoded must be finite."""
    decoded = [quantizer.decode(quantizer.fit_encode(x, metric)), quantizer.decode(quantizer.encode(x, metric))]
    assert all(np.isfinite(x_hat).all() for x_hat in decoded)
    return max((metric or mcq.Identity()).relative_error(x, x_hat) for x_hat in decoded)


@pytest.mark.parametrize(
    ("quantizer", "options", "source", "rate", "bound"),
    [
        (PYRAMID, (16, 11, 1), "normal", 2, 0.1050),
        (PYRAMID, (16, 23, 3), "normal", 3, 0.0270),
        (PYRAMID, (16, 48, 4), "normal", 4, 0.00650),
        (PYRAMID, (24, 16, 2), "laplace", 2, 0.0763),
        (SHELL, (16, 19, 1), "normal", 2, 0.0902),
        (SHELL, (24, 27, 1), "normal", 2, 0.0870),
        (SHELL, (16, 76, 3), "normal", 3, 0.0226),
    ],
)
def test_unit_variance(quantizer, options, source, rate, bound):
    """Mean squared error of an entry at whole code widths, about half a per cent above what is reached."""
    rng, shape = np.random.default_rng(0), (20000, options[0])
    x = rng.standard_normal(shape) if source == "normal" else rng.laplace(scale=2**-0.5, size=shape)
    q = quantizer(*options)
    codes = q.fit_encode(x)
    assert q.bits(codes).payload == q.rate == rate
    assert 4**-rate < mcq.Identity().distortion(x, q.decode(codes)) / x.size < bound


def test_learned_gains_are_better_than_quantiles():
    x = np.random.default_rng(0).standard_normal((5000, 16))
    errors = [relative_error(SHELL(16, 76, 3, gains=gains), x) for gains in ("lloyd", "theory")]
    assert errors[0] < 0.98 * errors[1]


@KINDS
def test_better_than_every_pair_of_gain_and_point(quantizer):
    """On a small lattice nothing that can be decoded is nearer to a row."""
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    weights = [1.0, 4.0, 0.25, 2.0]
    for metric in (mcq.Identity(), mcq.Diagonal(weights)):
        q = quantizer(4, 4, 2).fit(x, metric)
        points = q.lattice.unrank(np.arange(q.lattice.count, dtype=np.uint64))
        every = (q.gain * q.gain_table.astype(float)[:, None, None] * points).reshape(-1, 4)
        costs = (metric.diagonal(4) * np.square(x[:, None] - every)).sum(2).min(1)
        assert metric.distortion(x, q.decode(q.encode(x, metric))) == pytest.approx(costs.sum(), rel=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([Pyramid(4, 5), Shell(8, 6), Shell(3, 9)]), st.integers(1, 30))
def test_distortion_never_rises(seed, lattice, d):
    rng = np.random.default_rng(seed)
    x, inputs = rng.standard_normal((7, d)), rng.standard_normal((rng.integers(1, 2 * d + 1), d))
    metric = mcq.Gram(inputs.T @ inputs)
    problem = Problem.arrange(x, metric, lattice.group_size)
    search, scale = LatticeSearch(problem, lattice), np.exp(rng.standard_normal((7, 1))).astype(np.float32)
    table = np.array([0.2, 0.4, 0.7], np.float32)
    search.improve(table, scale, fresh=True)
    losses = []
    for _ in range(4):
        losses.append(problem.metric.distortion(problem.x, search.decode(table, scale)))
        search.improve(table, scale)
    whole = problem.metric.distortion(problem.x, np.zeros_like(problem.x))
    assert all(after <= before + 1e-5 * (before + whole) for before, after in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("lattice", [Pyramid(16, 11), Shell(16, 19)])
def test_rows_at_rest_would_not_move(lattice):
    """Sweeps that pass over rows end where sweeps over all rows do."""
    rng = np.random.default_rng(0)
    x, inputs = rng.standard_normal((50, 96)), rng.standard_normal((200, 96)) / np.sqrt(np.arange(1, 97))
    problem = Problem.arrange(x, mcq.Gram(inputs.T @ inputs), lattice.group_size)
    table, scale = np.array([0.2, 0.4, 0.7], np.float32), np.ones((50, 1), np.float32)
    passing, thorough = LatticeSearch(problem, lattice), LatticeSearch(problem, lattice)
    for sweep in range(30):
        passing.improve(table, scale, fresh=sweep == 0)
        every = LatticeSearch(problem, lattice)
        every.points, every.gains = thorough.points, thorough.gains
        every.improve(table, scale, fresh=sweep == 0)
        thorough = every
        np.testing.assert_array_equal(passing.points, thorough.points)
        np.testing.assert_array_equal(passing.gains, thorough.gains)
    before = thorough.points.copy()
    passing.improve(table, scale)
    np.testing.assert_array_equal(passing.points, before)


@KINDS
def test_a_gram_is_taken_into_account(quantizer):
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    inputs = rng.standard_normal((256, 64)) / np.sqrt(np.arange(1, 65)) @ basis.T
    x, metric = rng.standard_normal((100, 64)), mcq.Gram(inputs.T @ inputs)
    unaware = quantizer(scale="row")
    aware = metric.relative_error(x, quantizer(scale="row").fit(x, metric).decode(unaware.fit_encode(x, metric)))
    assert aware < 0.7 * metric.relative_error(x, unaware.decode(unaware.fit_encode(x)))


@KINDS
@SCALES
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((5, 20)),
        np.full((1, 16), 3.0),
        np.ones((1, 1)),
        np.full((4, 17), 1e-42),
        np.full((4, 17), -1e38),
        np.eye(20)[:, :19],
    ],
    ids=["zeros", "one row", "one entry", "denormal", "huge", "sparse"],
)
def test_hard_data_come_back_finite(quantizer, scale, x):
    assert relative_error(quantizer(scale=scale), x) <= 1


@KINDS
@pytest.mark.parametrize("factor", [1e-38, 1e-20, 1e20])
def test_size_does_not_matter(quantizer, factor):
    x = np.random.default_rng(0).standard_normal((50, 32))
    assert relative_error(quantizer(), x * factor) < 0.15


@KINDS
def test_zero_rows_come_back_as_zeros(quantizer):
    x = np.random.default_rng(0).standard_normal((30, 19))
    x[[0, 7, 29]] = 0
    q = quantizer(scale="row")
    np.testing.assert_array_equal(q.decode(q.fit_encode(x))[[0, 7, 29]], 0)


@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_located(quantizer, value):
    x = np.ones((3, 16))
    x[1, 2] = value
    with pytest.raises(mcq.InputError, match="row 1 column 2"):
        quantizer().fit(x)


@pytest.mark.parametrize("per_word", [1, 2, 3, 5])
@pytest.mark.parametrize("d", [8, 40, 61])
def test_groups_that_share_words_decode_alike(per_word, d):
    x = np.random.default_rng(0).standard_normal((9, d))
    q, alone = PYRAMID(8, 3, 1, groups_per_word=per_word), PYRAMID(8, 3, 1)
    codes = q.fit_encode(x)
    np.testing.assert_array_equal(q.decode(codes), alone.decode(alone.fit_encode(x)))
    assert q.rate <= alone.rate


def test_altered_codes_are_refused():
    q = PYRAMID(8, 3, 1).fit(np.random.default_rng(0).standard_normal((9, 8)))
    codes = mcq.Codes.pack(np.full((1, 1, 1), 2**q.word_bits - 1), codebook_bits=q.word_bits, d=8)
    with pytest.raises(mcq.InputError, match="altered"):
        q.decode(codes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PYRAMID(16, 59), "pulses must be at most 56 .*gain_bits=1.*64 bits, got 59"),
        (lambda: PYRAMID(16, 59, 0), "pulses must be at most 58 "),
        (lambda: PYRAMID(16, 0), "pulses must be an integer from 1"),
        (lambda: PYRAMID(257), "group_size must be"),
        (lambda: PYRAMID(gain_bits=9), "gain_bits must be"),
        (lambda: PYRAMID(scale="group"), "scale must be one of 'none', 'row'"),
        (lambda: PYRAMID(gains="best"), "gains must be one of"),
        (lambda: PYRAMID(groups_per_word=3), "pulses must be at most 5 .*groups_per_word=3"),
        (lambda: PYRAMID(rounds=0), "rounds must be"),
        (lambda: SHELL(2, 3), "squared_norm must be that of an integer vector of 2 entries, but 3 is not.* is 2$"),
        (lambda: SHELL(16, 700), "squared_norm must be at most "),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(mcq.ConfigError, match=message):
        make()


@KINDS
@pytest.mark.parametrize(("bits", "size"), [(0.5, 16), (1.3, 4), (2, 16), (2.1, 24), (2.25, 8), (3, 16)])
def test_settings_for_a_rate_stay_below_it(quantizer, bits, size):
    q = quantizer.of_rate(bits, size, scale="row")
    assert 0.85 * bits <= q.rate <= bits
    assert (q.config.group_size, q.config.scale) == (size, "row")
    assert quantizer.of_rate(bits, size, scale="row").config == q.config


def test_settings_for_a_rate_are_those_of_the_tables():
    assert PYRAMID.of_rate(2).config == PYRAMID(16, 11, 1).config
    assert SHELL.of_rate(2, 24).config == SHELL(24, 27, 1).config


@KINDS
@pytest.mark.parametrize(("bits", "message"), [(0.05, "at least one code"), (4.5, "from 0.01 to 4"), (-1, "from")])
def test_rates_that_no_setting_has(quantizer, bits, message):
    with pytest.raises(mcq.ConfigError, match=f"bits must.*{message}"):
        quantizer.of_rate(bits)
