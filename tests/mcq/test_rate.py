"""Bit allocation: optimal, within the budget, the same in any order; curves of layers and of slices of vectors."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import mcq
from mcq import Unit, allocate, knapsack, residual_curve

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "rate.md"
SETTINGS = ["a", "b", "c", "d"]


@st.composite
def any_units(draw, most=5):
    """Units with curves of any kind: not convex, not falling, with ties, negative."""
    units = []
    for i in range(draw(st.integers(1, most))):
        settings = draw(st.lists(st.sampled_from(SETTINGS), min_size=1, unique=True))
        cost = draw(st.lists(st.integers(0, 40), min_size=len(settings), max_size=len(settings)))
        loss = draw(st.lists(st.integers(-5, 60), min_size=len(settings), max_size=len(settings)))
        units.append(Unit(f"unit {i}", settings, cost, [value / 4 for value in loss]))
    return units


def solutions(units, budget, allowed=lambda settings: True):
    """Distortions of all choices within the budget; `allowed` is asked about the settings by name."""
    found = []
    for places in itertools.product(*(range(len(unit.settings)) for unit in units)):
        settings = {unit.name: unit.settings[i] for unit, i in zip(units, places, strict=True)}
        if sum(unit.cost[i] for unit, i in zip(units, places, strict=True)) <= budget and allowed(settings):
            found.append(sum(unit.distortion[i] for unit, i in zip(units, places, strict=True)))
    return found


def settings_of(allocation):
    return {name: chosen.setting for name, chosen in allocation.chosen.items()}


@given(any_units(), st.integers(0, 160))
def test_optimal_and_within_the_budget(units, budget):
    every = solutions(units, budget)
    assume(every)
    found = allocate(units, budget)
    assert found.cost <= budget
    assert found.slack == budget - found.cost
    assert found.gap == 0
    assert found.distortion == min(every)


@given(any_units(), st.integers(0, 160), st.randoms())
def test_order_of_units_does_not_matter(units, budget, random):
    assume(solutions(units, budget))
    shuffled = random.sample(units, len(units))
    found, again = allocate(units, budget), allocate(shuffled, budget)
    assert list(found.chosen) == [unit.name for unit in units]
    assert again.chosen == found.chosen
    assert (again.uniform, again.multiplier) == (found.uniform, found.multiplier)


@given(any_units(), st.integers(0, 160), st.data())
def test_ties_pins_and_limits_are_kept(units, budget, data):
    names = [unit.name for unit in units]
    ties = data.draw(st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=3), max_size=2))
    pins = {unit.name: data.draw(st.sampled_from(unit.settings)) for unit in units[:1]}
    limits = {names[-1]: data.draw(st.tuples(st.integers(0, 20), st.integers(20, 40)))}

    def allowed(settings):
        (low, high), last = limits[names[-1]], units[-1]
        cost = last.cost[last.settings.index(settings[names[-1]])]
        tied = all(len({settings[name] for name in tie}) == 1 for tie in ties)
        return tied and low <= cost <= high and settings | pins == settings

    every = solutions(units, budget, allowed)
    if not every:
        with pytest.raises(mcq.ConfigError):
            allocate(units, budget, ties=ties, pins=pins, limits=limits)
        return
    found = allocate(units, budget, ties=ties, pins=pins, limits=limits)
    assert found.distortion == min(every)
    assert allowed(settings_of(found))
    assert found.cost <= budget


@given(any_units(), st.integers(0, 160))
def test_uniform_is_the_best_shared_setting(units, budget):
    assume(solutions(units, budget))
    found = allocate(units, budget)
    free = {unit.name for unit in units if len(unit.settings) > 1}
    every = solutions(units, budget, lambda settings: len({settings[name] for name in free}) <= 1)
    assert (found.uniform is None) == (not every)
    if every:
        assert found.uniform.distortion == min(every)
        assert found.uniform.cost <= budget
        assert found.distortion <= found.uniform.distortion


@pytest.fixture(scope="module")
def many_units():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4000, 1000) * 128
    sensitivity = np.exp(2 * rng.standard_normal(1000))
    overheads = rng.integers(0, 500, (1000, 20)).cumsum(1) * 8
    curves = rng.uniform(0.3, 0.9, (1000, 20)).cumprod(1)
    return [
        Unit(f"{i}", range(20), np.arange(1, 21) * size + overhead, s * size * curve)
        for i, (size, s, overhead, curve) in enumerate(zip(sizes, sensitivity, overheads, curves, strict=True))
    ]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_many_units_fill_the_budget(many_units, share):
    least, most = (sum(unit.cost[end] for unit in many_units) for end in (0, -1))
    budget = int(least + share * (most - least))
    found = allocate(many_units, budget)
    assert 0 <= found.slack < 1e-4 * budget
    assert found.gap < 1e-5 * found.distortion
    assert found.gain > 0.2
    assert found.pays


def test_every_slope_is_near_the_multiplier(many_units):
    """No unit could lose what another one gains, but for the steps in which units move."""
    found = allocate(many_units, 4 * sum(unit.cost[0] for unit in many_units))
    slopes = np.array([chosen.slope for chosen in found.chosen.values()]) / found.multiplier
    assert (slopes > 1).mean() < 0.01
    assert np.median(slopes) > 0.3


def test_gap_is_told_where_solutions_are_too_many(monkeypatch, many_units):
    """Without bends in the curves all is a subset sum; few partial solutions must do."""
    monkeypatch.setattr(knapsack, "MAX_PARTIAL", 16)
    monkeypatch.setattr(knapsack, "ENOUGH", 0.0)
    rng = np.random.default_rng(0)
    costs = rng.integers(1000, 10000, (40, 4)).cumsum(1)
    units = [Unit(f"{i}", range(4), cost, -cost.astype(float)) for i, cost in enumerate(costs)]
    budget = int(costs.sum(0)[1])
    found = allocate(units, budget)
    assert found.slack > 0
    assert found.slack <= found.gap * 1.000001  # one bit is worth one here, and no solution can do better than all bits
    assert found.gap < 1e-3 * budget


def test_budget_beyond_all_settings_takes_the_best():
    units = [Unit("x", [1, 2], [10, 20], [4.0, 1.0]), Unit("y", [1, 2], [10, 20], [2.0, 2.5])]
    found = allocate(units, 10**15)
    assert settings_of(found) == {"x": 2, "y": 1}
    assert found.multiplier == 0
    assert found.chosen["x"].slope == 0


def test_a_setting_of_no_use_to_one_unit_can_be_the_one_of_a_tie():
    units = [Unit("x", [1, 2], [10, 20], [4.0, 5.0]), Unit("y", [1, 2], [10, 20], [9.0, 1.0])]
    assert settings_of(allocate(units, 40, ties=["xy"])) == {"x": 2, "y": 2}


def test_uniform_that_is_as_good_is_called_so():
    units = [Unit(name, [1, 2], [100, 200], [4.0, 1.0]) for name in "xyz"]
    found = allocate(units, 600)
    assert found.gain == 0
    assert not found.pays
    assert "the uniform setting is as good" in str(found)


def test_no_uniform_setting():
    found = allocate([Unit("x", [1, 2], [1, 2], [2.0, 1.0]), Unit("y", [3, 4], [1, 2], [2.0, 1.0])], 4)
    assert found.uniform is None
    assert found.gain is None
    assert "no setting fits" in str(found)


XY = [Unit("x", [1, 2], [10, 20], [4.0, 1.0]), Unit("y", [1, 2], [10, 20], [2.0, 1.0])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_bits": 19}, "at least 20, the smallest size possible, got 19; the largest is 40"),
        ({"budget_bits": -1}, "budget_bits must be"),
        ({"budget_bits": 1.5}, "budget_bits must be an integer"),
        ({"pins": {"z": 1}}, "pins must name given units, got 'z'"),
        ({"limits": {"z": (1, 2)}}, "limits must name given units, got 'z'"),
        ({"ties": [["x", "z"]]}, "ties must name given units, got 'z'"),
        ({"pins": {"x": 3}}, r"'x' must be pinned to one of its settings \(1, 2\), got 3"),
        ({"limits": {"y": (11, 19)}}, r"limits must leave unit 'y' a setting, got \(11, 19\)"),
        ({"pins": {"x": 1}, "limits": {"x": (15, None)}}, "'x' is pinned to 1, which costs 10, but its limits"),
        ({"ties": ["xy"], "pins": {"x": 1, "y": 2}}, "tied units must have a setting in common.*'x'.*'y'"),
        ({"ties": ["xy"], "pins": {"x": 1}, "limits": {"y": (20, None)}}, "tied units must have a setting in common"),
    ],
    ids=str,
)
def test_bad_requests_are_refused(options, message):
    with pytest.raises(mcq.ConfigError, match=message):
        allocate(XY, **{"budget_bits": 100} | options)


@pytest.mark.parametrize("units", [[], [XY[0], XY[0]]], ids=["none", "twice the same name"])
def test_bad_lists_of_units_are_refused(units):
    with pytest.raises(mcq.InputError, match="units must be one or more, each with a name of its own"):
        allocate(units, 100)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (([1, 2], [1, 2], [1.0, np.nan]), r"distortions within 1e\+300"),
        (([1, 2], [1, 2], [1.0, np.inf]), r"distortions within 1e\+300"),
        (([1, 2], [1, 2], [1.7e308, 1.0]), r"distortions within 1e\+300"),
        (([[1], [2]], [1, 2], [2.0, 1.0]), "compared by hash"),
        (([1, 2], [1, 2], [1.0]), "a cost and a distortion for each"),
        (([], [], []), "one or more settings"),
        (([1, 1], [1, 2], [2.0, 1.0]), "each setting once"),
        (([1, 2], [1, -2], [2.0, 1.0]), "costs in whole bits"),
        (([1, 2], [1.0, 2.5], [2.0, 1.0]), "costs in whole bits"),
        (([1, 2], [1, 1 << 50], [2.0, 1.0]), "costs in whole bits"),
    ],
    ids=str,
)
def test_bad_curves_are_refused_by_name(curve, message):
    with pytest.raises(mcq.InputError, match=f"unit 'layer 7' .*{message}"):
        Unit("layer 7", *curve)


def coded_layers():
    """Three layers, each encoded once with four codebooks, that differ in size and in how much their inputs vary."""
    rng = np.random.default_rng(0)
    for name, rows, size in [("small", 96, 1.0), ("large", 192, 1.0), ("sensitive", 96, 5.0)]:
        inputs = size * rng.standard_normal((200, 32)) @ rng.standard_normal((32, 32))
        weight, metric = rng.standard_normal((rows, 32)).astype(np.float32), mcq.Gram(inputs.T @ inputs)
        quantizer = mcq.ResidualQuantizer(4, 4, 8, "row", rounds=2)
        yield name, quantizer, quantizer.fit_encode(weight, metric), weight, metric


@pytest.mark.parametrize("kind", ["layers", "slices"])
def test_curves_are_those_of_the_prefixes(kind, tmp_path):
    for name, quantizer, codes, x, metric in coded_layers() if kind == "layers" else coded_slices():
        unit = residual_curve(name, quantizer, codes, x, metric)
        assert (np.diff(unit.distortion) < 0).all()
        for m, cost, distortion in zip(unit.settings, unit.cost, unit.distortion, strict=True):
            shorter, shorter_codes = quantizer.prefix(m), codes.prefix(m)
            shorter.save(tmp_path / "q.mcq")
            x_hat = mcq.load(tmp_path / "q.mcq").decode(shorter_codes)
            np.testing.assert_array_equal(x_hat, quantizer.decode(codes, num_codebooks=m))
            assert metric.distortion(x, x_hat) == distortion
            stored = shorter_codes.packed.nbytes + shorter.codebooks.nbytes + 4
            stored += 0 if codes.scales is None else codes.scales.nbytes
            assert cost == 8 * stored


def test_layers_share_a_budget():
    layers = list(coded_layers())
    units = [residual_curve(name, *rest) for name, *rest in layers]
    budget = sum(unit.cost[1] for unit in units)
    found = allocate(units, budget, limits={"small": (units[0].cost[1], None)})
    assert found.cost <= budget
    assert found.chosen["small"].setting >= 2
    assert found.chosen["sensitive"].setting > found.chosen["large"].setting
    predicted = sum(
        metric.distortion(x, quantizer.decode(codes, num_codebooks=found.chosen[name].setting))
        for name, quantizer, codes, x, metric in layers
    )
    assert found.distortion == pytest.approx(predicted)
    assert predicted < 0.75 * found.uniform.distortion


def coded_slices(slices=4, width=8):
    """Slices of vectors whose variance falls from slice to slice, as that of principal components does."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((600, slices * width)) * 2.0 ** -np.arange(slices).repeat(width)).astype(np.float32)
    for s, part in enumerate(np.split(x, slices, axis=1)):
        quantizer = mcq.ResidualQuantizer(3, 8, group_size=None, rounds=2)
        yield f"slice {s}", quantizer, quantizer.fit_encode(part), part, mcq.Identity()


