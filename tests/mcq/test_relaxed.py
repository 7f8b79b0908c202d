"""Relaxed codebooks: which columns they serve, what they gain, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcq
from mcq import io
from mcq.relaxed import RelaxedConfig


def layer(d=64, heavy=8):
    """Weights and the Gram of inputs in which some columns, spread over the row, are much larger than the others."""
    rng = np.random.default_rng(0)
    columns = rng.permutation(d)[:heavy]
    inputs = rng.standard_normal((4 * d, d))
    inputs[:, columns] *= 5
    return rng.standard_normal((256, d)).astype(np.float32), mcq.Gram(inputs.T @ inputs), columns


def error(quantizer, x, metric):
    return metric.relative_error(x, quantizer.decode(quantizer.fit_encode(x, metric)))


def test_heavy_columns_get_the_codebooks():
    x, metric, heavy = layer()
    q = mcq.RelaxedQuantizer(2, 4, 8, extents=(1, 1 / 8)).fit(x, metric)
    assert sorted(np.flatnonzero(q.column_depths == 2)) == sorted(heavy)


def test_error_falls_faster_than_with_more_bits_for_all():
    """An eighth more codes where columns differ eightfold and more in weight."""
    x, metric, _ = layer()
    plain, relaxed, finer = (
        error(quantizer, x, metric)
        for quantizer in (
            mcq.AdditiveQuantizer(1, 8, 8),
            mcq.RelaxedQuantizer(2, 8, 8, extents=(1, 1 / 8)),
            mcq.AdditiveQuantizer(1, 9, 8),  # the same number of bits
        )
    )
    assert relaxed < 0.8 * plain
    assert relaxed < 0.95 * finer


@pytest.mark.parametrize("metric_name", ["identity", "gram"])
@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_full_extents_are_additive_quantization(num_codebooks, metric_name):
    x, gram, _ = layer()
    metric = {"identity": mcq.Identity(), "gram": gram}[metric_name]
    relaxed = error(mcq.RelaxedQuantizer(num_codebooks, 4, 8, "row"), x, metric)
    assert relaxed == pytest.approx(error(mcq.AdditiveQuantizer(num_codebooks, 4, 8, "row"), x, metric), rel=0.05)


def test_larger_extents_lower_the_error():
    x, metric, _ = layer()
    errors = [
        error(mcq.RelaxedQuantizer(3, 4, 8, extents=(1, *rest)), x, metric)
        for rest in [(1 / 8, 1 / 8), (1 / 4, 1 / 8), (1 / 2, 1 / 4), (1, 1 / 2), (1, 1)]
    ]
    assert (np.diff(errors) < 0).all()


@given(
    st.integers(1, 30),
    st.sampled_from([1, 3, 8, None]),
    st.lists(st.floats(0.01, 1), max_size=3),
)
def test_codes_of_any_shape(d, group_size, rest):
    extents = (1.0, *sorted(rest, reverse=True))
    x = np.random.default_rng(d).standard_normal((9, d))
    q = mcq.RelaxedQuantizer(len(extents), 2, group_size, rounds=1, extents=extents)
    codes = q.fit_encode(x)
    groups = -(-d // (group_size or d))
    counts = [max(1, round(extent * groups)) for extent in extents]
    assert codes.num_groups == sum(counts)
    assert codes.packed.shape == (9, -(-2 * sum(counts) // 8))
    served = [(q.column_depths > c).sum() for c in range(len(extents))]
    assert served == [min(d, count * (group_size or d)) for count in counts]
    assert mcq.Identity().relative_error(x, q.decode(codes)) < 1.01


@pytest.mark.parametrize(
    "extents",
    [(1,), (1, 0.5, 0.5), (0.5, 0.5), (1, 0), (1, -0.5), (1, 1.5), (1, float("nan")), (1, "all")],
    ids=str,
)
def test_bad_extents_are_refused(extents):
    with pytest.raises(mcq.ConfigError, match="extents must be"):
        mcq.RelaxedQuantizer(2, extents=extents)


def test_rising_extents_are_refused():
    with pytest.raises(mcq.ConfigError, match=r"extents must be .* not rising.*\(1.0, 0.2, 0.3\) for 3"):
        mcq.RelaxedQuantizer(3, extents=(1, 0.2, 0.3))


def test_other_options_it_lacks_are_refused():
    with pytest.raises(mcq.ConfigError, match="scale must be 'none' or 'row'"):
        mcq.RelaxedQuantizer(scale="group")
    with pytest.raises(mcq.ConfigError, match="codebook_bits must be .* 15"):
        mcq.RelaxedQuantizer(codebook_bits=16)


def test_depths_that_do_not_fit_the_extents_are_refused(tmp_path):
    x, metric, _ = layer()
    q = mcq.RelaxedQuantizer(2, 4, 8, rounds=1, extents=(1, 0.25)).fit(x, metric)
    config = {name: getattr(q.config, name) for name in RelaxedConfig.__dataclass_fields__}
    for depths in (np.ones(64, np.uint8), q.column_depths[:40], q.column_depths.astype(np.int64)):
        io.write(tmp_path / "q.mcq", "relaxed", config, q.arrays | {"column_depths": depths})
        with pytest.raises(mcq.FormatError, match="column_depths"):
            mcq.load(tmp_path / "q.mcq")


def test_rows_of_another_width_are_refused():
    x, metric, _ = layer()
    q = mcq.RelaxedQuantizer(2, 4, 8, rounds=1, extents=(1, 0.25)).fit(x, metric)
    with pytest.raises(mcq.InputError, match="as wide as those of the fit, 64 columns, got 63"):
        q.encode(x[:, :63])
    with pytest.raises(mcq.InputError, match="same options"):
        q.decode(mcq.RelaxedQuantizer(2, 4, 8, rounds=1, extents=(1, 0.25)).fit_encode(x[:, :63]))
