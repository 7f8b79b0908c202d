"""Quantizers of rotated rows."""

import numpy as np
import pytest

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
