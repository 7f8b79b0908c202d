"""Rows in bands of importance."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import mcq

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 24)).astype(np.float32)
RATES = (1.0, 2.0, 3.0)


def banded():
    return mcq.BandedQuantizer([mcq.ShellQuantizer.of_rate(rate, 8, "row") for rate in RATES])


def test_important_rows_get_the_better_parts():
    importance = RNG.permutation(64)
    quantizer = banded()
    codes = quantizer.fit_encode(X, importance=importance)
    assert np.bincount(codes.bands).tolist() == [21, 21, 22]
    assert codes.bands[np.argsort(importance)].tolist() == sorted(codes.bands)
    errors = np.square(X - quantizer.decode(codes)).sum(1) / np.square(X).sum(1)
    means = [errors[codes.bands == band].mean() for band in range(3)]
    assert means[0] > 2 * means[1] > 4 * means[2]


def test_each_band_is_coded_as_its_part_alone_would():
    quantizer = banded()
    codes = quantizer.fit_encode(X)
    for band, rate in enumerate(RATES):
        rows = X[codes.bands == band]
        alone = mcq.ShellQuantizer.of_rate(rate, 8, "row")
        assert alone.fit_encode(rows) == codes.parts[band]
        np.testing.assert_array_equal(quantizer.decode(codes)[codes.bands == band], alone.decode(codes.parts[band]))


def test_water_filling_beats_equal_rates():
    x = X * np.exp2(RNG.integers(0, 4, (64, 1))).astype(np.float32)
    alike, uneven = mcq.ShellQuantizer.of_rate(2.0, 8, "row"), banded()
    errors = [mcq.Identity().relative_error(x, q.decode(q.fit_encode(x))) for q in (alike, uneven)]
    assert errors[1] < 0.6 * errors[0]


@given(n=st.integers(1, 12), start=st.integers(0, 12), stop=st.integers(0, 12), seed=st.integers(0, 99))
def test_cuts_and_joins_of_codes(n, start, stop, seed):
    x = np.random.default_rng(seed).standard_normal((n, 8))
    quantizer = mcq.BandedQuantizer([mcq.ScalarQuantizer(bits, None) for bits in (1, 2, 4, 5)])
    codes = quantizer.fit_encode(x)
    part = codes[start:stop]
    assert len(part) == len(range(n)[start:stop])
    np.testing.assert_array_equal(quantizer.decode(part), quantizer.decode(codes)[start:stop])
    assert mcq.BandedCodes.concatenate([codes[:start], codes[start:]]) == codes


def test_equal_rows_share_a_band_and_other_parts_are_fitted_all_the_same(tmp_path):
    quantizer = banded()
    codes = quantizer.fit_encode(np.ones((5, 8)))
    assert len(set(codes.bands.tolist())) == 1
    quantizer.save(tmp_path / "q.mcq")
    again = mcq.load(tmp_path / "q.mcq")
    assert np.isfinite(again.decode(again.encode(X[:, :8]))).all()


def test_bits_count_the_bands():
    codes = banded().fit_encode(X)
    inner = sum(part.bits().all_in * part.shape[0] * part.shape[1] for part in codes.parts)
    assert codes.bits().all_in * X.size == inner + 64 * 2  # two bits a row


@pytest.mark.parametrize(
    "importance", [np.ones(63), -np.ones(64), np.full(64, np.nan), np.ones((64, 1)), np.full(64, np.inf), ["a"] * 64]
)
def test_bad_importance_is_refused(importance):
    with pytest.raises(mcq.InputError, match="importance must be"):
        banded().fit_encode(X, importance=importance)


def test_bad_parts_are_refused():
    with pytest.raises(mcq.ConfigError, match="number of parts"):
        mcq.BandedQuantizer([])
    with pytest.raises(mcq.InputError, match="not banded themselves"):
        mcq.BandedQuantizer([banded()])
    with pytest.raises(mcq.InputError, match="must be quantizers"):
        mcq.BandedQuantizer([None])


def test_codes_that_do_not_fit_are_refused():
    codes = banded().fit_encode(X)
    with pytest.raises(mcq.InputError, match="rows of their bands"):
        mcq.BandedCodes(codes.bands[:-1], codes.parts)
    with pytest.raises(mcq.InputError, match="step 1"):
        codes[::2]
    with pytest.raises(TypeError, match="slice"):
        codes[3]
    with pytest.raises(mcq.InputError, match="at least one part"):
        mcq.BandedCodes.concatenate([])


def test_one_quantizer_given_for_several_bands_is_fitted_for_each():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 16)) * np.exp(3 * rng.standard_normal((64, 1)))
    part = mcq.ScalarQuantizer(3, 8)
    repeated = mcq.BandedQuantizer([part, part])
    apart = mcq.BandedQuantizer([mcq.ScalarQuantizer(3, 8), mcq.ScalarQuantizer(3, 8)])
    np.testing.assert_array_equal(repeated.decode(repeated.fit_encode(x)), apart.decode(apart.fit_encode(x)))
    with pytest.raises(mcq.NotFittedError):
        part.encode(x)


@pytest.mark.parametrize("part", [mcq.GridQuantizer(2, 16), mcq.RotatedQuantizer(mcq.ShellQuantizer(8, 12))], ids=str)
def test_empty_bands_are_decoded(part):
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    x[:40] = 0
    quantizer = mcq.BandedQuantizer([part] * 4)
    codes = quantizer.fit_encode(x)
    assert 0 in [len(found) for found in codes.parts]
    assert mcq.Identity().relative_error(x, quantizer.decode(codes)) < 0.3
