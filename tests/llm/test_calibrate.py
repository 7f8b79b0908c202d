import numpy as np
import pytest
import torch

from mcq.errors import InputError
from mcq_llm.blocks import find_blocks
from mcq_llm.calibrate import Stream, calibrated_stages


def inputs_of_layers(model, names, windows):
    """Run the model and return the rows that each layer receives."""
    seen = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2))
        )
        for name in names
    ]
    with torch.inference_mode():
        for ids in windows:
            model(ids[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows).double().numpy() for name, rows in seen.items()}


def walk(model, windows, batch=4, change=lambda name, layers: None, original=False, dtype=torch.float32, spill=None):
    """Calibrate all layers; return their statistics by name, in order of execution."""
    blocks = find_blocks(model)
    stream = Stream(model, blocks, windows, batch, dtype, spill)
    reference = stream.copy() if original else None
    collected = {}
    for index, block in enumerate(blocks.modules):
        working = stream.working_copy(block)
        layers = blocks.layers(index, working)
        originals = reference.record(index, working, layers) if reference else None
        for stage in calibrated_stages(stream.calls(index, working), layers, originals):
            collected |= stage
            for name in stage:
                change(name, [blocks.layers(index)[name], layers[name]][: 1 if working is block else 2])
        stream.advance(index, working)
    return collected


def shrink(name, layers):
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(0.9)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral"])
@pytest.mark.parametrize("batch", [1, 4])
def test_gram_is_that_of_the_inputs_which_the_changed_layers_before_produce(make_model, windows, kind, batch):
    model = make_model(kind)
    collected = walk(model, windows, batch, shrink)
    # Every layer comes after all that it depends on, so the finished model shows each the same inputs.
    for name, x in inputs_of_layers(model, collected, windows).items():
        np.testing.assert_allclose(collected[name].gram, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_layers_with_the_same_input_share_statistics(make_model, windows):
    collected = walk(make_model("llama"), windows)
    groups = {}
    for name, statistics in collected.items():
        groups.setdefault(id(statistics), []).append(name.split(".", 2)[2])
    expected = [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"],
    ]  # fmt: skip
    assert [[n.rsplit(".", 1)[1] for n in group] for group in groups.values()] == expected * 2


def test_cross_statistics_pair_the_original_inputs_with_the_drifted_ones(make_model, windows):
    model = make_model("llama")
    collected = walk(model, windows, change=shrink, original=True)
    drifted = inputs_of_layers(model, collected, windows)
    for name, x in inputs_of_layers(make_model("llama"), collected, windows).items():
        exact = x.T @ drifted[name] / len(x)
        # the original inputs are kept in bfloat16: eight bits, averaged over the rows
        assert np.linalg.norm(collected[name].cross - exact) < 2e-3 * np.linalg.norm(exact)


def test_bfloat16_changes_the_statistics_little_and_the_model_not_at_all(make_model, windows):
    model = make_model("llama")
    exact = walk(make_model("llama"), windows)
    for name, statistics in walk(model, windows, dtype=torch.bfloat16).items():
        difference = np.linalg.norm(statistics.gram - exact[name].gram) / np.linalg.norm(exact[name].gram)
        assert difference < 0.02
    assert model.dtype == torch.float32


def test_the_model_is_as_before_when_nothing_is_changed(make_model, windows):
    model, untouched = make_model("gpt2"), make_model("gpt2")
    walk(model, windows)
    with torch.inference_mode():
        assert torch.equal(model(windows).logits, untouched(windows).logits)


def test_activations_that_are_not_finite_are_refused(make_model, windows):
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[windows[0, 0]] = torch.nan
    with pytest.raises(InputError, match=r"activations that reach model.layers.0.self_attn.q_proj must be finite"):
        walk(model, windows)


class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, hidden_states, **_):
        return self.layer(self.layer(hidden_states))


def test_a_layer_that_computes_twice_is_fitted_once(make_model, windows):
    model = make_model("llama")
    model.model.layers = torch.nn.ModuleList(Twice() for _ in range(2))
    names = []
    walk(model, windows, change=lambda name, layers: names.append(name))
    assert names == ["model.layers.0.layer", "model.layers.1.layer"]


def test_activations_on_the_disk_give_the_same_statistics(make_model, windows, tmp_path):
    in_memory = walk(make_model("llama"), windows, original=True)
    for name, statistics in walk(make_model("llama"), windows, original=True, spill=tmp_path).items():
        np.testing.assert_array_equal(statistics.gram, in_memory[name].gram)
        np.testing.assert_array_equal(statistics.cross, in_memory[name].cross)
    assert not list(tmp_path.iterdir())  # the files have no names
