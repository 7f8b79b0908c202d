"""Budgets shared out among the layers, and what their errors count."""

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import mcq_llm
from mcq.errors import ConfigError, FormatError, InputError
from mcq_llm.blocks import find_blocks, get_weight
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.cli import app
from mcq_llm.codecs import CODECS
from mcq_llm.config import SHARED, Budget
from mcq_llm.load import load
from mcq_llm.overrides import Override
from mcq_llm.plan import make_plan, mean_bits, quantized
from mcq_llm.prepare import prepare
from mcq_llm.prepared import Prepared
from mcq_llm.run import run
from mcq_llm.sensitivity import PROVIDERS, DivergenceMeter, by_shares, sensitivities, shared_out
from mcq_llm.text import spread_windows, tokenize

#: Layers of 64 inputs cannot have 2 bits with codebooks of 256 entries.
TEXT = {"tokens": 256, "window": 32, "format": "mcq"}


def options_of(codec="additive", overrides=(), **budget):
    budget = Budget(**{"sensitivity": "activation"} | budget)
    return mcq_llm.Options(CODECS[codec](), overrides=overrides, budget=budget, **TEXT)


def bits_of(prepared):
    return mean_bits(prepared.plan)[1]


@pytest.mark.parametrize(
    ("codec", "bits"),
    [("additive", 4.0), ("additive", 5.5), ("residual", 4.0), ("pyramid", 3.3), ("scalar", 4.0), ("grid", 3.3)],
)
def test_a_budget_of_bits_is_met_and_not_exceeded(folders, text, codec, bits):
    prepared = prepare(folders["llama"], text, options_of(codec, bits=bits))
    assert 0.97 * bits < bits_of(prepared) <= bits
    assert all(layer.predicted is not None for layer in quantized(prepared.plan))
    assert len({layer.setting for layer in quantized(prepared.plan)}) > 1


def test_each_layer_gets_the_lattice_that_suits_it(folders, text, monkeypatch):
    monkeypatch.setattr(
        "mcq_llm.codecs.GainShapeSetting.candidates",
        lambda setting: [replace(setting, bits=bits, group=8) for bits in (2.0, 3.0, 4.0)],
    )
    prepared = prepare(folders["llama"], text, options_of("lattice", bits=3.3))
    assert 0.97 * 3.3 < bits_of(prepared) <= 3.3
    chosen = {(layer.setting.codec, layer.setting.rotate) for layer in quantized(prepared.plan)}
    assert len(chosen) > 1
    assert {codec for codec, _ in chosen} <= {"pyramid", "shell"}
    with pytest.raises(ConfigError, match="chosen layer by layer"):
        prepare(folders["llama"], text, replace(options_of("lattice", bits=3.3), budget=None))


def test_a_budget_of_bytes_is_that_of_the_files(folders, text, tmp_path):
    run(folders["llama"], text, options_of(size=120_000), tmp_path / "tiny")
    files = sum(path.stat().st_size for path in (tmp_path / "tiny").glob("*.safetensors"))
    assert 100_000 < files <= 120_000


