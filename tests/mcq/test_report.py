"""Reports agree with what is computed by hand."""

import numpy as np
import pytest

import mcq
from mcq import report


def test_summary_agrees_with_its_parts():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 12), dtype=np.float32)
    metric = mcq.Diagonal(np.arange(1, 13))
    quantizer = mcq.AdditiveQuantizer(num_codebooks=3, codebook_bits=3, group_size=4, scale="row")
    codes = quantizer.fit_encode(x, metric=metric)
    found = report.summary(quantizer, codes, x, metric)

    error = (x - quantizer.decode(codes)) ** 2 @ np.arange(1, 13)
    assert found.distortion == pytest.approx(error.sum(), rel=1e-5)
    assert found.relative_error == pytest.approx(error.sum() / (x**2 @ np.arange(1, 13)).sum(), rel=1e-5)
    assert found.bits == quantizer.bits(codes)
    assert found.usage == report.usage(codes)
    assert len(found.usage.entropy) == 3
    assert f"relative error  {found.relative_error:.6f}" in str(found)


def test_usage_of_even_and_constant_codes():
    even, constant = np.tile(np.arange(8), 10), np.zeros(80, int)
    codes = mcq.Codes.pack(np.stack([even, constant], axis=-1)[:, np.newaxis], codebook_bits=3, d=4)
    assert report.usage(codes) == report.Usage(entropy=(3.0, 0.0), used=(1.0, 0.125))


def test_numbers_of_points_have_no_usage():
    codes = mcq.Codes.pack(np.array([[[1 << 40]]]), codebook_bits=48, d=24)
    assert report.usage(codes) is None


def test_usage_of_no_rows():
    codes = mcq.Codes.pack(np.zeros((0, 1, 1), int), codebook_bits=3, d=4)
    assert report.usage(codes) == report.Usage(entropy=(0.0,), used=(0.0,))
