import pytest
import torch
from torch import nn

from mcq.errors import InputError
from mcq_llm.blocks import find_blocks, fused_experts, get_weight, set_weight


@pytest.mark.parametrize(
    ("kind", "name", "layers"),
    [("llama", "model.layers", 7), ("qwen2", "model.layers", 7), ("gpt2", "transformer.h", 4)],
)
def test_finds_blocks_and_their_layers(make_model, kind, name, layers):
    blocks = find_blocks(make_model(kind))
    assert blocks.name == name
    assert len(blocks.modules) == 2
    assert len(blocks.layers(1)) == layers
    assert all(layer.startswith(f"{name}.1.") for layer in blocks.layers(1))


def test_blocks_compute_where_the_model_is(make_model):
    assert find_blocks(make_model("llama").to("meta")).device.type == "meta"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(9))


def test_lists_inside_blocks_do_not_count():
    model = nn.Module()
    model.stack = nn.ModuleList(Block() for _ in range(3))
    assert find_blocks(model).name == "stack"


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]),
        nn.ModuleList([nn.ReLU()]),
        nn.ModuleList(),
    ],
)
def test_a_model_without_blocks_is_refused(model):
    with pytest.raises(InputError, match="has no list of equal blocks"):
        find_blocks(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_outputs_by_inputs_for_every_kind_of_layer(make_model, kind):
    layer = next(iter(find_blocks(make_model(kind)).layers(0).values()))
    x = torch.randn(5, 64)
    new = torch.randn_like(get_weight(layer))
    set_weight(layer, new)
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(layer(x), x @ new.T + bias)


def test_fused_experts_are_recognised_and_convolutions_are_not(make_model):
    assert fused_experts(find_blocks(make_model("mixtral")).modules[0])
    assert not fused_experts(nn.Sequential(nn.Conv1d(2, 2, 3), nn.Linear(2, 2)))
