"""What every quantizer promises, whatever its options and the metric."""

import dataclasses

import numpy as np
import pytest

import mcq
import mcq_ext
from mcq import io


def test_fit_returns_self(some_case, x):
    quantizer = some_case.new()
    assert quantizer.fit(x, some_case.metric) is quantizer
    assert quantizer.encode(x, some_case.metric) == some_case.fitted()[0].encode(x, some_case.metric)


def test_decode_restores_the_shape(case, x):
    quantizer, codes = case.fitted()
    x_hat = quantizer.decode(codes)
    assert (x_hat.shape, x_hat.dtype) == (x.shape, np.float32)
    assert x_hat.flags.c_contiguous
    assert np.isfinite(x_hat).all()


def test_fit_is_better_than_zeros(case, x):
    quantizer, codes = case.fitted()
    assert case.distortion(quantizer.decode(codes)) < case.distortion(np.zeros_like(x))


def test_encode_does_about_as_well_as_the_fit(case, x):
    quantizer, codes = case.fitted()
    of_fit = case.distortion(quantizer.decode(codes))
    of_encode = case.distortion(quantizer.decode(quantizer.encode(x, case.metric)))
    slack = 0.01 * case.distortion(np.zeros_like(x))
    assert of_encode <= 1.5 * of_fit + slack
    assert of_fit <= 1.5 * of_encode + slack


def test_bits_are_counted_exactly(case, x):
    quantizer, codes = case.fitted()
    n, d = x.shape
    bits = quantizer.bits(codes)
    if case.row_bits is not None:
        assert bits.payload == pytest.approx(case.row_bits / d)
        assert codes.container().arrays["packed"].nbytes == n * -(-case.row_bits // 8)
    arrays = [*quantizer.container().arrays.values(), *codes.container().arrays.values()]
    assert bits.all_in == pytest.approx(8 * sum(array.nbytes for array in arrays) / (n * d))


def test_file_gives_back_an_equal_quantizer(case, x, tmp_path):
    quantizer, codes = case.fitted()
    quantizer.save(tmp_path / "q.mcq")
    codes.save(tmp_path / "codes.mcq")
    loaded = mcq.load(tmp_path / "q.mcq")
    assert type(loaded) is case.quantizer
    assert loaded.config == quantizer.config
    assert repr(loaded) == repr(quantizer)
    np.testing.assert_array_equal(loaded.decode(mcq.load(tmp_path / "codes.mcq")), quantizer.decode(codes))
    assert loaded.encode(x, case.metric) == quantizer.encode(x, case.metric)


def test_a_container_makes_the_same_objects_again(some_case, x):
    quantizer, codes = some_case.fitted()
    restored, restored_codes = (io.restore(part.container(), "here") for part in (quantizer, codes))
    assert type(restored) is type(quantizer)
    assert restored_codes == codes
    assert np.array_equal(restored.decode(restored_codes), quantizer.decode(codes))
    with pytest.raises(mcq.FormatError, match="here is not a usable container"):
        io.restore(codes.container()._replace(arrays={}), "here")


def test_unknown_option_in_a_file_is_refused(some_case, tmp_path):
    quantizer, _ = some_case.fitted()
    name = next(iter(dataclasses.asdict(quantizer.config)))
    config = dataclasses.asdict(quantizer.config) | {name[:-1]: 3}
    io.write(tmp_path / "q.mcq", some_case.quantizer.kind, config, quantizer.arrays)
    with pytest.raises(mcq.FormatError, match=f"no option '{name[:-1]}'.*'{name}'"):
        mcq.load(tmp_path / "q.mcq")


def test_arrays_that_do_not_fit_the_config_are_refused(sized_case, tmp_path):
    quantizer, _ = sized_case.fitted()
    config = dataclasses.asdict(quantizer.config) | sized_case.wrong_option
    io.write(tmp_path / "q.mcq", sized_case.quantizer.kind, config, quantizer.arrays)
    with pytest.raises(mcq.FormatError, match="codebooks|gain_table"):
        mcq.load(tmp_path / "q.mcq")


def test_no_bit_depends_on_threads_or_simd_level(case, x):
    """Nor on the run: same seed, same result."""
    mcq_ext.set_num_threads(2)
    quantizer, codes = case.fitted()
    encoded = quantizer.encode(x, case.metric)
    for level, threads in zip(mcq_ext.simd_levels(), (5, 1), strict=False):
        mcq_ext.set_simd_level(level)
        mcq_ext.set_num_threads(threads)
        again = case.new()
        assert again.fit_encode(x, case.metric) == codes
        for name, array in quantizer.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array)
        assert again.encode(x, case.metric) == encoded


def test_seed_matters_where_something_is_drawn(some_case, x):
    quantizer, other = some_case.fitted()[0], some_case.new().fit(x, some_case.metric, seed=1)
    same = [np.array_equal(quantizer.arrays[name], other.arrays[name]) for name in quantizer.arrays]
    assert all(same) != some_case.is_random


@pytest.mark.parametrize("cut", [1, 8, 19])
def test_rows_do_not_influence_each_other(case, x, cut):
    quantizer, _ = case.fitted()
    whole = quantizer.encode(x, case.metric)
    parts = [quantizer.encode(part, case.metric) for part in (x[:cut], x[cut:])]
    assert type(whole).concatenate(parts) == whole
    backwards = quantizer.encode(x[::-1], case.metric)
    np.testing.assert_array_equal(quantizer.decode(backwards)[::-1], quantizer.decode(whole))


