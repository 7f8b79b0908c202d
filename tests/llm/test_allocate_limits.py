"""Allocations of odd models, and what is refused before anything is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from typer.testing import CliRunner

import mcq
import mcq_llm
from mcq.errors import ConfigError, FormatError, InputError
from mcq_llm.allocate import allocated
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.cli import app
from mcq_llm.codecs import CODECS
from mcq_llm.config import Budget
from mcq_llm.ledger import Ledger
from mcq_llm.overrides import Override
from mcq_llm.plan import mean_bits, quantized
from mcq_llm.prepare import prepare
from mcq_llm.run import run
from mcq_llm.summary import summarize

TEXT = {"tokens": 256, "window": 32, "format": "mcq"}


def options_of(codec, overrides=(), setting=None, **budget):
    budget = Budget(**{"sensitivity": "activation"} | budget)
    return mcq_llm.Options(CODECS[codec](**setting or {}), overrides=overrides, budget=budget, **TEXT)


@pytest.fixture
def save(tokenizer, tmp_path):
    """Write a random model of a config, with some weights set to zero."""

    def write(config, zeros=()):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name in zeros:
                model.get_parameter(name).zero_()
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return write


def llama(**changes):
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return LlamaConfig(**sizes | {"num_attention_heads": 4, "num_key_value_heads": 2} | changes)


def test_ties_do_not_depend_on_what_was_measured_before(folders, text, tmp_path):
    options = options_of("grid", bits=3.3, tie=True)
    fresh = prepare(folders["llama"], text, options)
    dense = replace(options, overrides=(Override("q_proj", None),))
    prepare(folders["llama"], text, dense, cache=tmp_path)
    after = prepare(folders["llama"], text, options, cache=tmp_path)
    assert after.plan == fresh.plan
    settings = {layer.name: layer.setting for layer in quantized(after.plan)}
    assert len({settings[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv"}) == 1


def test_layers_that_never_compute_are_counted_as_they_stay(save, text, tmp_path):
    config = GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=128, add_cross_attention=True)
    folder, options = save(config), options_of("scalar", bits=8.0)
    prepared = prepare(folder, text, options)
    idle = {layer.name for layer in prepared.plan} - {layer.name for layer in quantized(prepared.plan)}
    assert idle
    assert all("crossattention" in name for name in idle)
    assert mean_bits(prepared.plan)[1] <= 8.0
    with pytest.raises(ConfigError, match="need .* bits per weight, the smallest size possible"):
        prepare(folder, text, options_of("scalar", bits=4.0))


@pytest.mark.parametrize(("codec", "bands"), [("pyramid", 4), ("grid", 8), ("scalar", 16)])
def test_descriptions_of_bands_are_within_the_size(folders, text, tmp_path, codec, bands):
    setting = {"rotate": codec == "pyramid"}
    run(folders["llama"], text, options_of(codec, setting=setting, size=330_000, bands=bands), tmp_path / "tiny")
    assert summarize(tmp_path / "tiny").sizes.total <= 330_000


def test_shares_belong_to_the_text_that_they_were_measured_on(folders, text, tmp_path):
    options = options_of("grid", bits=3.5, sensitivity="attributed")
    first = prepare(folders["llama"], text, options, cache=tmp_path)
    allocated(replace(first, unseen=first.unseen.flip(0)), tmp_path)
    assert len(list(tmp_path.glob("shares-attributed-*.jsonl"))) == 2


def test_ledgers_of_two_runs_stay_apart_and_survive_what_is_cut_off(tmp_path):
    first, second = (Ledger(tmp_path, "curves", {"model": name}) for name in "ab")
    first["layer"] = 1.0
    assert "layer" not in second
    assert "layer" not in Ledger(tmp_path, "curves", {"model": "b"})
    path = next(path for path in tmp_path.iterdir() if "layer" in path.read_text())
    path.write_text(path.read_text() + '{"torn": 1')
    again = Ledger(tmp_path, "curves", {"model": "a"})
    assert again["layer"] == 1.0
    assert "torn" not in again
    again["torn"] = 2.0
    assert Ledger(tmp_path, "curves", {"model": "a"})["torn"] == 2.0


def test_a_resumed_run_must_have_the_same_plan(folders, text, tmp_path, monkeypatch):
    names = [layer.name for layer in prepare(folders["llama"], text, options_of("scalar", bits=3.5)).plan]
    given, save = tmp_path / "given.json", Checkpoint.save_block

    def weigh(block):
        lines = (f'"{name}": {1000 if f"layers.{block}." in name else 1}' for name in names)
        given.write_text(f"{{{', '.join(lines)}}}")

    def once(checkpoint, index, layers):
        save(checkpoint, index, layers)
        raise KeyboardInterrupt

    weigh(0)
    options = options_of("scalar", bits=3.5, sensitivity=str(given))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_block", once)
        with pytest.raises(KeyboardInterrupt):
            run(folders["llama"], text, options, tmp_path / "tiny")
    weigh(1)
    with pytest.raises(InputError, match="cannot go on, because it was started otherwise: plan was"):
        run(folders["llama"], text, options, tmp_path / "tiny", resume=True)


def test_layers_of_few_rows_do_without_settings_that_they_cannot_have(save, text):
    prepared = prepare(save(llama(num_key_value_heads=1)), text, options_of("companded", bits=5.0))
    assert 0.95 * 5 < mean_bits(prepared.plan)[1] <= 5
    least = min(layer.setting.bits for layer in quantized(prepared.plan) if layer.rows == 16)
    assert least > mcq.CompandedQuantizer().least_bits(16, 64)


@pytest.mark.parametrize(("codec", "group"), [("shell", 32), ("pyramid", 64), ("scalar", 1)])
def test_every_size_of_groups_has_candidates(codec, group):
    candidates = CODECS[codec](group=group).candidates()
    assert len(set(candidates)) == len(candidates)
    for setting in candidates:
        setting.quantizer()


def test_a_layer_of_zeros_is_cut_in_bands_too(save, text):
    folder = save(llama(), zeros=["model.layers.1.self_attn.o_proj.weight"])
    prepared = prepare(folder, text, options_of("grid", bits=3.5, bands=4))
    assert 0.97 * 3.5 < mean_bits(prepared.plan)[1] <= 3.5


@pytest.mark.parametrize("columns", [20, 40, 64, 72])
def test_curves_are_those_of_the_rate_and_not_of_the_padding(columns):
    rng = np.random.default_rng(0)
    weight, inputs = rng.standard_normal((64, columns), np.float32), rng.standard_normal((200, columns))
    errors = mcq_llm.ShellSetting().curve(weight, mcq.Gram(inputs.T @ inputs))
    assert list(errors.values()) == sorted(errors.values(), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4.5", "--sensitivity", "fishre"], "must be one of activation, noise"),
        (["--bits", "4.5", "--stream"], "sensitivity 'fisher' needs all weights in memory"),
        (["--bits", "4.5", "--stream", "--bands", "2", "--codec", "shell", "--allocate"], "needs all weights"),
        (["--bits", "4.5", "--format", "aqlm"], "one setting for all layers"),
        (["--bits", "4.5", "--override", "q_proj=codec:lattice"], "chosen layer by layer"),
        (["--bits", "4", "--codec", "lattice", "--override", "q_proj=codec:lattice"], "chosen layer by layer"),
        (["--codec", "companded", "--bands", "4", "--bits", "2.5", "--allocate"], "rows of companded codes share"),
        (["--bits", "4.5", "--bands", "2"], "rows of additive codes share"),
        (["--size", "140000", "--dense"], "a size is that of files with codes"),
        (["--bits", "nan"], "--bits must be a number"),
        (["--size", "9" * 400], "a size must be at most"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    folders, text, tmp_path, monkeypatch, arguments, message
):
    (tmp_path / "text.txt").write_text(text)
    monkeypatch.setattr("mcq_llm.allocate.measure_curves", None)
    short = ["--calibration", tmp_path / "text.txt", "--tokens", 128, "--window", 32, "--dry-run"]
    done = CliRunner().invoke(app, [str(part) for part in ("quantize", folders["llama"], *short, *arguments)])
    assert isinstance(done.exception, ConfigError), done.exception
    assert message in str(done.exception)


def test_a_file_of_sensitivities_is_read_before_anything_is_measured(folders, text, tmp_path, monkeypatch):
    (tmp_path / "given.json").write_text('{"model.layers.0.mlp.up": 1.0}')
    monkeypatch.setattr("mcq_llm.allocate.measure_curves", None)
    with pytest.raises(FormatError, match="positive number for each layer by its full name, but: 'model"):
        prepare(folders["llama"], text, options_of("shell", bits=3.0, sensitivity=str(tmp_path / "given.json")))
