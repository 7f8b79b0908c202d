"""Trellis quantizer: bounds of quality, the layout of its bits, hard data, and what is refused."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcq
from mcq.trellis import LEVEL_PARTS, TrellisQuantizer, state_values, window_offsets

SCALES = pytest.mark.parametrize("scale", ["none", "row"])


def relative_error(quantizer, x, metric=None):
    """Of fit and of encode, the worse of both; everything decoded must be finite."""
    decoded = [quantizer.decode(quantizer.fit_encode(x, metric)), quantizer.decode(quantizer.encode(x, metric))]
    assert all(np.isfinite(x_hat).all() for x_hat in decoded)
    return max((metric or mcq.Identity()).relative_error(x, x_hat) for x_hat in decoded)


@pytest.mark.parametrize(
    ("bits", "state_bits", "bound"),
    [
        (1, 12, 0.275),
        (1.5, 12, 0.147),
        (2, 10, 0.0750),
        (2, 12, 0.0722),
        (2.5, 12, 0.0373),
        (3, 12, 0.0181),
        (4, 12, 0.00468),
    ],
)
def test_unit_variance(bits, state_bits, bound):
    """Mean squared error of an entry, about a per cent above what is reached."""
    x = np.random.default_rng(0).standard_normal((10, 2000))
    quantizer = TrellisQuantizer(bits, state_bits)
    codes = quantizer.fit_encode(x)
    assert quantizer.bits(codes).payload == bits
    assert 4**-bits < mcq.Identity().distortion(x, quantizer.decode(codes)) / x.size < bound


def test_wider_windows_and_beams_are_better():
    rng = np.random.default_rng(0)
    x, inputs = rng.standard_normal((10, 500)), rng.standard_normal((700, 500)) / np.sqrt(np.arange(1, 501))
    errors = [relative_error(TrellisQuantizer(2, state_bits), x) for state_bits in (9, 11, 13)]
    assert errors == sorted(errors, reverse=True)
    metric = mcq.Gram(inputs.T @ inputs)
    errors = [relative_error(TrellisQuantizer(2, 12, "row", width), x, metric) for width in (4, 32, 256)]
    assert errors == sorted(errors, reverse=True)


def test_a_gram_is_taken_into_account():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    inputs = rng.standard_normal((256, 64)) / np.sqrt(np.arange(1, 65)) @ basis.T
    x, metric = rng.standard_normal((100, 64)), mcq.Gram(inputs.T @ inputs)
    unaware = TrellisQuantizer(scale="row", state_bits=9)
    aware = relative_error(TrellisQuantizer(scale="row", state_bits=9, beam_width=64), x, metric)
    assert aware < 0.5 * metric.relative_error(x, unaware.decode(unaware.fit_encode(x)))


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(1, 5), st.sampled_from([9, 12]))
def test_every_entry_is_a_window_of_its_row(seed, d, bits, state_bits):
    x = np.random.default_rng(seed).standard_normal((3, d))
    quantizer = TrellisQuantizer(bits, state_bits)
    codes = quantizer.fit_encode(x)
    assert codes.packed.shape == (3, -(-int(d * bits) // 8))
    rows = [int.from_bytes(row.tobytes(), "little") for row in codes.packed]
    windows = [[row >> int(j * bits) & (1 << state_bits) - 1 for j in range(d)] for row in rows]
    scale = np.float32(quantizer.spread * quantizer.gain)
    np.testing.assert_array_equal(quantizer.decode(codes), state_values(state_bits)[windows] * scale)


@pytest.mark.parametrize("bits", [1, 1.3, 2, 2.75, 5])
def test_windows_begin_where_the_bits_of_their_entry_do(bits):
    offset = window_offsets(1000, bits)
    assert offset[0] == 0
    assert offset[-1] == int(1000 * bits)
    assert set(np.diff(offset)) <= {int(bits), -int(-bits // 1)}


@pytest.mark.parametrize("state_bits", [9, 12, 14, 16])
def test_values_are_normal_and_symmetric(state_bits):
    values = state_values(state_bits)
    assert values.shape == (1 << state_bits,)
    assert abs(values.std() - 1) < 0.01
    opposite = (1 - np.arange(len(values))) % len(values)
    np.testing.assert_array_equal(values[opposite], -values)


def test_values_never_change():
    """Files hold windows only, so what they stand for is part of the format."""
    parts = np.concatenate([state_values(state_bits) * LEVEL_PARTS for state_bits in range(9, 17)])
    assert zlib.crc32(parts.astype("<i2").tobytes()) == 4223241326


@SCALES
@pytest.mark.parametrize("metric", [None, "gram"])
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
def test_hard_data_come_back_finite(scale, metric, x):
    inputs = np.random.default_rng(0).standard_normal((30, x.shape[1]))
    metric = None if metric is None else mcq.Gram(inputs.T @ inputs)
    assert relative_error(TrellisQuantizer(scale=scale, state_bits=9, beam_width=8), x, metric) <= 1


@pytest.mark.parametrize("factor", [1e-38, 1e-20, 1e20])
def test_size_does_not_matter(factor):
    x = np.random.default_rng(0).standard_normal((20, 64))
    assert relative_error(TrellisQuantizer(state_bits=9), x * factor) < 0.12


def test_one_entry_far_from_all_others_spoils_only_itself():
    x = np.random.default_rng(0).standard_normal((20, 64))
    quantizer = TrellisQuantizer(state_bits=10).fit(x)
    x[3, 40] = 1e11
    error = np.square(x - quantizer.decode(quantizer.encode(x)))
    error[3, 36:45] = 0
    assert error.mean() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0.5}, "bits must be a number from 1.0 to 5"),
        ({"bits": 5.5}, "bits must be a number from 1.0 to 5"),
        ({"state_bits": 8}, "state_bits must be an integer from 9 to 16"),
        ({"state_bits": 17}, "state_bits must be an integer from 9 to 16"),
        ({"scale": "group"}, "scale must be one of 'none', 'row'"),
        ({"beam_width": 0}, "beam_width must be an integer from 1 to 4096"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(mcq.ConfigError, match=message):
        TrellisQuantizer(**options)


@pytest.mark.parametrize("options", [{"bits": 3}, {"scale": "row"}], ids=str)
def test_codes_of_other_options_are_refused(options):
    x = np.random.default_rng(0).standard_normal((4, 20))
    quantizer = TrellisQuantizer(state_bits=9).fit(x)
    with pytest.raises(mcq.InputError, match="same options"):
        quantizer.decode(TrellisQuantizer(**{"state_bits": 9} | options).fit_encode(x))