def test_errors_are_predicted_and_reported(folders, text, tmp_path):
    run(folders["llama"], text, options_of(bits=5.0), tmp_path / "tiny")
    lines = [json.loads(line) for line in (tmp_path / "tiny" / "quantize.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["error_predicted"] > 0
    settings = {line["setting"] for line in lines}
    assert len(settings) > 1
    assert mcq_llm.load(tmp_path / "tiny")


def test_overrides_keep_what_they_say(folders, text):
    overrides = (Override.parse("down_proj=codebooks:2,bits:4"), Override.parse("layers.0.self_attn.q=dense"))
    prepared = prepare(folders["llama"], text, options_of(overrides=overrides, bits=6.0))
    settings = {layer.name: str(layer.setting) for layer in quantized(prepared.plan)}
    assert {text for name, text in settings.items() if "down_proj" in name} == {"2x4 g8"}
    assert "model.layers.0.self_attn.q_proj" not in settings
    assert bits_of(prepared) <= 6


def test_tied_layers_have_one_setting(folders, text):
    prepared = prepare(folders["llama"], text, options_of(bits=4.5, tie=True))
    settings = {layer.name: layer.setting for layer in quantized(prepared.plan)}
    for index in range(2):
        block = f"model.layers.{index}"
        assert len({settings[f"{block}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert settings[f"{block}.mlp.gate_proj"] == settings[f"{block}.mlp.up_proj"]


def test_what_counts_more_gets_more_bits(folders, text, tmp_path):
    names = [layer.name for layer in prepare(folders["llama"], text, options_of(bits=4.0)).plan]
    (tmp_path / "given.json").write_text(json.dumps({name: 100.0 if "up" in name else 1.0 for name in names}))
    plain = prepare(folders["llama"], text, options_of(bits=4.0))
    given = prepare(folders["llama"], text, options_of(bits=4.0, sensitivity=str(tmp_path / "given.json")))

    def error(prepared):
        return sum(layer.predicted for layer in prepared.plan if "up" in layer.name)

    assert error(given) < 0.8 * error(plain)


def test_impossible_budgets_say_what_is_possible_before_anything_is_measured(folders, text, tmp_path):
    with pytest.raises(ConfigError, match="smallest size possible.*the largest is") as refused:
        prepare(folders["llama"], text, options_of(bits=0.5), cache=tmp_path)
    assert not list(tmp_path.iterdir())
    least, left, _ = map(float, re.findall(r"\d+\.\d+", str(refused.value)))
    assert left == 0.5
    assert bits_of(prepare(folders["llama"], text, options_of(bits=least + 1e-3))) == pytest.approx(least, abs=1e-3)
    with pytest.raises(ConfigError, match="not quantized takes more than the 1,000 bytes"):
        prepare(folders["llama"], text, options_of(size=1000))
    with pytest.raises(ConfigError, match="leave no layer whose setting could be chosen"):
        prepare(folders["llama"], text, options_of(overrides=(Override.parse(".=bits:4"),), bits=4.0))


def test_measurements_are_taken_up_again(folders, text, tmp_path, monkeypatch, stop_at):
    options = options_of(bits=4.0, sensitivity="noise")
    whole = prepare(folders["llama"], text, options, cache=tmp_path / "a")
    with monkeypatch.context() as patch:
        stop_at(patch, DivergenceMeter, "of", 12)
        with pytest.raises(KeyboardInterrupt):
            prepare(folders["llama"], text, options, cache=tmp_path / "b")
    again = prepare(folders["llama"], text, options, cache=tmp_path / "b")
    assert again.plan == whole.plan
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [name.rpartition("-")[0] for name in files] == ["curves", "sensitivity-noise"]
    for name in files:
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    with monkeypatch.context() as patch:  # nothing is measured twice, not for another budget either
        patch.setattr(DivergenceMeter, "of", None)
        patch.setattr(type(options.setting), "curve", None)
        assert bits_of(prepare(folders["llama"], text, options_of(bits=5.0, sensitivity="noise"), cache=tmp_path / "b"))


class Layer:
    power = 1.0


@pytest.fixture
def measure(folders, text):
    model, tokenizer = load(folders["llama"])
    windows = spread_windows(tokenize(tokenizer, text), 8, 32)
    options = mcq_llm.Options(mcq_llm.AdditiveSetting(2, 4), **TEXT)

    def call(provider, cache=None):
        blocks = find_blocks(model)
        layers = {name: Layer() for index in range(2) for name in blocks.layers(index)}
        prepared = Prepared(model, tokenizer, blocks, make_plan(blocks, options), windows, options, unseen=windows + 1)
        if provider in SHARED:
            return by_shares(shared_out(provider, prepared, layers, cache, {}), blocks), model
        return sensitivities(provider, prepared, layers, cache, {}), model

    return call


@pytest.mark.parametrize("provider", PROVIDERS)
def test_providers_leave_the_model_alone_and_count_every_layer(measure, folders, provider):
    found, model = measure(provider)
    assert len(found) == 14
    assert all(value > 0 for value in found.values())
    assert sum(found.values()) / 14 == pytest.approx(1)
    original = load(folders["llama"])[0]
    for name, parameter in original.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert measure(provider)[0] == found


def test_the_fisher_information_predicts_the_divergence_of_small_noise(folders, text):
    model, tokenizer = load(folders["llama"])
    blocks, windows = find_blocks(model), spread_windows(tokenize(tokenizer, text), 16, 32)
    options = mcq_llm.Options(**TEXT)
    names = [name for index in range(2) for name in blocks.layers(index)]
    meter = DivergenceMeter(model, blocks, windows)
    prepared = Prepared(model, tokenizer, blocks, make_plan(blocks, options), windows, options)
    fisher = sensitivities("fisher", prepared, dict.fromkeys(names, Layer()), None, {})
    generator = torch.Generator().manual_seed(1)
    measured = {}
    for name in names:
        layer = model.get_submodule(name)
        weight = get_weight(layer).clone()
        noise = (0.01 * torch.randn(weight.shape, generator=generator) for _ in range(4))
        measured[name] = sum(meter.of(name, layer, weight + each) for each in noise)
    ratios = torch.tensor([measured[name] / fisher[name] for name in names]).log()
    assert ratios.std() < 0.4
    assert torch.tensor(list(fisher.values())).log().std() > 2 * ratios.std()


@pytest.mark.parametrize(
    ("codec", "provider"), [("additive", "attributed"), ("grid", "attributed"), ("grid", "walked")]
)
def test_the_divergence_of_a_coded_model_is_shared_out(folders, text, tmp_path, codec, provider):
    options = options_of(codec, bits=5.0, sensitivity=provider)
    prepared = prepare(folders["llama"], text, options, cache=tmp_path)
    assert 0.97 * 5 < bits_of(prepared) <= 5
    original = load(folders["llama"])[0]
    for name, parameter in original.named_parameters():
        assert torch.equal(prepared.model.get_parameter(name), parameter)
    kept = measured_in(tmp_path, provider)
    assert len(kept) == 1
    assert prepare(folders["llama"], text, options, cache=tmp_path).plan == prepared.plan
    assert measured_in(tmp_path, provider) == kept
    prepare(folders["llama"], text, options_of(codec, bits=6.0, sensitivity=provider), cache=tmp_path)
    both = measured_in(tmp_path, provider)  # other settings have other errors
    assert len(both) == 2
    assert kept.items() <= both.items()


def measured_in(folder, provider):
    return {path.name: path.read_text() for path in folder.glob(f"shares-{provider}-*.jsonl")}


@pytest.mark.parametrize("content", ["[]", "{}", "no", '{"x": -1}'])
def test_files_that_do_not_give_numbers_are_refused(measure, tmp_path, content):
    (tmp_path / "given.json").write_text(content)
    with pytest.raises(FormatError, match="positive number for each layer"):
        measure(str(tmp_path / "given.json"))
    with pytest.raises(ConfigError, match="must be one of activation, noise"):
        measure(str(tmp_path / "missing.json"))


def test_streamed_models_take_what_needs_no_whole_model(folders, text):
    assert prepare(folders["llama"], text, options_of(bits=4.0), stream=True).allocation
    with pytest.raises(ConfigError, match="needs all weights in memory"):
        prepare(folders["llama"], text, options_of(bits=4.0, sensitivity="noise"), stream=True)


def test_experts_are_allocated_too(folders, text):
    budget = Budget(bits=5.0, sensitivity="activation")
    options = mcq_llm.Options(budget=budget, **(TEXT | {"format": "dense"}))
    prepared = prepare(folders["mixtral"], text, options)
    assert len({layer.setting for layer in quantized(prepared.plan)}) > 1


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "give one of both"),
        ({"bits": 2.0, "size": 100}, "give one of both"),
        ({"bits": -1.0}, "bits per weight"),
        ({"size": 0}, "size in bytes"),
    ],
)
def test_bad_budgets_are_refused(budget, message):
    with pytest.raises(ConfigError, match=message):
        Budget(**budget)


@pytest.mark.parametrize("size", ["", "MB", "60 apples", "-3MB"])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(ConfigError, match="a size must be a number of bytes"):
        Budget.parse_size(size)


def test_a_fractional_number_of_bits_is_allocated(folders, text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    short = ["--calibration", tmp_path / "text.txt", "--tokens", 128, "--window", 32, "--sensitivity", "activation"]
    command = ["quantize", folders["llama"], "--out", tmp_path / "out", "--bits", 4.5, *short]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    assert "predicted gain" in done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "mcq"


def test_an_interrupted_run_keeps_its_measurements(folders, text, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "open", None)
        with pytest.raises(TypeError):
            run(folders["llama"], text, options_of(bits=4.0), tmp_path / "tiny")
    with pytest.raises(InputError, match="unfinished run"):
        run(folders["llama"], text, options_of(bits=4.0), tmp_path / "tiny")
    with monkeypatch.context() as patch:
        patch.setattr(mcq_llm.AdditiveSetting, "curve", None)
        run(folders["llama"], text, options_of(bits=4.0), tmp_path / "tiny", resume=True)
    assert (tmp_path / "tiny" / "config.json").exists()
