"""The layer that closes a block makes up for the drift of the block's output."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

import mcq_llm
from mcq_llm.blocks import find_blocks, get_weight, set_weight
from mcq_llm.calibrate import Stream
from mcq_llm.closing import closing_drift
from mcq_llm.drift import corrected_weight
from mcq_llm.run import run

LAST = {"llama": "mlp.down_proj", "qwen2": "mlp.down_proj", "gpt2": "mlp.c_proj", "gemma2": "mlp.down_proj"}
SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture
def parts(make_model, windows):
    """Return passes of a block with noise in all its layers but the last, that layer, and what the block returned."""

    def make(kind, last=None):
        model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES)).eval() if kind == "gemma2" else make_model(kind)
        blocks = find_blocks(model)
        block = blocks.modules[0]
        stream = Stream(model, blocks, windows, 2, torch.float32)
        calls = stream.calls(0, block)
        with torch.no_grad():
            targets = [call().clone() for call in calls]
        generator, layer = torch.Generator().manual_seed(0), block.get_submodule(last or LAST[kind])
        for other in blocks.layers(0).values():
            if other is not layer:
                weight = get_weight(other)
                set_weight(other, weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator))
        return calls, layer, targets

    return make


def error(calls, targets):
    with torch.no_grad():
        return float(sum((call() - target).square().sum() for call, target in zip(calls, targets, strict=True)))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_the_block_comes_as_near_to_its_output_as_the_layer_can_bring_it(parts, kind):
    calls, layer, targets = parts(kind)
    weight, received = get_weight(layer).clone(), []
    hook = layer.register_forward_pre_hook(lambda _, args: received.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad():
        outputs = [call() for call in calls]
    hook.remove()
    x = torch.cat(received).double().numpy()
    drift = closing_drift(calls, [layer], targets)
    wanted = torch.cat([(t - y).flatten(0, -2) for t, y in zip(targets, outputs, strict=True)]).double().numpy()
    np.testing.assert_allclose(drift, wanted.T @ x / len(x), rtol=1e-3, atol=1e-5)
    before = error(calls, targets)
    set_weight(layer, torch.from_numpy(corrected_weight(weight.numpy(), x.T @ x / len(x), drift, 1e-6, 1.0)))
    least = before - float(np.square(x @ np.linalg.lstsq(x, wanted, rcond=None)[0]).sum())
    assert least < 0.8 * before
    assert error(calls, targets) < 1.02 * least + 0.1 * before  # damping takes a little where rows are few


def test_a_layer_whose_output_is_not_added_as_it_is_does_not_close(parts):
    calls, layer, targets = parts("gemma2")  # has a norm behind it
    assert closing_drift(calls, [layer], targets) is None
    calls, layer, targets = parts("llama", "mlp.up_proj")
    assert closing_drift(calls, [layer], targets) is None
    calls, layer, targets = parts("llama", "self_attn.q_proj")
    assert closing_drift(calls, [layer], targets) is None
    assert closing_drift(calls, [layer, layer], targets) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("tune", ["none", "block"])
def test_runs_with_blocks_as_targets(folders, text, tmp_path, kind, tune):
    options = mcq_llm.Options(
        mcq_llm.AdditiveSetting(1, 4, 4), tokens=256, window=32, format="dense", target="block", tune=tune
    )
    run(folders[kind], text, options, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "quantize.jsonl").read_text().splitlines()]
    assert all(line["error_after"] < 0.5 for line in lines)
