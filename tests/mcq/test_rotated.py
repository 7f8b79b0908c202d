"""Quantizers of rotated rows."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mcq
from mcq import io

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 48)).astype(np.float32) ** 3
INPUTS = RNG.standard_normal((200, 48)) @ RNG.standard_normal((48, 48))
METRICS = {
    "identity": mcq.Identity(),
    "diagonal": mcq.Diagonal(RNG.uniform(0.1, 4, 48)),
    "gram": mcq.Gram(INPUTS.T @ INPUTS / 200),
}
INNER = {
    "additive": lambda: mcq.AdditiveQuantizer(2, 4, 8, "row", rounds=2),
    "grouped": lambda: mcq.ResidualQuantizer(2, 4, 8, "group", rounds=2),
    "scalar": lambda: mcq.ScalarQuantizer(3, 16),
}


@pytest.fixture(params=INNER.values(), ids=INNER.keys())
def inner(request):
    return request.param


@pytest.fixture(params=METRICS.values(), ids=METRICS.keys())
def metric(request):
    return request.param


def test_is_the_inner_quantizer_on_rotated_rows(inner, metric):
    quantizer = mcq.RotatedQuantizer(inner())
    codes = quantizer.fit_encode(X, metric, seed=3)
    rotation = mcq.Hadamard(48, 3)
    plain = inner()
    assert plain.fit_encode(rotation.apply(X), rotation.apply_metric(metric), seed=3) == codes
    rebuilt = rotation.invert(plain.decode(codes))
    assert np.array_equal(quantizer.decode(codes), rebuilt)
    inside = rotation.apply_metric(metric).distortion(rotation.apply(X), plain.decode(codes))
    assert metric.distortion(X, rebuilt) == pytest.approx(inside, rel=1e-3)
    seed = 64 / X.size
    assert quantizer.bits(codes).all_in == pytest.approx(plain.bits(codes).all_in + seed)


def test_saves_loads_and_encodes_alike(inner, metric, tmp_path):
    quantizer = mcq.RotatedQuantizer(inner()).fit(X, metric, seed=1)
    quantizer.save(tmp_path / "q.mcq")
    loaded = mcq.load(tmp_path / "q.mcq")
    codes = quantizer.encode(X, metric)
    assert loaded.encode(X, metric) == codes
    assert np.array_equal(loaded.decode(codes), quantizer.decode(codes))
    assert io.restore(quantizer.container(), "here").config == quantizer.config


def test_heavy_tails_become_light():
    plain, rotated = (wrap(mcq.ScalarQuantizer(4, None)) for wrap in (lambda q: q, mcq.RotatedQuantizer))
    errors = [mcq.Identity().relative_error(X, q.decode(q.fit_encode(X))) for q in (plain, rotated)]
    assert errors[1] < 0.7 * errors[0]


def test_what_cannot_be_rotated_is_refused(tmp_path):
    with pytest.raises(mcq.InputError, match="does not rotate itself, got RotatedQuantizer"):
        mcq.RotatedQuantizer(mcq.RotatedQuantizer(INNER["additive"]()))
    with pytest.raises(mcq.InputError, match="got str"):
        mcq.RotatedQuantizer("additive")
    with pytest.raises(mcq.NotFittedError):
        mcq.RotatedQuantizer(INNER["additive"]()).encode(X)
    quantizer = mcq.RotatedQuantizer(INNER["additive"]()).fit(X)
    container = quantizer.container()
    for broken in (
        {"arrays": {k: v for k, v in container.arrays.items() if k != "rotation"}},
        {"config": {**container.config, "inner": "codes"}},
        {"config": {**container.config, "version": 2}},
    ):
        with pytest.raises(mcq.FormatError):
            io.restore(container._replace(**broken), "here")


def new_unbiased(unbiased=True, **options):
    return mcq.RotatedQuantizer(mcq.ShellQuantizer(8, 4, 0, scale="row", **options), unbiased)


def estimates(quantizer, x, q, seeds):
    """Inner products (seeds, n) of `q` with what is decoded of `x` after each of some rotations."""
    found = []
    for seed in range(seeds):
        seeds = np.arange(len(quantizer.arrays["rotation"]), dtype=np.uint64) + np.uint64(2 * seed)
        quantizer.arrays = quantizer.arrays | {"rotation": seeds}
        found.append(quantizer.decode(quantizer.encode(x)) @ q)
    return np.array(found, np.float64)


@pytest.mark.parametrize("d", [48, 64])
def test_inner_products_are_right_on_average_over_rotations(d):
    rng = np.random.default_rng(d)
    x = rng.laplace(size=(12, d)).astype(np.float32)
    x[2:4, 0] = 20  # most of the row
    q = (x[0] + x[1] + rng.standard_normal(d)).astype(np.float32)
    true, seeds = x.astype(np.float64) @ q, 800
    found = estimates(new_unbiased().fit_normal(d), x, q, seeds)
    sigma = found.std(0) / np.sqrt(seeds)
    assert (np.abs(found.mean(0) - true) < 6 * sigma + 1e-3 * np.abs(true)).all()
    short = estimates(new_unbiased(False).fit_normal(d), x, q, seeds).mean(0)
    assert (short[:2] < true[:2] - 6 * sigma[:2]).all()


def test_slope_of_estimates_is_one():
    rng = np.random.default_rng(1)
    x, q = rng.standard_normal((500, 96)), rng.standard_normal((300, 96))
    true, slopes = x @ q.T, []
    for unbiased in (True, False):
        quantizer = new_unbiased(unbiased).fit_normal(96)
        slopes.append(float((quantizer.decode(quantizer.encode(x)) @ q.T * true).sum() / np.square(true).sum()))
    assert slopes[0] == pytest.approx(1, abs=0.01)
    assert slopes[1] < 0.9


def test_true_neighbours_are_found_no_less_often():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1500, 24)) @ rng.standard_normal((24, 64))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    q = x[:300] + rng.standard_normal((300, 64)) / 24
    nearest, hits = (q @ x.T).argmax(1), []
    for unbiased in (True, False):
        quantizer = new_unbiased(unbiased).fit_normal(64)
        hits.append((nearest == (q @ quantizer.decode(quantizer.encode(x)).T).argmax(1)).mean())
    assert hits[0] >= hits[1]


@functools.cache
def unbiased_on_normal():
    return new_unbiased().fit_normal(48, seed=5)


@given(
    rows=arrays(np.float32, (5, 48), elements=st.floats(-1000, 1000, width=32)),
    cut=st.integers(1, 4),
)
def test_rows_keep_their_product_with_themselves(rows, cut):
    quantizer = unbiased_on_normal()
    codes = quantizer.encode(rows)
    assert mcq.Codes.concatenate([quantizer.encode(rows[:cut]), quantizer.encode(rows[cut:])]) == codes
    x_hat = quantizer.decode(codes)
    square = np.square(rows, dtype=np.float64).sum(1)
    large = square > 1  # scales are float16 numbers
    np.testing.assert_allclose((rows * x_hat.astype(np.float64)).sum(1)[large], square[large], rtol=2e-3)
    assert not x_hat[square == 0].any()


def test_learns_nothing_from_data():
    first, again, other = (
        mcq.RotatedQuantizer(mcq.ShellQuantizer(scale="row")).fit_normal(48, seed=s) for s in (1, 1, 2)
    )
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert not np.array_equal(first.arrays["rotation"], other.arrays["rotation"])
    assert first.decode(first.encode(X[:, :31])).shape == (40, 31)
    normal = RNG.standard_normal((2000, 48))
    learned = mcq.RotatedQuantizer(mcq.ShellQuantizer(scale="row")).fit(normal)
    errors = [mcq.Identity().relative_error(normal, q.decode(q.encode(normal))) for q in (first, learned)]
    assert errors[0] < 1.01 * errors[1]


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_normal_entries_have_the_size_that_is_asked_for(size):
    quantizer, x = new_unbiased().fit_normal(48, size=size), X * np.float32(size)
    square = np.square(x, dtype=np.float64).sum(1)
    np.testing.assert_allclose((x * quantizer.decode(quantizer.encode(x)).astype(np.float64)).sum(1), square, rtol=2e-3)


def test_unbiased_quantizers_are_saved(tmp_path):
    quantizer = new_unbiased().fit_normal(48)
    quantizer.save(tmp_path / "q.mcq")
    loaded = mcq.load(tmp_path / "q.mcq")
    assert loaded.config.unbiased
    assert loaded.encode(X) == quantizer.encode(X)
    assert loaded.encode(X) != new_unbiased(False).fit_normal(48).encode(X)
    older = new_unbiased(False).fit_normal(48).container()
    del older.config["unbiased"]
    assert not io.restore(older, "here").config.unbiased
    arrays = quantizer.container().arrays | {"rotation": np.zeros(1, np.uint64)}
    with pytest.raises(mcq.FormatError, match="'rotation' must have shape"):
        io.restore(quantizer.container()._replace(arrays=arrays), "here")


def test_what_cannot_be_unbiased_is_refused():
    for inner in (mcq.ShellQuantizer(), mcq.ScalarQuantizer(4, None)):
        with pytest.raises(mcq.ConfigError, match="needs an inner quantizer with scale='row', got S"):
            mcq.RotatedQuantizer(inner, unbiased=True)
    with pytest.raises(mcq.ConfigError, match="unbiased must be one of"):
        mcq.RotatedQuantizer(mcq.ShellQuantizer(scale="row"), unbiased="yes")
    quantizer = new_unbiased()
    for metric in (METRICS["gram"], METRICS["diagonal"]):
        with pytest.raises(mcq.InputError, match=f"needs the identity as metric, got {type(metric).__name__}"):
            quantizer.fit(X, metric)
    with pytest.raises(mcq.ConfigError, match="size must be"):
        quantizer.fit_normal(48, size=0.0)
    with pytest.raises(mcq.InputError, match="give it to fit_normal"):
        quantizer.fit_normal(48).encode(X * 1e6)
