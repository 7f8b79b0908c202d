"""Shares of layers in the divergence of a coded model."""

import pytest
import torch

from mcq_llm.attribution import attributed, smoothed
from mcq_llm.blocks import find_blocks, get_weight


@pytest.fixture
def parts(make_model, windows):
    """Return a model, its layers, and their weights with noise."""

    def make(kind="llama", scale=0.02, names=lambda name: True):
        model = make_model(kind)
        blocks = find_blocks(model)
        layers = {name: layer for index in range(2) for name, layer in blocks.layers(index).items() if names(name)}
        generator = torch.Generator().manual_seed(0)
        coded = {}
        for name, layer in layers.items():
            weight = get_weight(layer)
            coded[name] = weight + scale * torch.randn(weight.shape, generator=generator)
        return model, layers, coded

    return make


def divergence(model, layers, coded, windows):
    with torch.no_grad():
        before = model(windows).logits.log_softmax(-1)
        for name, layer in layers.items():
            get_weight(layer).copy_(coded[name])
        after = model(windows).logits.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_shares_add_up_to_the_divergence(parts, windows, kind, scale):
    model, layers, coded = parts(kind, scale)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    shares = attributed(model, layers, coded, windows)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert {name: len(rows) for name, rows in shares.items()} == {n: len(weight) for n, weight in coded.items()}
    assert sum(rows.sum() for rows in shares.values()) == pytest.approx(
        divergence(model, layers, coded, windows), rel=0.01
    )


def test_a_layer_without_error_has_no_share(parts, windows):
    model, layers, coded = parts()
    first, *_ = layers
    coded[first] = get_weight(layers[first]).clone()
    shares = attributed(model, layers, coded, windows)
    assert (shares[first] == 0).all()
    assert all(rows.any() for name, rows in shares.items() if name != first)


def test_outputs_without_error_have_no_share(parts, windows):
    model, layers, coded = parts("gpt2")
    for name, layer in layers.items():
        coded[name][1:] = get_weight(layer)[1:]
    for rows in attributed(model, layers, coded, windows).values():
        assert rows[0] != 0
        assert not rows[1:].any()


def test_layers_that_undo_each_other_share_nothing(parts, windows):
    # Each alone would count; together the one takes back what the other does. v and o are linear in between.
    model, layers, coded = parts("llama", names=lambda name: "0.self_attn.v" in name or "0.self_attn.o" in name)
    (v, value), (o, output) = layers.items()
    coded = {v: 2 * get_weight(value), o: get_weight(output) / 2}
    shares = attributed(model, layers, coded, windows)
    alone = {v: coded[v], o: get_weight(output).clone()}
    assert abs(sum(rows.sum() for rows in shares.values())) < 0.05 * divergence(model, layers, alone, windows)


def test_shares_are_averaged_with_those_of_neighbours(make_model):
    blocks = find_blocks(make_model("llama"))
    shares = {"model.layers.0.a": 1.0, "model.layers.1.a": 5.0, "model.layers.2.a": -2.0, "model.layers.1.b": 7.0}
    expected = {
        "model.layers.0.a": 7 / 3,
        "model.layers.1.a": 9 / 4,
        "model.layers.2.a": 1 / 3,
        "model.layers.1.b": 7.0,
    }
    assert smoothed(shares, blocks) == pytest.approx(expected)
