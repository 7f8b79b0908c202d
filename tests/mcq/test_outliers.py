"""Outliers: their places come back, they are counted in full, and they help where single entries stand out."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
import mcq_ext
from mcq.outliers import pack_places, places_bytes, unpack_places

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((150, 48)) * np.exp(RNG.standard_normal(48) / 2)
GRAM = mcq.Gram(INPUTS.T @ INPUTS)
INNERS = {
    "additive": lambda: mcq.AdditiveQuantizer(1, 6, 8, "row", rounds=3),
    "residual": lambda: mcq.ResidualQuantizer(2, 4, 8, rounds=2, codebook_dtype="int8"),
    "relaxed": lambda: mcq.RelaxedQuantizer(2, 4, 8, rounds=2, extents=(1, 0.5)),
    "product": lambda: mcq.ProductQuantizer(6, 1, 4, rounds=2),
}


@pytest.mark.parametrize(
    "inner", [mcq.ScalarQuantizer(), mcq.CompandedQuantizer(), mcq.OutlierQuantizer(INNERS["additive"]())]
)
def test_codes_without_a_place_for_outliers_are_refused(inner):
    with pytest.raises(mcq.InputError, match="codes of one width and no outliers"):
        mcq.OutlierQuantizer(inner)


def spiky(n=200, d=48):
    """Normal rows with one entry in fifty ten times as large."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((n, d))
    return (x * np.where(rng.random((n, d)) < 0.02, 10, 1)).astype(np.float32)


@pytest.fixture(params=INNERS)
def case(request):
    metric = None if request.param == "product" else GRAM
    quantizer = mcq.OutlierQuantizer(INNERS[request.param](), fraction=1 / 24)
    return quantizer, quantizer.fit_encode(spiky(), metric), metric


@given(st.data())
def test_places_come_back(data):
    d = data.draw(st.integers(1, 300))
    count = data.draw(st.integers(1, d))
    rows = data.draw(st.integers(0, 4))
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    places = np.array([np.sort(rng.permutation(d)[:count]) for _ in range(rows)], np.intp).reshape(rows, count)
    packed = pack_places(places, d)
    assert packed.shape == (rows, places_bytes(count, d))
    np.testing.assert_array_equal(unpack_places(packed, count, d), places)


@pytest.mark.parametrize(("count", "d"), [(3, 576), (8, 1536), (20, 4096), (1, 100_000)])
def test_places_take_two_bits_more_than_their_rarity(count, d):
    assert 8 * places_bytes(count, d) <= count * (np.log2(d / count) + 2) + 16


@pytest.mark.parametrize("byte", range(places_bytes(3, 100)))
def test_altered_places_are_refused_or_lie_in_the_row(byte):
    packed = pack_places(np.array([[3, 70, 99]]), 100)
    packed[0, byte] ^= 0xFF
    with contextlib.suppress(mcq.InputError):
        assert unpack_places(packed, 3, 100).max() < 100


def test_outliers_pay_where_entries_stand_out():
    """One entry of each row is thirty times as large."""
    x = RNG.standard_normal((2000, 48)).astype(np.float32)
    x[np.arange(2000), RNG.integers(0, 48, 2000)] *= 30
    plain, finer = mcq.AdditiveQuantizer(2, 5, 8), mcq.AdditiveQuantizer(2, 7, 8)
    with_outliers = mcq.OutlierQuantizer(mcq.AdditiveQuantizer(2, 5, 8), fraction=0.02)
    found = {}
    for name, quantizer in [("plain", plain), ("finer", finer), ("outliers", with_outliers)]:
        codes = quantizer.fit_encode(x)
        found[name] = quantizer.bits(codes).all_in, mcq.Identity().relative_error(x, quantizer.decode(codes))
    assert found["outliers"][0] < found["finer"][0]
    assert found["outliers"][1] < found["finer"][1] < found["plain"][1]


def test_the_largest_entries_are_apart():
    x = RNG.standard_normal((100, 48)).astype(np.float32)
    columns = RNG.integers(0, 48, 100)
    x[np.arange(100), columns] = 100
    quantizer = mcq.OutlierQuantizer(mcq.AdditiveQuantizer(1, 4, 8), fraction=1 / 48)
    codes = quantizer.fit_encode(x)
    np.testing.assert_array_equal(unpack_places(codes.outliers[:, 2:], 1, 48)[:, 0], columns)
    assert np.abs(quantizer.decode(codes) - x).max() < 5


