import numpy as np
import pytest

from mcq_llm.drift import corrected_weight, own_drift


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6))
    drifted = x + 0.3 * rng.standard_normal((200, 6))
    weight = rng.standard_normal((4, 6)).astype(np.float32)
    return weight, x, drifted


def moments(problem):
    weight, x, drifted = problem
    gram = drifted.T @ drifted
    return gram, own_drift(weight, gram, x.T @ drifted)


def test_full_correction_is_least_squares_for_the_original_output(problem):
    weight, x, drifted = problem
    found = corrected_weight(weight, *moments(problem), damping=0.0, strength=1.0)
    expected = np.linalg.lstsq(drifted, x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_half_the_strength_goes_half_the_way(problem):
    weight, x, drifted = problem
    full, half = (corrected_weight(weight, *moments(problem), 0.01, s) for s in (1.0, 0.5))
    np.testing.assert_allclose(half - weight, (full - weight) / 2, atol=1e-6)


def test_without_drift_the_weight_stays(problem):
    weight, x, _ = problem
    np.testing.assert_array_equal(corrected_weight(weight, *moments((weight, x, x)), 0.01, 1.0), weight)
