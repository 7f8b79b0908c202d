"""The largest options stay within a bound on memory."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

import mcq

MIB = 1 << 20


@contextmanager
def at_most(bytes_):
    """Bound the memory that NumPy and Python ask for inside, above what they hold before."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= bytes_, f"{peak / MIB:.0f} MiB"


def gram(d):
    inputs = np.random.default_rng(1).standard_normal((2 * d, d))
    return mcq.Gram(inputs.T @ inputs)


@pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer])
@pytest.mark.parametrize("metric", [mcq.Identity(), gram(32)], ids=["identity", "gram"])
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_sixteen_bits_on_few_rows(quantizer, metric, num_codebooks):
    """A table of all pairs would take 16 GiB. Each of the 80 groups can have an entry of its own."""
    x = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    q = quantizer(num_codebooks, 16, 8, rounds=1)
    with at_most(128 * MIB * num_codebooks):
        codes = q.fit_encode(x, metric)
        encoded = q.encode(x, metric)
    for found in (codes, encoded):
        assert metric.relative_error(x, q.decode(found)) < 1e-5
        assert q.bits(found).payload == 2 * num_codebooks


def test_sixteen_bits_are_all_of_use():
    """A grid of 65536 points has an entry for each."""
    x = np.stack(np.meshgrid(*[np.arange(-128, 128)] * 2), axis=-1).reshape(-1, 2)
    q = mcq.AdditiveQuantizer(1, 16, 2, rounds=1)
    codes = q.fit_encode(x)
    assert len(np.unique(codes.unpack())) == 1 << 16
    np.testing.assert_array_equal(q.decode(codes), x)


@pytest.mark.parametrize("metric", [mcq.Diagonal(np.arange(1, 513)), gram(512)], ids=["diagonal", "gram"])
def test_long_rows_need_no_block_for_every_entry(metric):
    """512 entries with a block of 512 x 512 doubles each would take 1 GiB."""
    x = np.random.default_rng(0).standard_normal((300, 512)).astype(np.float32)
    q = mcq.AdditiveQuantizer(2, 8, None, rounds=1)
    with at_most(64 * MIB):
        codes = q.fit_encode(x, metric)
    assert metric.relative_error(x, q.decode(codes)) < 0.3


@pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer])
def test_sixteen_codebooks(quantizer):
    x = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    q = quantizer(16, 4, 16, rounds=2)
    codes = q.fit_encode(x)
    assert q.bits(codes).payload == 4
    assert mcq.Identity().relative_error(x, q.decode(codes)) < 0.02


def test_memory_is_a_few_copies_of_the_data():
    x = np.random.default_rng(0).standard_normal((4000, 512)).astype(np.float32)
    q = mcq.AdditiveQuantizer(2, 4, 8, rounds=1)
    with at_most(12 * x.nbytes):
        codes = q.fit_encode(x)
    with at_most(3 * x.nbytes):
        q.decode(codes)


@pytest.mark.parametrize("bits", [4, 7])
@pytest.mark.parametrize("metric", [None, mcq.Diagonal(np.arange(1, 33))], ids=["identity", "diagonal"])
@pytest.mark.parametrize(
    "make",
    [
        lambda bits: mcq.AdditiveQuantizer(3, bits, None, rounds=1, search_steps=1),
        lambda bits: mcq.ResidualQuantizer(3, bits, None, rounds=1, beam_width=2),
        lambda bits: mcq.ProductQuantizer(4, 1, bits, rounds=1),
    ],
    ids=["additive", "residual", "product"],
)
def test_an_encode_needs_little_beside_its_rows(monkeypatch, make, bits, metric):
    """Rows that would take 8 MiB as float32; the codes take 0.2 MiB."""
    monkeypatch.setattr("mcq.problem.PART_BYTES", MIB // 4)
    monkeypatch.setattr("mcq.encoders.tables.UNARY_BYTES", MIB)
    monkeypatch.setattr("mcq.encoders.beam.ROWS", 64)
    x = np.random.default_rng(0).integers(0, 256, (1 << 16, 32), np.uint8)
    q = make(bits).fit(x[:500])
    tables = 4 * 3 * 2 * 4**bits * (1 if metric is None else 2)
    with at_most(4 * MIB + tables):
        codes = q.encode(x, metric)
    assert codes[-9:] == q.encode(x[-9:], metric)
