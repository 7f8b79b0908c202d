"""Activations in codes."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mcq
from mcq_llm.activations import activation_quantizer, coded_activations
from mcq_llm.blocks import find_blocks
from mcq_llm.cli import app


class Exact:
    """Stands in for a quantizer of endless rate."""

    def encode(self, x):
        return Kept(x)

    def decode(self, codes):
        return codes.x.copy()


class Kept:
    def __init__(self, x):
        self.x = x

    def bits(self):
        return mcq.Bits(32.0, 32.0)


def logits(model, windows):
    with torch.inference_mode():
        return model(windows).logits


def inputs_of_layers(model, windows):
    """What every linear layer in the blocks receives."""
    found, hooks = {}, []
    blocks = find_blocks(model)
    for index in range(len(blocks.modules)):
        for name, layer in blocks.layers(index).items():

            def keep(_, inputs, name=name):
                found[name] = inputs[0].clone()

            hooks.append(layer.register_forward_pre_hook(keep))
    logits(model, windows)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_exact_codes_change_nothing_and_every_layer_is_reached(make_model, windows, kind):
    model = make_model(kind)
    before = logits(model, windows)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with coded_activations(model, Exact()) as tally:
        torch.testing.assert_close(logits(model, windows), before)
    assert tally.layers == {"llama": 14, "gpt2": 8, "mixtral": 2 * (4 + 2 * 3)}[kind]
    rates = tally.rates()
    assert (rates.payload, rates.error, rates.weights_payload) == (32.0, 0.0, None)
    assert "not quantized" in str(rates)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_layers_receive_what_codes_stand_for(make_model, windows):
    model, quantizer = make_model("llama"), activation_quantizer("shell:8,12,1")
    plain = inputs_of_layers(model, windows)["model.layers.0.self_attn.q_proj"]
    with coded_activations(model, quantizer):
        coded = inputs_of_layers(model, windows)["model.layers.0.self_attn.q_proj"]
    rows = plain.reshape(-1, 64).numpy()
    assert np.array_equal(coded.reshape(-1, 64).numpy(), quantizer.decode(quantizer.encode(rows)))


def test_tokens_are_coded_alike_in_any_company(make_model, windows):
    model = make_model("llama")
    with coded_activations(model, activation_quantizer("pyramid:16,23,3")):
        name = "model.layers.0.mlp.down_proj"
        layer, x = model.get_submodule(name), torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
        seen = []
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for part in (x, x[:7], x[7:], x.reshape(4, 10, 128)):
            layer(part)
    whole, first, rest, batched = seen
    assert torch.equal(torch.cat([first, rest]), whole)
    assert torch.equal(batched.reshape(40, 128), whole)


def test_more_bits_do_less_harm_and_hooks_go_even_after_an_error(make_model, windows):
    model = make_model("llama")
    before, harm, rates = logits(model, windows), [], []
    for text in ("shell:16,19,1", "shell:16,76,3", "shell:16,347,4"):
        with coded_activations(model, activation_quantizer(text)) as tally:
            harm.append(float((logits(model, windows) - before).square().sum()))
        rates.append(tally.rates())
    assert harm == sorted(harm, reverse=True)
    assert [r.payload for r in rates] == [2.0, 3.0, 4.0]
    assert all(r.all_in > r.payload for r in rates)
    assert rates[0].error > rates[1].error > rates[2].error > 0
    with pytest.raises(RuntimeError, match="stop"), coded_activations(model, Exact()):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, windows), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_rotation_saves_tokens_with_outliers():
    x = np.random.default_rng(0).standard_normal((50, 128)).astype(np.float32)
    x[:, 5] = 40
    errors = []
    for rotate in (True, False):
        quantizer = activation_quantizer("shell:16,76,3", rotate)
        errors.append(mcq.Identity().relative_error(x, quantizer.decode(quantizer.encode(x))))
    assert errors[0] < 0.1 * errors[1]


def test_precision_of_the_model_stays(make_model, windows):
    model = make_model("llama").bfloat16()
    with coded_activations(model, activation_quantizer("shell:8,12,1")):
        assert logits(model, windows).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("additive:2,8,8", "codes of activations must be one of"),
        ("shell", "must be written as shell:16,23,3"),
        ("pyramid:16,x,3", r"\(entries a group, pulses, bits of a gain\), got 'pyramid:16,x,3'"),
        ("shell:16,76", "squared_norm, bits of a gain"),
        ("pyramid:16,4000,3", "pulses must be at most"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(mcq.ConfigError, match=message):
        activation_quantizer(text)


def test_rates_of_weights_and_activations_are_reported_apart(folders, text, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    (tmp_path / "text.txt").write_text(text)
    out, found = tmp_path / "out", tmp_path / "eval.json"
    run(
        "quantize",
        folders["llama"],
        "--out",
        out,
        "--calibration",
        tmp_path / "text.txt",
        "--tokens",
        128,
        "--window",
        32,
    )
    common = ["eval", out, "--text", tmp_path / "text.txt", "--windows", 2, "--window", 32]
    assert "activations" not in run(*common)
    said = run(*common, "--activations", "shell:16,76,3", "--reference", folders["llama"], "--json", found)
    assert "shell (16, 76, 3), rotated" in said
    assert "2 bits per weight" in said
    rates = json.loads(found.read_text())["rates"]
    assert (rates["payload"], rates["weights_payload"], rates["layers"]) == (3.0, 2.0, 14)
    assert "rotated" not in run(*common, "--activations", "shell:16,76,3", "--no-rotate-activations")
