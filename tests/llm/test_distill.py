import copy
import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mcq.errors import ConfigError, InputError
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.blocks import find_blocks, get_weight, linear_layers, set_weight
from mcq_llm.cli import app
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.coded_model import CodedModel, load_coded
from mcq_llm.config import Options
from mcq_llm.distill import DistillOptions, distill
from mcq_llm.export import export
from mcq_llm.load import load
from mcq_llm.teacher import ask

OPTIONS = DistillOptions(
    epochs=4, batch=2, micro_batch=1, held_out=4, evaluations=4, learning_rate=0.02, precision="float32"
)


def coded(model, setting=AdditiveSetting(2, 4, 8)):  # noqa: B008
    """Quantize all layers of a model in place, without calibration."""
    blocks, stored = find_blocks(model), {}
    for index, block in enumerate(blocks.modules):
        for name, layer in linear_layers(block, f"{blocks.name}.{index}.").items():
            encoder = setting.quantizer()
            codes = encoder.fit_encode(get_weight(layer).numpy().copy(order="C"), seed=0)
            stored[name] = AqlmLayer.of(setting, encoder, codes)
            set_weight(layer, stored[name].weight())
    return stored


@pytest.fixture
def texts():
    """24 sequences in which the next token depends on the last."""
    generator = torch.Generator().manual_seed(2)
    steps = torch.randint(1, 4, (24, 32), generator=generator)
    return steps.cumsum(1) % 256


class Problem:
    """A tiny model at about a bit per weight, and the original's predictions."""

    def __init__(self, original, texts):
        with torch.no_grad():
            original.get_output_embeddings().weight.mul_(10)  # predictions that say something
        self.teacher = ask(original, texts, 64, precision="float32")
        self.model = copy.deepcopy(original)
        self.stored = coded(self.model)
        self.student = CodedModel(self.model, self.stored, torch.float32)

    def tune(self, seed=0, **changes):
        return distill(self.student, self.teacher, dataclasses.replace(OPTIONS, **changes), seed)

    def state(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.fixture
def problem(make_model, texts):
    return lambda kind="llama": Problem(make_model(kind), texts)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_tuning_lowers_the_divergence_on_held_out_sequences(problem, kind):
    problem = problem(kind)
    report = problem.tune()
    assert report.after < 0.9 * report.before
    assert report.after == min(loss for _, loss in report.history)
    assert report.best_step > 0


def test_codes_stay_and_the_model_holds_what_is_stored(problem):
    problem = problem()
    problem.tune()
    stored = problem.student.finish()
    for name, layer in stored.items():
        np.testing.assert_array_equal(layer.codes, problem.stored[name].codes)
        assert not np.array_equal(layer.codebooks, problem.stored[name].codebooks)
        assert torch.equal(problem.model.get_submodule(name).weight, layer.weight())
    for parameter in problem.model.parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, parameter.half().float())


def test_norms_are_tuned_and_embeddings_only_on_request(problem):
    plain, full = problem(), problem()
    before = plain.state()
    plain.tune(epochs=1)
    full.tune(epochs=1, embeddings=True)
    names = changed(before, plain.state())
    assert "model.norm.weight" in names
    assert "model.layers.1.input_layernorm.weight" in names
    assert changed(before, full.state()) == names | {"model.embed_tokens.weight", "lm_head.weight"}


def test_tied_embeddings_stay_tied(problem):
    problem = problem("qwen2")
    before = problem.state()
    problem.tune(epochs=1, embeddings=True)
    assert problem.model.lm_head.weight is problem.model.model.embed_tokens.weight
    assert "lm_head.weight" in changed(before, problem.state())


def test_same_seed_same_result(problem):
    first, second, other = problem(), problem(), problem()
    reports = [first.tune(epochs=1), second.tune(epochs=1), other.tune(epochs=1, seed=1)]
    assert reports[0].history == reports[1].history != reports[2].history
    assert not changed(first.state(), second.state())


@pytest.mark.parametrize("way", [{"micro_batch": 2}, {"checkpointing": True}])
def test_ways_to_save_memory_do_not_change_the_result(problem, way):
    plain, other = problem(), problem()
    expected, found = (dict(run.history) for run in (plain.tune(epochs=1), other.tune(epochs=1, **way)))
    assert found == pytest.approx(expected, rel=1e-3)


def test_nothing_is_changed_if_nothing_is_better(problem):
    problem = problem()
    before = problem.state()
    report = problem.tune(learning_rate=1.0, evaluations=8, patience=2)
    assert report.best_step == 0
    assert report.steps < 40  # stopped early
    assert not changed(before, problem.state())


def test_it_stops_at_nan_and_keeps_the_best(problem, monkeypatch, caplog):
    problem = problem()
    calls = 0

    def failing(*arguments):
        nonlocal calls
        calls += 1
        return real(*arguments) * (math.nan if calls > 60 else 1)

    from mcq_llm import distill as module

    real = module.divergence
    monkeypatch.setattr(module, "divergence", failing)
    with caplog.at_level(logging.WARNING, "mcq"):
        report = problem.tune(evaluations=20)
    assert "not finite" in caplog.text
    assert 0 < report.best_step < report.steps < 40
    assert math.isfinite(report.after)


def test_too_few_sequences_are_refused(problem):
    with pytest.raises(InputError, match="more calibration sequences than the 24"):
        problem().tune(held_out=24)


@pytest.mark.parametrize("wrong", [{"learning_rate": 2.0}, {"batch": 0}, {"precision": "half"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        DistillOptions(**wrong)


@pytest.fixture
def quantized_folder(folders, tokenizer, tmp_path):
    """A tiny Qwen2 at about a bit per weight."""
    model = load(folders["qwen2"])[0]
    export(model, tokenizer, coded(model), tmp_path / "a", Options(AdditiveSetting(2, 4, 8)), "a")
    return tmp_path / "a"


def tune_command(folder, text, *arguments):
    path = folder.parent / "text.txt"
    path.write_text(text)
    fixed = ["--calibration", path, "--window", 32, "--held-out", 4, "--threads", 1, "--out", folder.parent / "b"]
    return CliRunner().invoke(app, [str(argument) for argument in ("tune", folder, *fixed, *arguments)])


def test_the_command_tunes_a_folder(folders, quantized_folder, text):
    done = tune_command(quantized_folder, text, "--reference", folders["qwen2"])
    assert done.exit_code == 0, done.output
    out = quantized_folder.parent / "b"
    report = json.loads((out / "tune.json").read_text())
    assert report["after"] < report["before"]
    before, after = load_coded(quantized_folder)[2], load_coded(out)[2]
    assert before.keys() == after.keys()
    for name, layer in after.items():
        np.testing.assert_array_equal(layer.codes, before[name].codes)
    assert any(not np.array_equal(layer.codebooks, before[name].codebooks) for name, layer in after.items())


def test_another_vocabulary_is_refused(folders, quantized_folder, text, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["more"])
    load(folders["llama"])[0].save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    done = tune_command(quantized_folder, text, "--reference", tmp_path / "other")
    assert isinstance(done.exception, InputError)
    assert "the same vocabulary" in str(done.exception)
    assert not (tmp_path / "b").exists()
