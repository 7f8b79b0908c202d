"""Bands of rows: layers whose important rows have settings of their own."""

import json
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mcq_llm
from mcq.errors import ConfigError
from mcq_llm.allocate import Banded, Curve
from mcq_llm.bands import BandedSetting, band_rows, importance, ranks, shares
from mcq_llm.cli import app
from mcq_llm.codecs import AdditiveSetting, GridSetting, ScalarSetting, ShellSetting, TrellisSetting
from mcq_llm.config import Budget
from mcq_llm.load import load
from mcq_llm.plan import mean_bits, planned, quantized
from mcq_llm.prepare import prepare
from mcq_llm.run import run
from mcq_llm.tune import TuneOptions

OPTIONS = mcq_llm.Options(
    GridSetting(), budget=Budget(bits=3.5, sensitivity="fisher", bands=4), tokens=256, window=32, format="mcq"
)


@pytest.mark.parametrize(
    "parts",
    [
        (GridSetting(2, 16), GridSetting(2, 64), GridSetting(1, 256)),
        (ShellSetting(1.5, rotate=True), ShellSetting(2.5, rotate=True)),
        (ScalarSetting(2, 16), ScalarSetting(4, 8), ScalarSetting(3, 16), ScalarSetting(4, 8)),
        (TrellisSetting(1.0, 9, 8), TrellisSetting(2.0, 9, 8)),
        (AdditiveSetting(1, 4), AdditiveSetting(2, 4, dtype="int8")),
    ],
    ids=str,
)
def test_a_banded_layer_takes_what_is_planned(parts):
    setting = BandedSetting(parts=parts)
    quantizer = setting.quantizer()
    weight = np.random.default_rng(0).standard_normal((70, 90), np.float32)
    bits = quantizer.bits(quantizer.fit_encode(weight))
    assert astuple(bits) == pytest.approx(astuple(setting.cost(70, 90)))


def test_bands_are_of_equal_number_and_shares_of_their_rows():
    values = np.array([5.0, 1.0, 1.0, 3.0, 0.0])
    order = ranks(values)
    assert order.tolist() == [4, 1, 2, 3, 0]
    assert band_rows(5, 2) == [2, 3]
    assert shares(values, order, 2) == pytest.approx([0.1, 0.9])
    assert importance([1.0, 0.0], [2.0, 7.0]).tolist() == [2.0, 0.001]


def test_more_bands_predict_less_error_within_the_same_budget(folders, text, monkeypatch):
    rng = np.random.default_rng(0)  # rows of a model this small are all alike
    uneven = {layer.name: rng.lognormal(0, 2, layer.rows) for layer in prepare(folders["llama"], text, OPTIONS).plan}
    monkeypatch.setattr("mcq_llm.allocate.row_sensitivities", lambda *args: uneven)
    found, compared = [], []
    for bands in (1, 2, 4):
        options = replace(OPTIONS, budget=replace(OPTIONS.budget, bands=bands))
        prepared = prepare(folders["llama"], text, options)
        assert 0.95 * 3.5 < mean_bits(prepared.plan)[1] <= 3.5
        found.append(sum(chosen.distortion for chosen in prepared.allocation.chosen.values()))
        compared.append(prepared.allocation.uniform)
    assert found[2] < found[1] < found[0]
    for uniform in compared[1:]:  # without bands, whatever these take
        assert (uniform.setting, uniform.cost) == (compared[0].setting, compared[0].cost)
        assert uniform.distortion == pytest.approx(compared[0].distortion)


def test_important_rows_get_more_bits(folders, text):
    for layer in quantized(prepare(folders["llama"], text, OPTIONS).plan):
        if isinstance(layer.setting, BandedSetting):
            bits = [part.cost(64, 64).payload for part in layer.setting.parts]
            assert bits == sorted(bits)
            assert sorted(layer.importance) == list(range(layer.rows))


@pytest.mark.parametrize("tune", ["none", "block"])
def test_a_banded_model_is_written_and_loaded(folders, text, tmp_path, tune):
    options = replace(OPTIONS, tune=tune, tuning=TuneOptions(epochs=1))
    prepared = prepare(folders["llama"], text, options)
    run(folders["llama"], text, options, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "quantize.jsonl").read_text().splitlines()]
    assert any(" | " in line["setting"] for line in lines)
    taken = sum(line["bits_all_in"] * line["rows"] * line["columns"] for line in lines)
    assert taken == pytest.approx(sum(layer.all_in * layer.entries for layer in prepared.plan))
    assert taken <= 3.5 * sum(layer.entries for layer in prepared.plan)
    model, _ = load(tmp_path / "out")
    ids = torch.arange(32)[None]
    with torch.no_grad():
        logits = model(ids).logits
        original = load(folders["llama"])[0](ids).logits
    assert 0 < float((logits - original).square().mean() / original.var()) < 0.5


def test_an_interrupted_run_ends_with_the_same_bytes(folders, text, tmp_path, monkeypatch, stop_at):
    run(folders["llama"], text, OPTIONS, tmp_path / "whole")
    from mcq_llm import quantize

    with monkeypatch.context() as patch:
        stop_at(patch, quantize, "quantize_layer", 10)
        with pytest.raises(KeyboardInterrupt):
            run(folders["llama"], text, OPTIONS, tmp_path / "cut")
    run(folders["llama"], text, OPTIONS, tmp_path / "cut", resume=True)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_ties_hold_band_by_band(folders, text):
    options = replace(OPTIONS, budget=replace(OPTIONS.budget, tie=True))
    settings = {layer.name: layer.setting for layer in quantized(prepare(folders["llama"], text, options).plan)}
    for block in range(2):
        attention = {settings[f"model.layers.{block}.self_attn.{name}_proj"] for name in "qkv"}
        assert len(attention) == 1


@pytest.mark.parametrize("bands", [0, 17, 1.5])
def test_bad_numbers_of_bands_are_refused(bands):
    with pytest.raises(ConfigError, match="bands must be"):
        Budget(bits=3.0, bands=bands)


def test_bands_without_a_budget_are_refused(folders, tmp_path):
    arguments = ["quantize", str(folders["llama"]), "--bits", "2", "--bands", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "--bands must go with an allocation: --allocate" in str(result.exception or result.output)


def test_bands_of_streamed_models_are_refused(folders, text):
    budget = replace(OPTIONS.budget, sensitivity="activation")
    with pytest.raises(ConfigError, match="bands of rows need all weights in memory"):
        prepare(folders["llama"], text, replace(OPTIONS, budget=budget), stream=True)


def test_there_are_no_more_bands_than_rows():
    curve = Curve("a", 1.0, {GridSetting(2, 16): 0.1}, [1.0, 2.0, 3.0])
    layer = Banded.of(planned("a", 3, 64, GridSetting(2, 16), OPTIONS), curve, [1.0, 1.0, 1.0], bands=8)
    assert layer.bands == 3
    assert len(layer.units(1.0, OPTIONS)) == 3
