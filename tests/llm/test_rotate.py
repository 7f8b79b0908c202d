import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config
from typer.testing import CliRunner

from mcq.errors import InputError
from mcq_llm.cli import app
from mcq_llm.load import load
from mcq_llm.rotate import rotate, rotate_checkpoint

SIZES = {
    "vocab_size": 256,
    "hidden_size": 96,  # no power of two
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(config):
    """A model whose norms, biases and outliers a wrong rotation would not survive."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2)
            elif name.endswith("bias"):
                parameter.normal_()
            else:
                parameter[0] *= 20
    return model


CONFIGS = [
    LlamaConfig(**SIZES, tie_word_embeddings=True),
    LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16),
    Qwen2Config(**SIZES),
]


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize("config", CONFIGS)
def test_predictions_stay_and_weights_become_normal(config):
    model, ids = build(config), torch.randint(256, (2, 24), generator=torch.manual_seed(1))
    before = logits(model, ids)
    weight = model.model.layers[1].self_attn.q_proj.weight.detach().clone()
    rotate(model, seed=3)
    after = logits(model, ids)
    assert (after - before).abs().max() < 1e-3 * before.std()
    rotated = model.model.layers[1].self_attn.q_proj.weight
    assert (rotated - weight).abs().max() > 0.1 * weight.abs().max()
    written = model.model.layers[1].mlp.down_proj.weight  # one output was 20 times as large as the others
    shares = written.square().sum(1) / written.square().sum()
    assert shares.max() < 0.15


def test_the_seed_decides():
    weights = []
    for seed in (0, 0, 1):
        model = build(CONFIGS[0])
        rotate(model, seed)
        weights.append(model.model.layers[0].self_attn.v_proj.weight.detach().numpy())
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.allclose(weights[0], weights[2])


def test_a_checkpoint_is_an_ordinary_one(tmp_path, tokenizer):
    model = build(CONFIGS[0])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(
        app, ["rotate", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    ids = torch.arange(24)[None]
    before, after = logits(model, ids), logits(load(tmp_path / "out")[0], ids)
    assert (after - before).norm() < 0.01 * before.norm()  # float16
    stock = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), ids)
    torch.testing.assert_close(stock, after)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_architectures_are_refused(folders, tmp_path, kind):
    with pytest.raises(InputError, match=r"must have blocks with the norms input_layernorm, post_attention_layernorm"):
        rotate_checkpoint(folders[kind], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_would_compute_something_else_is_refused():
    class Scaled(torch.nn.Linear):
        """Entries of its input do not count alike: such a thing does not turn with its input."""

        def forward(self, x):
            return super().forward(x.clamp(-0.1, 0.1))

    model = build(CONFIGS[0])
    layer = model.model.layers[0].mlp.gate_proj
    model.model.layers[0].mlp.gate_proj = Scaled(layer.in_features, layer.out_features, bias=False)
    with pytest.raises(InputError, match=r"cannot be rotated: .* logits would change by"):
        rotate(model)
    with pytest.raises(InputError, match="must have blocks with"):
        rotate(build(Gemma2Config(**SIZES, head_dim=16)))
