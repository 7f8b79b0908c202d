"""Packed codes: bit order, round trips, slices, accounting, files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcq import io
from mcq.codes import Bits, Codes
from mcq.errors import ConfigError, FormatError, InputError


@st.composite
def any_codes(draw):
    """Codes of any layout, with the integers they were packed from."""
    n, groups, codebooks = (draw(st.integers(low, 5)) for low in (0, 1, 1))
    bits = draw(st.integers(1, 64))
    unpacked = draw(
        hnp.arrays(np.uint16 if bits <= 16 else np.uint64, (n, groups, codebooks), elements=st.integers(0, 2**bits - 1))
    )
    columns = draw(st.sampled_from([None, 1, groups]))
    scales = None if columns is None else np.arange(n * columns, dtype=np.float16).reshape(n, columns)
    d = draw(st.integers(1, 40))
    return unpacked, Codes.pack(unpacked, codebook_bits=bits, d=d, scales=scales)


def packed_by_numpy(unpacked, bits):
    digits = (unpacked[..., np.newaxis] >> np.arange(bits, dtype=unpacked.dtype) & 1).astype(np.uint8)
    return np.packbits(digits.reshape(len(digits), np.prod(digits.shape[1:])), axis=1, bitorder="little")


@given(any_codes())
def test_unpack_returns_what_was_packed(case):
    unpacked, codes = case
    np.testing.assert_array_equal(codes.unpack(), unpacked)


@given(any_codes())
def test_bit_order_is_little_endian_group_major(case):
    unpacked, codes = case
    np.testing.assert_array_equal(codes.packed, packed_by_numpy(unpacked, codes.codebook_bits))


def test_bit_order_by_hand():
    # 3 bits each: 1, 2, 3, 4 -> 001, 010, 011, 100 -> read from bit 0 upwards
    codes = Codes.pack(np.array([[[1, 2], [3, 4]]]), codebook_bits=3, d=8)
    assert codes.packed.tolist() == [[0b11_010_001, 0b0000_100_0]]


@given(any_codes(), st.integers(0, 5), st.integers(0, 5))
def test_slices_join_to_the_whole(case, a, b):
    unpacked, codes = case
    first, second = sorted((a, b))
    parts = [codes[:first], codes[first:second], codes[second:]]
    assert Codes.concatenate(parts) == codes
    np.testing.assert_array_equal(codes[::2].unpack(), unpacked[::2])


@given(any_codes())
def test_file_returns_equal_codes(tmp_path_factory, case):
    _, codes = case
    path = tmp_path_factory.mktemp("codes") / "codes.mcq"
    codes.save(path)
    assert Codes.load(path) == codes
    assert io.load(path) == codes


def test_bits_follow_their_formulas():
    n, groups, codebooks, bits, d = 3, 5, 2, 3, 38
    scales = np.ones((n, 1), np.float16)
    codes = Codes.pack(np.zeros((n, groups, codebooks), int), codebook_bits=bits, d=d, scales=scales)
    row_bytes = 4  # 30 bits
    assert codes.bits() == Bits(payload=30 / 38, all_in=8 * (row_bytes + 2) / 38)
    assert codes.bits(shared_bytes=57).all_in == pytest.approx(8 * (n * 6 + 57) / (n * d))


@pytest.mark.parametrize(
    ("unpacked", "message"),
    [
        (np.full((1, 1, 1), 16), r"0\.\.15 to fit 4 bits, got 0\.\.16"),
        (np.full((1, 1, 1), -1), r"got -1\.\.0"),
        (np.zeros((2, 3), int), r"shape \(n, G, M\), got int64 of shape \(2, 3\)"),
        (np.zeros((1, 1, 1)), "integers"),
    ],
)
def test_pack_refuses_what_cannot_be_packed(unpacked, message):
    with pytest.raises(InputError, match=message):
        Codes.pack(unpacked, codebook_bits=4, d=8)


@pytest.mark.parametrize("bits", [0, 65, 2.5, True])
def test_pack_refuses_odd_widths(bits):
    with pytest.raises(ConfigError, match="codebook_bits must be an integer from 1 to 64"):
        Codes.pack(np.zeros((1, 1, 1), int), codebook_bits=bits, d=8)


def test_arrays_must_fit_the_layout():
    with pytest.raises(InputError, match=r"packed must be uint8 of shape \(2, 2\), got uint8 of shape \(2, 3\)"):
        Codes(np.zeros((2, 3), np.uint8), (2, 8), num_groups=2, num_codebooks=1, codebook_bits=8)
    with pytest.raises(InputError, match=r"scales must be float16 of shape \(2, 1\) or \(2, 2\)"):
        Codes.pack(np.zeros((2, 2, 1), int), codebook_bits=8, d=8, scales=np.ones((2, 1)))


def test_concatenate_refuses_other_layouts():
    a, b = (Codes.pack(np.zeros((1, 1, 1), int), codebook_bits=bits, d=8) for bits in (3, 4))
    with pytest.raises(InputError, match=r"one layout.*'codebook_bits': 3.*'codebook_bits': 4"):
        Codes.concatenate([a, b])
    with pytest.raises(InputError, match="at least one"):
        Codes.concatenate([])


def test_single_rows_are_asked_for_by_slice():
    codes = Codes.pack(np.zeros((2, 1, 1), int), codebook_bits=8, d=8)
    with pytest.raises(TypeError, match="slice"):
        codes[0]


def test_contradicting_file_is_refused(tmp_path):
    config = {"shape": [4, 8], "num_groups": 2, "num_codebooks": 1, "codebook_bits": 8}
    path = tmp_path / "codes.mcq"
    io.write(path, "codes", config, {"packed": np.zeros((3, 2), np.uint8)})
    with pytest.raises(FormatError, match=r"not a usable container of kind 'codes': packed must be"):
        Codes.load(path)
