"""Codebooks in 8 bits: what is stored comes back, is counted, and costs little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mcq
from mcq import io
from mcq.storage import as_stored, stored_codebooks

FLOATS = st.floats(-60000, 60000, width=16)
KINDS = pytest.mark.parametrize(
    ("quantizer", "options"),
    [
        (mcq.AdditiveQuantizer, {}),
        (mcq.AdditiveQuantizer, {"group_size": None, "num_codebooks": 3}),
        (mcq.ResidualQuantizer, {}),
        (mcq.RelaxedQuantizer, {"extents": (1, 0.5)}),
    ],
    ids=["additive", "vectors", "residual", "relaxed"],
)
X = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)


def fitted(quantizer, options, dtype):
    q = quantizer(
        **{"num_codebooks": 2, "codebook_bits": 4, "group_size": 8, "rounds": 3} | options, codebook_dtype=dtype
    )
    return q, q.fit_encode(X)


@given(hnp.arrays(np.float16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=FLOATS))
def test_storing_again_changes_nothing(codebooks):
    once = as_stored(codebooks, "int8")
    np.testing.assert_array_equal(as_stored(once, "int8"), once)
    first, second = stored_codebooks(codebooks, "int8"), stored_codebooks(once, "int8")
    np.testing.assert_array_equal(first["codebooks"], second["codebooks"])


@given(hnp.arrays(np.float16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=FLOATS))
def test_rounding_is_half_a_step_at_most(codebooks):
    values = codebooks.astype(np.float64)
    most = np.abs(values).max((1, 2), keepdims=True)
    error = np.abs(as_stored(codebooks, "int8").astype(np.float64) - values)
    assert (error <= most * (0.5 / 127 + 2.0**-11) + 2.0**-24).all()


@KINDS
def test_error_is_nearly_that_of_float16(quantizer, options):
    errors = {}
    for dtype in ("float16", "int8"):
        q, codes = fitted(quantizer, options, dtype)
        errors[dtype] = mcq.Identity().relative_error(X, q.decode(codes))
    assert errors["int8"] < 1.02 * errors["float16"]


@KINDS
def test_bits_are_those_of_the_file(quantizer, options, tmp_path):
    sizes = {}
    for dtype in ("float16", "int8"):
        q, codes = fitted(quantizer, options, dtype)
        q.save(tmp_path / "q.mcq")
        sizes[dtype] = sum(array.nbytes for array in io.read(tmp_path / "q.mcq").arrays.values())
        assert q.bits(codes).all_in == pytest.approx(8 * (codes.packed.nbytes + sizes[dtype]) / X.size)
        assert q.codebooks.dtype == np.float16
    entries = q.codebooks.size
    assert sizes["float16"] - sizes["int8"] == entries - 4 * q.config.num_codebooks


@KINDS
def test_codes_are_chosen_for_what_decodes(quantizer, options, tmp_path):
    q, codes = fitted(quantizer, options, "int8")
    q.save(tmp_path / "q.mcq")
    loaded = mcq.load(tmp_path / "q.mcq")
    assert loaded.config == q.config
    np.testing.assert_array_equal(loaded.decode(codes), q.decode(codes))
    assert loaded.encode(X) == q.encode(X)
    np.testing.assert_array_equal(as_stored(q.codebooks, "int8"), q.codebooks)


def test_prefix_keeps_the_steps():
    q, codes = fitted(mcq.ResidualQuantizer, {}, "int8")
    np.testing.assert_array_equal(q.prefix(1).decode(codes.prefix(1)), q.decode(codes, num_codebooks=1))


def test_codebook_of_zeros():
    q = mcq.AdditiveQuantizer(1, 2, 8, codebook_dtype="int8")
    np.testing.assert_array_equal(q.decode(q.fit_encode(np.zeros((9, 16)))), 0)


def test_other_types_are_refused():
    with pytest.raises(mcq.ConfigError, match="codebook_dtype must be one of 'float16', 'int8', got 'int4'"):
        mcq.AdditiveQuantizer(codebook_dtype="int4")


def test_arrays_of_the_other_type_are_refused(tmp_path):
    q, _ = fitted(mcq.AdditiveQuantizer, {}, "int8")
    halves, _ = fitted(mcq.AdditiveQuantizer, {}, "float16")
    config = {name: getattr(q.config, name) for name in q.config.__dataclass_fields__}
    for arrays, name in [
        (halves.arrays, "codebooks"),
        ({**q.arrays, "codebook_steps": np.ones(3, np.float32)}, "steps"),
    ]:
        io.write(tmp_path / "q.mcq", "additive", config, arrays)
        with pytest.raises(mcq.FormatError, match=name):
            mcq.load(tmp_path / "q.mcq")
