"""Every check accepts what it should and words what it refuses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcq.errors import ConfigError, InputError
from mcq.validate import as_gram, as_matrix, as_weights, config_from_dict, in_range, one_of

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u2", ">f4"])
def test_matrix_of_any_real_dtype(dtype):
    matrix = as_matrix(np.array([[1, 2, 3], [4, 5, 6]], dtype))
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_matrix_is_copied_only_if_need_be():
    ready = np.ones((2, 3), np.float32)
    ready.flags.writeable = False
    assert as_matrix(ready) is ready
    assert as_matrix(ready.T).flags.c_contiguous


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1, NAN, NAN]], "w must be finite, but has nan at row 0 column 1 .2 such in all.; replace"),
        ([[1, 2], [-INF, 0]], "has -inf at row 1 column 0"),
        ([[1e300]], "has 1e.300 at row 0 column 0 .1 such in all.; too large for float32; rescale"),
        (np.zeros((0, 3)), r"at least one row and one column, got shape \(0, 3\)"),
        (np.zeros((3, 0)), r"at least one row and one column, got shape \(3, 0\)"),
        (np.zeros(3), r"2-D of shape \(n, d\), got shape \(3,\)"),
        ([[1], [1, 2]], "2-D .* inhomogeneous"),
        (np.zeros((2, 2), complex), "real numbers, got dtype complex128"),
        (np.zeros((2, 2), bool), "real numbers, got dtype bool"),
        ([["a"]], "real numbers, got dtype <U1"),
        (None, "real numbers, got dtype object"),
    ],
)
def test_matrix_refuses(x, message):
    with pytest.raises(InputError, match=message):
        as_matrix(x, "w")


@given(hnp.arrays(np.float32, (8, 5), elements=st.floats(-1e3, 1e3, width=32)).filter(np.any))
def test_gram_of_any_inputs_is_accepted(x):
    h = x.T @ x  # accumulated in float32: symmetric and PSD only up to rounding
    if h.any():
        gram = as_gram(h, d=5)
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_allclose(gram, h, atol=1e-5 * np.abs(h).max())


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_gram_of_any_size(size):
    assert as_gram(np.eye(3) * size).tolist() == (np.eye(3) * size).tolist()


def test_singular_gram_is_accepted():
    as_gram(np.ones((50, 50)))


def test_gram_is_not_altered_in_place():
    h = np.array([[1.0, 1e-7], [0.0, 1.0]])
    assert as_gram(h)[0, 1] == 5e-8
    assert h[1, 0] == 0


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.zeros((3, 3)), "must not be all zero"),
        (np.eye(2), "must match the 3 columns of the data, got size 2"),
        (np.ones((3, 2)), r"square, .* got shape \(3, 2\)"),
        (np.zeros((0, 0)), "square"),
        (np.ones(3), "2-D"),
        (np.diag([1, 2, NAN]), "nan at row 2 column 2"),
        (np.triu(np.ones((3, 3))), r"symmetric, but differs .* by 1.0e\+00"),
        (np.diag([1, 1, -1e-3]), r"semidefinite, but its smallest eigenvalue is -1.0e-03"),
        (-np.eye(3), "semidefinite"),
    ],
)
def test_gram_refuses(h, message):
    with pytest.raises(InputError, match=message):
        as_gram(h, d=3)


def test_weights():
    assert as_weights([0, 1], d=2).dtype == np.float64


@pytest.mark.parametrize(
    ("w", "message"),
    [
        ([1, -2, -3], "must not be negative, but entry 2 is -3"),
        ([0, 0, 0], "positive entry"),
        ([1, INF, 1], "inf at row 1"),
        ([1, 1], "match the 3 columns"),
        ([[1, 1, 1]], r"1-D of shape \(d,\)"),
    ],
)
def test_weights_refuse(w, message):
    with pytest.raises(InputError, match=message):
        as_weights(w, d=3)


def test_ranges():
    assert in_range(np.int64(16), 1, 16, "bits") == 16
    assert isinstance(in_range(np.int64(16), 1, 16, "bits"), int)
    assert in_range(10**9, 1, None, "rows") == 10**9
    assert in_range(np.float32(0.5), 0.0, 1.0, "damping") == 0.5
    assert in_range(1, 0.0, 1.0, "damping") == 1.0


@pytest.mark.parametrize("value", [0, 17, 8.0, "8", None, True, NAN])
def test_integer_range_refuses(value):
    with pytest.raises(ConfigError, match="bits must be an integer from 1 to 16, got "):
        in_range(value, 1, 16, "bits")


@pytest.mark.parametrize("value", [-0.1, NAN, INF, "0.5", True])
def test_number_range_refuses(value):
    with pytest.raises(ConfigError, match="damping must be a number of at least 0.0, got "):
        in_range(value, 0.0, None, "damping")


def test_one_of():
    assert one_of("row", ("none", "row"), "scale") == "row"
    with pytest.raises(ConfigError, match="scale must be one of 'none', 'row', got 'rows'"):
        one_of("rows", ("none", "row"), "scale")


@dataclasses.dataclass(frozen=True)
class Config:
    group_size: int
    scale: str = "row"
    version: int = 2


def test_config_from_dict():
    assert config_from_dict(Config, {"group_size": 8, "version": 1}) == Config(8, version=1)
    assert config_from_dict(Config, dataclasses.asdict(Config(8))) == Config(8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groupsize": 8}, "Config has no option 'groupsize'; the nearest of its options is 'group_size'"),
        ({"scale": "row"}, "needs the option 'group_size', got scale"),
        ({}, "needs the option 'group_size', got nothing"),
        ({"group_size": 8, "version": 3, "new": 1}, "version from 1 to 2, got 3; upgrade"),
        ({"group_size": 8, "version": "2"}, "version from 1 to 2, got '2'"),
    ],
)
def test_config_from_dict_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(Config, values)
