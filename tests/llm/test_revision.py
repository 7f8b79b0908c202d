"""Settings that are chosen again, by what errors count in a model with the settings chosen first."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import mcq_llm
from mcq.errors import ConfigError
from mcq_llm import sensitivity
from mcq_llm.bands import plain_settings
from mcq_llm.blocks import find_blocks
from mcq_llm.cli import app
from mcq_llm.codecs import GridSetting
from mcq_llm.config import Budget
from mcq_llm.plan import mean_bits
from mcq_llm.prepare import prepare
from mcq_llm.revision import MOST, band_corrections, layer_corrections

PREDICTED = {"model.layers.0.a": [1.0, 2.0], "model.layers.1.a": [3.0, 4.0], "model.layers.1.b": [2.0]}


@pytest.fixture
def blocks(make_model):
    return find_blocks(make_model("llama"))


def test_what_was_predicted_is_not_corrected(blocks):
    measured = {name: [7 * part for part in parts] for name, parts in PREDICTED.items()}
    assert layer_corrections(measured, PREDICTED, blocks) == pytest.approx(dict.fromkeys(PREDICTED, 1))
    found = band_corrections(measured, PREDICTED, blocks)
    assert {name: len(factors) for name, factors in found.items()} == {n: len(p) for n, p in PREDICTED.items()}
    np.testing.assert_allclose(np.concatenate(list(found.values())), 1)


def test_layers_that_count_more_than_predicted_are_believed_half(blocks):
    found = layer_corrections(PREDICTED | {"model.layers.1.b": [8.0]}, PREDICTED, blocks)
    # 8 of 18 instead of 2 of 12, and 10 of 18 instead of 10 of 12
    assert found["model.layers.1.b"] == pytest.approx(np.sqrt(8 / 18 / (2 / 12)))
    assert found["model.layers.0.a"] == pytest.approx(np.sqrt(12 / 18))


def test_bands_are_corrected_alike_in_layers_of_a_kind(blocks):
    measured = PREDICTED | {"model.layers.0.a": [6.0, 1.0]}
    found = band_corrections(measured, PREDICTED, blocks)
    # 9 and 5 of 14 instead of 4 and 6 of 10
    for name in ("model.layers.0.a", "model.layers.1.a"):
        assert found[name][0] / found[name][1] == pytest.approx((9 / 4) / (5 / 6))
        assert np.dot(found[name], PREDICTED[name]) == pytest.approx(sum(PREDICTED[name]))
    assert found["model.layers.1.b"] == pytest.approx([1.0])


@pytest.mark.parametrize("share", [0.0, -1.0])
def test_errors_that_do_no_harm_teach_nothing(blocks, share):
    measured = {name: [share * part for part in parts] for name, parts in PREDICTED.items()}
    assert layer_corrections(measured, PREDICTED, blocks) == dict.fromkeys(PREDICTED, 1.0)
    assert band_corrections(measured, PREDICTED, blocks) == {name: [1.0] * len(p) for name, p in PREDICTED.items()}


def test_layers_without_errors_are_not_corrected(blocks):
    predicted = {"model.layers.0.a": [0.0, 0.0], "model.layers.1.b": [1.0, 3.0]}
    measured = {"model.layers.0.a": [0.1, 0.2], "model.layers.1.b": [1.0, 3.0]}
    assert layer_corrections(measured, predicted, blocks)["model.layers.0.a"] == 1
    assert band_corrections(measured, predicted, blocks) == {name: [1.0, 1.0] for name in predicted}


@pytest.mark.parametrize("share", [-5.0, 0.0, 1e9])
def test_absurd_shares_are_limited(blocks, share):
    limit = MOST if share > 0 else 1 / MOST
    found = layer_corrections(PREDICTED | {"model.layers.1.b": [share]}, PREDICTED, blocks)
    assert found["model.layers.1.b"] == pytest.approx(np.sqrt(limit))
    predicted = {"model.layers.0.a": [1.0] * 9}
    found = band_corrections({"model.layers.0.a": [1.0] * 8 + [share]}, predicted, blocks)["model.layers.0.a"]
    others = 9 / (8 + share)
    assert found[-1] / found[0] == pytest.approx(limit / min(max(others, 1 / MOST), MOST))


@pytest.mark.parametrize(("provider", "bands"), [("attributed", 1), ("attributed", 3), ("walked", 3)])
def test_each_pass_looks_at_the_settings_chosen_last(folders, text, tmp_path, monkeypatch, provider, bands):
    budget = Budget(bits=3.5, sensitivity=provider, bands=bands)
    options = mcq_llm.Options(GridSetting(), budget=budget, tokens=256, window=32, format="mcq")
    plans, share_out = [], sensitivity._shared_out

    def noted(provider, prepared, modules, drafts):
        plans.append([layer.setting for layer in prepared.plan])
        return share_out(provider, prepared, modules, drafts)

    monkeypatch.setattr(sensitivity, "_shared_out", noted)
    once = prepare(folders["llama"], text, options, cache=tmp_path)
    twice = prepare(folders["llama"], text, replace(options, budget=replace(budget, passes=3)), cache=tmp_path)
    assert len(plans) == 3
    assert len(set(plans[0])) == 1
    assert plans[1] == [layer.setting for layer in once.plan] != plans[2]
    assert 0.95 * 3.5 < mean_bits(twice.plan)[1] <= 3.5
    again = prepare(folders["llama"], text, replace(options, budget=replace(budget, passes=3)), cache=tmp_path)
    assert again.plan == twice.plan
    assert len(plans) == 3


@pytest.mark.parametrize("passes", [1, 2])
def test_each_look_is_had_once_without_a_cache(folders, text, monkeypatch, passes):
    budget = Budget(bits=3.5, sensitivity="attributed", bands=2, passes=passes)
    options = mcq_llm.Options(GridSetting(), budget=budget, tokens=256, window=32, format="mcq")
    looks, share_out = [], sensitivity._shared_out
    monkeypatch.setattr(sensitivity, "_shared_out", lambda *given: looks.append(given) or share_out(*given))
    prepare(folders["llama"], text, options)
    assert len(looks) == passes


def test_the_first_look_tells_what_bands_count(folders, text, monkeypatch):
    budget = Budget(bits=3.5, sensitivity="attributed", bands=2)
    options = mcq_llm.Options(GridSetting(), budget=budget, tokens=256, window=32, format="mcq")
    order = {layer.name: layer.importance for layer in prepare(folders["llama"], text, options).plan}
    share_out = sensitivity._shared_out

    def bits(least):
        """Return the mean bits of both bands if the rows that are least important have this part of the shares."""

        def given(provider, prepared, modules, drafts):
            def rows(name, share):
                low = order[name] < len(order[name]) // 2
                parts = np.where(low, least / low.sum(), (1 - least) / (~low).sum())
                return (abs(sum(share.rows)) * parts).tolist()

            found = share_out(provider, prepared, modules, drafts)
            return {name: share._replace(rows=rows(name, share)) for name, share in found.items()}

        monkeypatch.setattr(sensitivity, "_shared_out", given)
        parts = [plain_settings(layer.setting) for layer in prepare(folders["llama"], text, options).plan]
        return [np.mean([own[band % len(own)].cost(64, 64).payload for own in parts]) for band in (0, 1)]

    (low, high), (low_then, high_then) = bits(0.2), bits(0.8)
    assert low < low_then
    assert high > high_then


@pytest.mark.parametrize(("passes", "provider"), [(0, "walked"), (1.5, "walked"), (2, "fisher"), (2, "given.json")])
def test_passes_that_cannot_be_are_refused(passes, provider):
    with pytest.raises(ConfigError, match="passes"):
        Budget(bits=3.0, sensitivity=provider, passes=passes)


def test_passes_without_a_budget_are_refused(folders, tmp_path):
    arguments = ["quantize", str(folders["llama"]), "--bits", "2", "--passes", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "--passes must go with an allocation: --allocate" in str(result.exception or result.output)