def test_slices_of_a_vector_get_bits_by_their_variance():
    """A product code with as many codebooks for a slice as its variance calls for."""
    coded = list(coded_slices())
    units = [residual_curve(name, *rest) for name, *rest in coded]
    found = allocate(units, sum(unit.cost[1] for unit in units))
    given = [chosen.setting for chosen in found.chosen.values()]
    assert given == sorted(given, reverse=True)
    assert given[0] > given[-1]
    x = np.concatenate([part for *_, part, _ in coded], axis=1)
    x_hat = np.concatenate(
        [
            quantizer.prefix(m).decode(codes.prefix(m))
            for m, (_, quantizer, codes, *_) in zip(given, coded, strict=True)
        ],
        axis=1,
    )
    assert mcq.Identity().distortion(x, x_hat) == pytest.approx(found.distortion)
    assert found.gain > 0.2


def test_curve_of_another_matrix_is_refused():
    name, quantizer, codes, x, metric = next(coded_layers())
    with pytest.raises(mcq.InputError, match="the matrix of the codes"):
        residual_curve(name, quantizer, codes, x[1:], metric)
    with pytest.raises(mcq.ConfigError, match="weight"):
        residual_curve(name, quantizer, codes, x, metric, weight=-1.0)


@pytest.mark.parametrize("num_codebooks", [0, 5])
def test_prefixes_that_do_not_exist_are_refused(num_codebooks):
    _, quantizer, codes, *_ = next(coded_layers())
    for cut in (quantizer.prefix, codes.prefix):
        with pytest.raises(mcq.ConfigError, match="num_codebooks must be"):
            cut(num_codebooks)


def test_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(block, names)
    assert "predicted gain" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 6