def test_bits_are_counted_in_full(case):
    quantizer, codes, _ = case
    n, d = codes.shape
    assert codes.outliers.shape == (n, 2 * 2 + places_bytes(2, d))
    scales = 0 if codes.scales is None else codes.scales.nbytes
    stored = (
        codes.packed.nbytes + scales + codes.outliers.nbytes + sum(a.nbytes for a in quantizer.inner.arrays.values())
    )
    assert quantizer.bits(codes).all_in == pytest.approx(8 * (stored + 4) / (n * d))


def test_files_give_back_equal_objects(case, tmp_path):
    quantizer, codes, metric = case
    quantizer.save(tmp_path / "q.mcq")
    codes.save(tmp_path / "codes.mcq")
    loaded, loaded_codes = mcq.load(tmp_path / "q.mcq"), mcq.load(tmp_path / "codes.mcq")
    assert loaded_codes == codes
    assert loaded.config == quantizer.config
    np.testing.assert_array_equal(loaded.decode(loaded_codes), quantizer.decode(codes))
    assert loaded.encode(spiky(), metric) == quantizer.encode(spiky(), metric)


def test_rows_do_not_influence_each_other(case):
    quantizer, _, metric = case
    whole = quantizer.encode(spiky(), metric)
    parts = [quantizer.encode(part, metric) for part in (spiky()[:17], spiky()[17:])]
    assert mcq.Codes.concatenate(parts) == whole
    np.testing.assert_array_equal(quantizer.decode(whole[5:9]), quantizer.decode(whole)[5:9])


def test_threads_and_simd_levels_change_nothing(case):
    quantizer, codes, metric = case
    before = mcq_ext.simd_level(), mcq_ext.num_threads()
    try:
        for level, threads in zip(mcq_ext.simd_levels(), (3, 1, 2), strict=False):
            mcq_ext.set_simd_level(level)
            mcq_ext.set_num_threads(threads)
            again = mcq.OutlierQuantizer(INNERS[quantizer.inner.kind](), fraction=1 / 24)
            assert again.fit_encode(spiky(), metric) == codes
    finally:
        mcq_ext.set_simd_level(before[0])
        mcq_ext.set_num_threads(before[1])


def test_other_quantizers_refuse_the_codes_and_the_other_way_round(case):
    quantizer, codes, metric = case
    with pytest.raises(mcq.InputError, match="same options.* outliers"):
        quantizer.inner.decode(codes)
    with pytest.raises(mcq.InputError, match="same options.* outliers"):
        quantizer.decode(quantizer.inner.encode(spiky(), metric))


def test_metric_of_another_width_is_refused():
    with pytest.raises(mcq.InputError, match="weighs 48 columns, but the data have 40"):
        mcq.OutlierQuantizer(INNERS["additive"]()).fit(spiky(d=40), GRAM)


def test_progress_is_that_of_the_fit():
    calls = []
    quantizer = mcq.OutlierQuantizer(INNERS["additive"]())
    quantizer.fit(spiky(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 4) for done in range(1, 5)]


@pytest.mark.parametrize("factor", [1e20, 1e-20])
def test_tiny_and_huge_values(factor):
    x = spiky() * np.float32(factor)
    quantizer = mcq.OutlierQuantizer(mcq.AdditiveQuantizer(2, 4, 8, rounds=3), fraction=0.02)
    assert mcq.Identity().relative_error(x, quantizer.decode(quantizer.fit_encode(x))) < 0.3


@pytest.mark.parametrize("fraction", [-0.1, 1.1, "half"])
def test_bad_fractions_are_refused(fraction):
    with pytest.raises(mcq.ConfigError, match="fraction must be"):
        mcq.OutlierQuantizer(mcq.AdditiveQuantizer(), fraction)


def test_use_before_fit_is_refused(tmp_path):
    quantizer = mcq.OutlierQuantizer(mcq.AdditiveQuantizer())
    with pytest.raises(mcq.NotFittedError, match="call fit"):
        quantizer.encode(spiky())
    with pytest.raises(mcq.NotFittedError, match="call fit"):
        quantizer.save(tmp_path / "q.mcq")
