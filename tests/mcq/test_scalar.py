"""Uniform grids, with and without error feedback, and the codes of single entries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq.encoders.columns import Feedback
from mcq.scalar_codes import LAYOUTS, ScalarCodes

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 300)).astype(np.float32)
INPUTS = RNG.standard_normal((500, 300)) @ (RNG.standard_normal((300, 300)) * np.exp(RNG.standard_normal(300)))
GRAM = mcq.Gram(INPUTS.T @ INPUTS)


@st.composite
def scalar_codes(draw):
    """Codes of random width, with the widths."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, d, layouts = draw(st.integers(0, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    widths = rng.integers(0, 9, (layouts, d))
    side = {LAYOUTS: rng.integers(layouts, size=n).astype(np.uint8)} if layouts > 1 else {}
    own = widths[side.get(LAYOUTS, np.zeros(n, np.uint8))]
    return rng.integers(0, 1 << own).astype(np.uint8).reshape(n, d), widths, side | {"scales": rng.random((n, 2))}


@given(scalar_codes(), st.integers(0, 9))
def test_codes_come_back_and_rows_can_be_cut(drawn, cut):
    words, widths, side = drawn
    codes = ScalarCodes.pack(words, widths, side)
    np.testing.assert_array_equal(codes.unpack(widths), words)
    cut = min(cut, len(words))
    np.testing.assert_array_equal(codes[:cut].unpack(widths), words[:cut])
    assert ScalarCodes.concatenate([codes[:cut], codes[cut:]]) == codes


@given(scalar_codes())
def test_bits_are_counted(drawn):
    words, widths, side = drawn
    codes = ScalarCodes.pack(words, widths, side)
    row_bits = widths.sum(1)[side.get(LAYOUTS, np.zeros(len(words), np.uint8))]
    entries = max(words.size, 1)
    assert codes.bits().payload == row_bits.sum() / entries
    stored = (-(-row_bits // 8)).sum() + sum(array.nbytes for array in side.values()) + 5
    assert codes.bits(5).all_in == 8 * stored / entries


def test_bit_order():
    codes = ScalarCodes.pack(np.array([[5, 0, 3]], np.uint8), np.array([[3, 0, 7]]), {})
    assert codes.packed.tolist() == [0b0001_1101, 0b00]
    assert repr(codes) == "ScalarCodes(n=1, d=3, payload=3.333)"


def test_codes_in_files(tmp_path):
    codes = mcq.ScalarQuantizer(3, 128).fit_encode(X)
    codes.save(tmp_path / "codes.mcq")
    assert ScalarCodes.load(tmp_path / "codes.mcq") == codes
    assert mcq.load(tmp_path / "codes.mcq") == codes


def test_parts_that_do_not_fit_are_refused():
    codes = mcq.ScalarQuantizer(3, 128).fit_encode(X)
    with pytest.raises(mcq.InputError, match="packed must be"):
        ScalarCodes(codes.packed[:-1], codes.shape, codes.row_bits, codes.side)
    with pytest.raises(mcq.InputError, match="side must hold 60 rows"):
        ScalarCodes(codes.packed, codes.shape, codes.row_bits, {"scales": codes.side["scales"][:-1]})
    with pytest.raises(mcq.InputError, match="layouts must be below 2"):
        ScalarCodes(codes.packed, codes.shape, (900, 900), {LAYOUTS: np.full(60, 2, np.uint8)})
    with pytest.raises(mcq.InputError, match="share one layout"):
        ScalarCodes.concatenate([codes, mcq.ScalarQuantizer(4, 128).fit_encode(X)])
    with pytest.raises(mcq.InputError, match="at least one part"):
        ScalarCodes.concatenate([])
    with pytest.raises(TypeError, match="neighbouring rows"):
        codes[::2]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [1, 7, 128, None])
def test_bits_of_a_quantizer(bits, group_size):
    quantizer = mcq.ScalarQuantizer(bits, group_size)
    counted = quantizer.bits(quantizer.fit_encode(X))
    groups = -(-300 // (group_size or 300))
    assert counted.payload == bits
    row_bytes = -(-300 * bits // 8) + 2 * groups + -(-groups * bits // 8)
    assert counted.all_in == pytest.approx(8 * (60 * row_bytes + 4) / X.size)


def test_without_feedback_every_entry_goes_to_the_nearest_level():
    quantizer = mcq.ScalarQuantizer(3, 50, feedback=False)
    x_hat = quantizer.decode(quantizer.fit_encode(X, GRAM))
    np.testing.assert_array_equal(x_hat, quantizer.decode(quantizer.fit_encode(X)))
    groups, rebuilt = X.reshape(60, 6, 50), x_hat.reshape(60, 6, 50)
    step = (groups.max(2, initial=0) - groups.min(2, initial=0)) / 7
    assert (np.abs(groups - rebuilt).max(2) <= 1.01 * step).all()
    assert np.median(np.abs(groups - rebuilt).max(2) / step) == pytest.approx(0.5, abs=0.05)
    for row in range(3):
        for group in range(6):
            assert len(np.unique(rebuilt[row, group])) <= 8


def test_feedback_and_clipping_lower_the_error():
    def error(*options):
        quantizer = mcq.ScalarQuantizer(3, 128, *options)
        return GRAM.relative_error(X, quantizer.decode(quantizer.fit_encode(X, GRAM)))

    rounded, mended, clipped = error(False), error(True), error(True, True)
    assert mended < 0.7 * rounded
    assert clipped < 0.9 * mended


def test_clipping_helps_plain_rounding():
    errors = []
    for clip in (False, True):
        quantizer = mcq.ScalarQuantizer(2, 64, clip=clip)
        errors.append(mcq.Identity().relative_error(X, quantizer.decode(quantizer.fit_encode(X))))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("group_size", [1, 10, 32, 33, 90])
def test_feedback_is_that_of_gptq(group_size):
    """The published recursion on the Cholesky factor of the inverse, entry by entry."""
    gram = GRAM.for_search()
    d = 90
    h = gram.matrix[:d, :d].astype(np.float64)
    h += 0.01 * np.trace(h) / d * np.eye(d)
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    work, expected = X[:5, :d].astype(np.float64), np.zeros((5, d))
    for j in range(d):
        expected[:, j] = np.rint(work[:, j])
        error = (work[:, j] - expected[:, j]) / factor[j, j]
        work[:, j:] -= np.outer(error, factor[j, j:])
    found = np.zeros((d, 5))

    def choose(j, target):
        found[j] = np.rint(target)
        return found[j].astype(np.float32)

    feedback = Feedback(mcq.Gram(gram.matrix[:d, :d]), d)
    feedback.run(np.ascontiguousarray(X[:5, :d].T), group_size, lambda group, targets: None, choose)
    assert (found.T == expected).mean() > 0.99  # an entry half-way between two levels may fall either way
    np.testing.assert_allclose(feedback.weights, 1 / np.diagonal(factor) ** 2, rtol=1e-3)


def test_other_codes_are_refused():
    quantizer = mcq.ScalarQuantizer(3, 128).fit(X)
    for foreign in (mcq.ScalarQuantizer(4, 128), mcq.ScalarQuantizer(3, 64), mcq.CompandedQuantizer(6.0)):
        with pytest.raises(mcq.InputError, match="same options"):
            quantizer.decode(foreign.fit_encode(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits must be"),
        ({"bits": 9}, "bits must be"),
        ({"group_size": 0}, "group_size must be"),
        ({"feedback": 1}, "feedback must be True or False"),
        ({"clip": "yes"}, "clip must be True or False"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(mcq.ConfigError, match=message):
        mcq.ScalarQuantizer(**options)