def test_what_was_decoded_costs_less_to_encode(case, x):
    """It has codes without error; the search need not find these, but must come close."""
    quantizer, _ = case.fitted()
    x_hat = quantizer.decode(quantizer.encode(x, case.metric))
    again = quantizer.decode(quantizer.encode(x_hat, case.metric))
    slack = 0.01 * case.distortion(np.zeros_like(x))
    assert case.metric.distortion(x_hat, again) <= 0.5 * case.distortion(x_hat) + slack


@pytest.mark.parametrize("factor", [2.0**40, 2.0**-40])
def test_a_power_of_two_on_the_metric_changes_no_bit(weighted_case, x, factor):
    scaled = {
        "diagonal": lambda m: mcq.Diagonal(m.weights * factor),
        "gram": lambda m: mcq.Gram(m.matrix * np.float32(factor), damping=m.damping),
        "lowrank": lambda m: mcq.LowRank(m.weights * factor, m.factor * factor**0.5),
    }[weighted_case.metric_name](weighted_case.metric)
    assert weighted_case.new().fit_encode(x, scaled) == weighted_case.fitted()[1]


@pytest.mark.parametrize("factor", [2.0**66, 2.0**-66])
def test_a_power_of_two_on_the_data_changes_no_code(some_case, x, factor):
    """About 1e20 and 1e-20, whose squares float32 cannot hold."""
    quantizer, codes = some_case.fitted()
    scaled, scaled_x = some_case.new(), x * np.float32(factor)
    scaled_codes = scaled.fit_encode(scaled_x, some_case.metric)
    assert scaled_codes == codes
    np.testing.assert_array_equal(scaled.decode(scaled_codes), quantizer.decode(codes) * np.float32(factor))
    assert scaled.encode(scaled_x, some_case.metric) == quantizer.encode(x, some_case.metric)


def test_repr_names_the_options(some_case):
    shown, config = repr(some_case.new()), some_case.new().config
    assert shown.startswith(some_case.quantizer.__name__ + "(")
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)!r}" in shown
    assert shown.endswith("(not fitted)")
    assert "(not fitted)" not in repr(some_case.fitted()[0])


@pytest.mark.parametrize("name", ["encode", "decode", "save", "gain"])
def test_use_before_fit_is_refused(some_case, x, tmp_path, name):
    quantizer, (_, codes) = some_case.new(), some_case.fitted()
    uses = {
        "encode": lambda: quantizer.encode(x, some_case.metric),
        "decode": lambda: quantizer.decode(codes),
        "save": lambda: quantizer.save(tmp_path / "q.mcq"),
        "gain": lambda: quantizer.gain,
    }
    with pytest.raises(mcq.NotFittedError, match="call fit"):
        uses[name]()
    assert list(tmp_path.iterdir()) == []


def test_codebooks_before_fit_are_refused(some_case):
    with pytest.raises(mcq.NotFittedError, match="call fit"):
        _ = some_case.new().codebooks


@pytest.mark.parametrize(
    "changes",
    [{"num_codebooks": 5}, {"codebook_bits": 6}, {"group_size": 5}, {"scale": "none"}, {"scale": "row"}],
    ids=str,
)
def test_codes_of_other_options_are_refused(some_case, x, changes):
    quantizer, _ = some_case.fitted()
    options = {"num_codebooks": 1, "codebook_bits": 4, "group_size": 6, "scale": "group"} | changes
    foreign = mcq.AdditiveQuantizer(**options, rounds=1).fit_encode(x)
    with pytest.raises(mcq.InputError, match="same options"):
        quantizer.decode(foreign)


def test_progress_counts_up_to_the_total(some_case, x):
    calls = []
    some_case.new().fit(x, some_case.metric, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total in calls} == {len(calls)}


def test_encode_takes_rows_of_another_width(case, x):
    quantizer, _ = case.fitted()
    narrow = x[:, :11]
    per_column = (mcq.ProductQuantizer, mcq.CompandedQuantizer, mcq.RelaxedQuantizer)
    if isinstance(getattr(quantizer, "parts", [quantizer])[0], per_column):  # their columns have parts of their own
        with pytest.raises(mcq.InputError, match="as wide as those of the fit"):
            quantizer.encode(np.c_[x, x])
        return
    codes = quantizer.encode(narrow)
    x_hat = quantizer.decode(codes)
    assert x_hat.shape == narrow.shape
    assert np.isfinite(x_hat).all()


BAD_OPTIONS = [
    {"num_codebooks": 0},
    {"num_codebooks": 65},
    {"codebook_bits": 0},
    {"codebook_bits": 17},
    {"codebook_bits": 2.5},
    {"group_size": 0},
    {"group_size": 5000},
    {"scale": "column"},
    {"rounds": 0},
]


@pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer, mcq.RelaxedQuantizer])
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused(quantizer, options):
    ((name, value),) = options.items()
    with pytest.raises(mcq.ConfigError, match=rf"{name} must be .*got {value!r}"):
        quantizer(**options)


@pytest.mark.parametrize("width", [0, 257])
def test_bad_beam_width_is_refused(width):
    with pytest.raises(mcq.ConfigError, match="beam_width must be"):
        mcq.ResidualQuantizer(beam_width=width)


@pytest.mark.parametrize("quantizer", [mcq.AdditiveQuantizer, mcq.ResidualQuantizer])
@pytest.mark.parametrize("seed", [-1, 1.5])
def test_bad_seed_is_refused(quantizer, x, seed):
    with pytest.raises(mcq.ConfigError, match="seed must be"):
        quantizer().fit(x, seed=seed)
