import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from mcq_llm.aqlm_format import densify
from mcq_llm.blocks import find_blocks
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.config import Options
from mcq_llm.load import load, load_dense
from mcq_llm.overrides import Override
from mcq_llm.plan import make_plan
from mcq_llm.prepared import Prepared
from mcq_llm.run import write


def quantized(model, tokenizer, windows, folder, **options):
    """Quantize `model` in place and write it; return the report lines."""
    options, blocks = Options(**options), find_blocks(model)
    write(Prepared(model, tokenizer, blocks, make_plan(blocks, options), windows, options), folder, name="tiny")
    return [json.loads(line) for line in (folder / "quantize.jsonl").read_text().splitlines()]


SETTINGS = [
    AdditiveSetting(2, 8, 8),
    AdditiveSetting(1, 8, 8),
    AdditiveSetting(1, 10, 8),
    AdditiveSetting(2, 8, 8, "none"),
    AdditiveSetting(2, 3, 16),
]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_stock_transformers_computes_what_our_model_computes(make_model, tokenizer, windows, tmp_path, kind, setting):
    model = make_model(kind)
    quantized(model, tokenizer, windows, tmp_path, setting=setting)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded.get_submodule("model.layers.0.mlp.up_proj")).__name__ == "QuantizedLinear"
    with torch.inference_mode():
        # A single row and many rows take different kernels.
        for ids in (windows, windows[:1, :1]):
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_loaded_weights_are_exactly_ours(make_model, tokenizer, windows, tmp_path, kind):
    model = make_model(kind)
    quantized(model, tokenizer, windows, tmp_path, overrides=(Override.parse("layers.1.mlp=dense"),))
    loaded, _ = load_dense(tmp_path)
    expected = model.state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_dense_checkpoint_loads_exactly_for_every_architecture(make_model, tokenizer, windows, tmp_path, kind):
    model = make_model(kind)
    quantized(model, tokenizer, windows, tmp_path, setting=AdditiveSetting(2, 4, 12, "group"), format="dense")
    loaded, _ = load(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(windows).logits, model(windows).logits)


def test_config_lists_what_is_not_quantized_in_both_spellings(make_model, tokenizer, windows, tmp_path):
    quantized(make_model("llama"), tokenizer, windows, tmp_path, overrides=(Override.parse("0.mlp.down=dense"),))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "aqlm",
        "num_codebooks": 2,
        "nbits_per_codebook": 8,
        "in_group_size": 8,
        "out_group_size": 1,
        "linear_weights_not_to_quantize": [
            "model.layers.0.mlp.down_proj",
            "model.layers.0.mlp.down_proj.weight",
            "lm_head",
            "lm_head.weight",
        ],
    }
    assert config["dtype"] == "float16"


def test_a_loaded_checkpoint_can_be_saved_again(make_model, tokenizer, windows, tmp_path):
    model = make_model("llama")
    (tmp_path / "a").mkdir()
    quantized(model, tokenizer, windows, tmp_path / "a")
    AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32).save_pretrained(tmp_path / "b")
    again = densify(AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32))
    with torch.inference_mode():
        assert torch.equal(again(windows).logits, model(windows).logits)


def test_values_beyond_float16_stay_float32(make_model, tokenizer, windows, tmp_path):
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    quantized(model, tokenizer, windows, tmp_path)
    assert load(tmp_path)[0].lm_head.weight[0, 0].item() == 1e6


def test_reports_errors_time_and_bits_of_every_layer(make_model, tokenizer, windows, tmp_path):
    lines = quantized(make_model("llama"), tokenizer, windows, tmp_path)
    assert len(lines) == 14
    for fields in lines:
        assert fields["error_after"] < 1
        if fields["rows"] > 32:  # the narrower k and v have no more groups than a codebook has entries
            assert fields["error_after"] > 0
        assert fields["error_before"] > 0
        assert fields["seconds"] > 0
        assert fields["bits_all_in"] > fields["bits_payload"] == 2
        assert fields["peak_megabytes"] > 1


@pytest.mark.parametrize("target", ["quantized", "original"])
def test_same_seed_same_bytes(make_model, tokenizer, windows, tmp_path, target):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        quantized(make_model("llama"), tokenizer, windows, folder, target=target)
    for shard in folders[0].glob("*.safetensors*"):
        assert shard.read_bytes() == (folders[1] / shard.name).read_bytes()


def test_bfloat16_calibration_stores_what_the_model_computes(make_model, tokenizer, windows, tmp_path):
    model = make_model("llama")
    quantized(model, tokenizer, windows, tmp_path, precision="bfloat16", target="original")
    with torch.inference_mode():
        assert torch.equal(load_dense(tmp_path)[0](windows).logits, model(windows).logits)
