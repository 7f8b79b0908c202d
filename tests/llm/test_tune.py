import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn

from mcq.errors import ConfigError, InputError
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.blocks import find_blocks, linear_layers
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.coded_linear import CodedLinear
from mcq_llm.tune import TuneOptions, relative_error, tune_block

SETTING = AdditiveSetting(codebooks=2, bits=4, group=8)
PRECISE = TuneOptions(epochs=6, precision="float32")


def make_coded(outputs, inputs, seed, bias=None):
    rng = np.random.default_rng(seed)
    codes = rng.integers(16, size=(outputs, inputs // 8, 2)).astype(np.uint16)
    codebooks = (rng.standard_normal((2, 16, 8)) / 8).astype(np.float16)
    return CodedLinear(AqlmLayer(SETTING, inputs, codes, codebooks, np.ones((outputs, 1), np.float16)), bias)


class Problem:
    """A block of a tiny Llama or Qwen2 whose layers are exactly coded, its outputs, and means to disturb it."""

    def __init__(self, model, batches=8):
        torch.manual_seed(1)
        self.block = find_blocks(model).modules[0]
        for seed, (name, layer) in enumerate(linear_layers(self.block).items()):
            self.block.set_submodule(name, make_coded(*layer.weight.shape, seed, layer.bias))
        self.inputs = [torch.randn(2, 16, 64) for _ in range(batches)]
        self.positions = model.model.rotary_emb(self.inputs[0], torch.arange(16)[None])
        with torch.no_grad():
            for parameter in self.block.parameters():
                parameter.copy_(parameter.half())
            self.targets = [self.forward(i) for i in range(batches)]
        self.original = self.state()

    def forward(self, i):
        return self.block(self.inputs[i], position_embeddings=self.positions, attention_mask=None)

    def state(self):
        return {name: parameter.detach().clone() for name, parameter in self.block.named_parameters()}

    def disturb(self, fraction=0.1, kinds=("codebooks",)):
        """Move parameters of the named kinds by random amounts."""
        with torch.no_grad():
            for name, parameter in self.block.named_parameters():
                if name.endswith(kinds):
                    parameter += fraction * parameter.square().mean().sqrt() * torch.randn_like(parameter)
        return self

    def distance(self, kind):
        """Return how far the parameters of a kind are from the original, relative to their size."""
        now = self.state()
        off = sum((now[n] - right).square().sum() for n, right in self.original.items() if n.endswith(kind))
        return float(off / sum(right.square().sum() for n, right in self.original.items() if n.endswith(kind))) ** 0.5

    def tune(self, options=PRECISE, seed=0):
        return tune_block(self.block, self.forward, self.targets, options, seed)


@pytest.fixture
def problem(make_model):
    return Problem(make_model("llama"))


def test_recovers_disturbed_codebooks(problem):
    problem.disturb(0.1)
    report = problem.tune(dataclasses.replace(PRECISE, epochs=30))
    assert report.loss_after < 0.05 * report.loss_before
    assert problem.distance("codebooks") < 0.05


@pytest.mark.parametrize("kind", ["codebooks", "scales", "layernorm.weight", "bias"])
def test_every_kind_of_parameter_is_tuned(make_model, kind):
    problem = Problem(make_model("qwen2")).disturb(0.2, (kind,))
    before = problem.distance(kind)
    report = problem.tune(dataclasses.replace(PRECISE, epochs=12))
    assert report.loss_after < 0.3 * report.loss_before
    # A bias of the keys shifts all scores of a query alike, so it cannot be told from the outputs.
    assert kind == "bias" or problem.distance(kind) < before


def test_reported_losses_are_those_of_the_parameters_left_behind(problem):
    problem.disturb()
    report = problem.tune(dataclasses.replace(PRECISE, held_out=0.0))
    with torch.no_grad():
        losses = [float(relative_error(problem.forward(i), problem.targets[i])) for i in range(8)]
    assert min(abs(loss - report.loss_after) for loss in losses) < 1e-7
    for parameter in problem.block.parameters():
        assert torch.equal(parameter, parameter.half().float())


def test_a_perfect_block_stays_as_it_is(problem):
    report = problem.tune()
    assert (report.loss_before, report.loss_after, report.best_epoch) == (0.0, 0.0, 0)
    assert report.epochs == PRECISE.patience
    assert all(torch.equal(now, problem.original[name]) for name, now in problem.state().items())


def test_the_held_out_loss_never_rises(problem):
    problem.disturb(0.01)
    before = problem.state()
    report = problem.tune(dataclasses.replace(PRECISE, learning_rate=1.0))
    assert report.loss_after <= report.loss_before
    if report.best_epoch == 0:
        after = problem.state()
        assert all(torch.equal(after[name], value.half().float()) for name, value in before.items())


def test_same_seed_same_result(make_model):
    runs = []
    for seed in (0, 0, 1):
        problem = Problem(make_model("llama")).disturb()
        runs.append((dataclasses.replace(problem.tune(seed=seed), seconds=0), problem.state()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(runs[0][1][name], value) for name, value in runs[1][1].items())


def test_stops_with_the_best_parameters_when_the_loss_is_not_finite(problem, caplog):
    problem.disturb()
    calls = 0

    def forward(i):
        nonlocal calls
        calls += 1
        return problem.forward(i) * (float("nan") if calls > 20 else 1.0)

    with caplog.at_level(logging.WARNING, logger="mcq"):
        report = tune_block(problem.block, forward, problem.targets, PRECISE)
    assert "not finite" in caplog.text
    assert report.epochs == report.best_epoch + 1
    assert report.best_epoch > 0
    assert report.loss_after < report.loss_before
    assert all(torch.isfinite(parameter).all() for parameter in problem.block.parameters())


def test_a_loss_that_is_not_finite_from_the_start_changes_nothing(problem, caplog):
    problem.targets = [target * float("inf") for target in problem.targets]
    with caplog.at_level(logging.WARNING, logger="mcq"):
        report = problem.tune()
    assert (report.epochs, report.best_epoch) == (0, 0)
    assert "not finite" in caplog.text
    assert all(torch.equal(now, problem.original[name]) for name, now in problem.state().items())


def test_codebooks_stay_within_float16():
    layer = make_coded(16, 64, seed=0)
    with torch.no_grad():
        layer.codebooks.fill_(6.5e4)
    x = [torch.rand(4, 64) for _ in range(4)]
    targets = [2 * layer(value).detach() for value in x]
    tune_block(layer, lambda i: layer(x[i]), targets, dataclasses.replace(PRECISE, learning_rate=0.5))
    assert torch.isfinite(layer.codebooks).all()
    assert np.isfinite(layer.stored().codebooks).all()


def test_no_epochs_only_rounds(problem):
    problem.disturb()
    report = problem.tune(dataclasses.replace(PRECISE, epochs=0))
    assert report.loss_after == report.loss_before > 0
    assert report.epochs == 0


def test_other_modules_that_forward_runs_are_left_alone(problem, make_model):
    after = nn.Linear(64, 64)
    problem.targets = [after(target).detach() for target in problem.targets]
    problem.disturb()
    weight = after.weight.detach().clone()
    report = tune_block(problem.block, lambda i: after(problem.forward(i)), problem.targets, PRECISE)
    assert report.loss_after < report.loss_before
    assert torch.equal(after.weight, weight)
    assert after.weight.grad is None


def test_bfloat16_products_lead_to_nearly_the_same_loss(make_model):
    losses = {}
    for precision in ("float32", "bfloat16"):
        problem = Problem(make_model("llama")).disturb(0.3)
        losses[precision] = problem.tune(TuneOptions(precision=precision)).loss_after
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.2)


def test_a_layer_that_never_computes_is_left_alone(problem):
    problem.disturb()
    problem.block.unused = make_coded(8, 64, seed=9)
    before = problem.block.unused.codebooks.detach().clone()
    problem.tune()
    assert torch.equal(problem.block.unused.codebooks, before)


def test_one_batch_is_refused(problem):
    with pytest.raises(InputError, match="at least 2 calibration batches.*got 1"):
        tune_block(problem.block, problem.forward, problem.targets[:1], PRECISE)


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"learning_rate": -0.1}, {"held_out": 0.9}, {"patience": 0}, {"precision": "int8"}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TuneOptions(**wrong)


def test_weights_that_are_not_quantized_yet_follow_too():
    torch.manual_seed(1)
    layer = nn.Linear(32, 16)
    x = [torch.randn(20, 32) for _ in range(8)]
    targets = [layer(value).detach() + 0.1 * value[:, :16] for value in x]
    report = tune_block(layer, lambda i: layer(x[i]), targets, dataclasses.replace(PRECISE, epochs=20))
    assert report.loss_after < 0.3 * report.loss_before
