import doctest
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import mcq
from mcq.errors import ConfigError, InputError

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import mcq_search.estimators
from mcq_search.estimators import AdditiveCoder, ProductCoder, ResidualCoder

PAGE = Path(__file__).parents[2] / "docs" / "estimators.md"
SMALL = [
    AdditiveCoder(num_codebooks=2, codebook_bits=3, rounds=2),
    ResidualCoder(num_codebooks=2, codebook_bits=3, rounds=2, beam_width=4),
    ProductCoder(num_splits=2, codebook_bits=3, rounds=2),
]
QUANTIZERS = [
    mcq.AdditiveQuantizer(2, 3, group_size=None, rounds=2),
    mcq.ResidualQuantizer(2, 3, group_size=None, rounds=2, beam_width=4),
    mcq.ProductQuantizer(num_splits=2, codebook_bits=3, rounds=2),
]
coders = pytest.mark.parametrize("coder", SMALL, ids=lambda coder: type(coder).__name__)


@pytest.fixture(scope="module")
def x():
    return make_blobs(300, n_features=6, centers=9, random_state=0)[0].astype(np.float32)


@parametrize_with_checks(SMALL)
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("coder", "quantizer"),
    list(zip(SMALL, QUANTIZERS, strict=True)),
    ids=[type(coder).__name__ for coder in SMALL],
)
def test_codes_and_vectors_are_those_of_the_quantizer(coder, quantizer, x):
    coder = clone(coder).set_params(random_state=5).fit(x[:200])
    quantizer.fit(x[:200], seed=5)
    expected = quantizer.encode(x[200:])
    codes = coder.transform(x[200:])
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, expected.unpack().reshape(100, 2))
    np.testing.assert_array_equal(coder.inverse_transform(codes), quantizer.decode(expected))
    np.testing.assert_array_equal(coder.inverse_transform(codes.astype(np.int64)), quantizer.decode(expected))
    error = (x[200:] - quantizer.decode(expected)).astype(np.float64)
    assert coder.score(x[200:]) == pytest.approx(-np.mean(error**2))
    assert 0 > coder.score(x[200:]) > -np.var(x)


@coders
def test_codebooks_add_up_to_what_is_decoded(coder, x):
    coder = clone(coder).fit(x)
    codes = coder.transform(x)
    books = coder.codebooks_
    if books.ndim == 4:
        x_hat = np.concatenate([books[s, 0, codes[:, s]] for s in range(2)], axis=1)
    else:
        x_hat = books[0, codes[:, 0]] + books[1, codes[:, 1]]
    np.testing.assert_allclose(coder.inverse_transform(codes), x_hat, rtol=1e-6, atol=1e-6)


@coders
def test_names_of_the_features(coder, x):
    name = type(coder).__name__.lower()
    coder = clone(coder).fit(x)
    assert coder.get_feature_names_out().tolist() == [f"{name}0", f"{name}1"]


@coders
def test_survives_pickling(coder, x):
    coder = clone(coder).fit(x)
    again = pickle.loads(pickle.dumps(coder))
    np.testing.assert_array_equal(again.transform(x), coder.transform(x))


def test_random_state(x):
    coder = AdditiveCoder(2, 3, rounds=1)
    same = [clone(coder).set_params(random_state=state).fit(x).codebooks_ for state in (0, np.int64(0), 0)]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], coder.fit(x).codebooks_)
    drawn = [clone(coder).set_params(random_state=np.random.RandomState(s)).fit(x).codebooks_ for s in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


@coders
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_few_or_repeated_rows_are_rebuilt(coder, x, rows):
    for data in (x[:rows], np.repeat(x[:rows], 20, axis=0), np.full((rows, 6), 3.7), np.zeros((rows, 6))):
        coder = clone(coder).fit(data)
        np.testing.assert_allclose(coder.inverse_transform(coder.transform(data)), data, atol=0.02)


def test_pipelines_decode_too(x):
    pipeline = make_pipeline(StandardScaler(), AdditiveCoder(3, 5, rounds=2)).fit(x)
    x_hat = pipeline.inverse_transform(pipeline.transform(x))
    assert np.square(x - x_hat).sum() < 0.05 * np.square(x - x.mean(0)).sum()


def test_grid_search_finds_that_more_bits_are_better(x):
    search = GridSearchCV(AdditiveCoder(2, rounds=1), {"codebook_bits": [1, 3, 2]}, cv=2).fit(x)
    assert search.best_params_ == {"codebook_bits": 3}


def test_wide_codes(x):
    codes = AdditiveCoder(1, 9, rounds=1).fit_transform(x)
    assert codes.dtype == np.uint16
    assert codes.max() > 255


def test_errors(x):
    with pytest.raises(ConfigError, match="num_codebooks must be an integer from 1 to 64, got 0"):
        AdditiveCoder(num_codebooks=0).fit(x)
    with pytest.raises(NotFittedError):
        AdditiveCoder().inverse_transform([[0]])
    coder = AdditiveCoder(2, 3, rounds=1).fit(x)
    with pytest.raises(InputError, match=r"codes must have shape \(n, 2\), got \(1, 3\)"):
        coder.inverse_transform([[0, 1, 2]])
    with pytest.raises(InputError, match=r"must lie in 0\.\.7"):
        coder.inverse_transform([[0, 8]])
    with pytest.raises(InputError, match="codes must be integers"):
        coder.inverse_transform([[0.5, 1.0]])


def test_the_page_and_the_examples_run(capsys):
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, {})
    assert float(capsys.readouterr().out) < 0
    assert doctest.testmod(mcq_search.estimators).failed == 0
