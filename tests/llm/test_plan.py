import numpy as np
import pytest
import torch

import mcq
from mcq.errors import ConfigError, InputError
from mcq_llm.blocks import find_blocks, get_weight
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.config import Options
from mcq_llm.overrides import Override
from mcq_llm.plan import make_plan, mean_bits, plan_table, predict_seconds, require_aqlm


def plan_of(model, setting=AdditiveSetting(), overrides=(), file_format="aqlm"):  # noqa: B008  (frozen)
    blocks = find_blocks(model)
    options = Options(setting, tuple(Override.parse(text) for text in overrides), format=file_format)
    return make_plan(blocks, options), blocks


@pytest.mark.parametrize(
    "setting",
    [
        AdditiveSetting(),
        AdditiveSetting(1, 5, 16, "group"),
        AdditiveSetting(3, 4, 12, "none"),
        AdditiveSetting(1, 10, 8),
    ],
)
def test_planned_bits_are_those_of_the_finished_codes(make_model, setting):
    model = make_model("llama")
    plan, _ = plan_of(model, setting, file_format="mcq")
    weight = get_weight(model.get_submodule(plan[0].name)).numpy()
    encoder = setting.quantizer()
    bits = encoder.bits(encoder.fit_encode(weight, metric=mcq.Gram(np.eye(64)), seed=0))
    assert plan[0].payload == pytest.approx(bits.payload)
    assert plan[0].all_in == pytest.approx(bits.all_in)


def test_an_aqlm_checkpoint_stores_codes_in_whole_bytes(make_model):
    (packed, _), (whole, _) = (
        plan_of(make_model("llama"), AdditiveSetting(1, 10, 8), file_format=name) for name in ("mcq", "aqlm")
    )
    assert whole[0].payload == packed[0].payload
    gain = 32 / whole[0].entries  # one float32 of the quantizer, which AQLM layers have in their scales
    assert whole[0].all_in - packed[0].all_in == pytest.approx(6 / 8 - gain)


def test_table_lists_every_layer_and_the_mean(make_model):
    plan, _ = plan_of(make_model("llama"), overrides=["down_proj=dense"])
    seconds = predict_seconds(plan, rows=32, columns=32)
    table = plan_table(plan, seconds).splitlines()
    assert len(table) == 1 + 14 + 1
    assert seconds[plan[0].name] > 0
    assert "model.layers.0.mlp.down_proj" not in seconds
    assert f"{mean_bits(plan)[1]:.3f}" in table[-1]


def test_an_override_that_matches_nothing_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"'downproj' matches no layer; names look like 'model.layers.0"):
        plan_of(make_model("llama"), overrides=["downproj=dense"])


def test_a_plan_without_work_is_refused(make_model):
    with pytest.raises(ConfigError, match="nothing would be quantized"):
        plan_of(make_model("llama"), overrides=[".=dense"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(make_model, value):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(InputError, match=r"layers.1.mlp.up_proj must be finite, but 1 are NaN"):
        plan_of(model)


@pytest.mark.parametrize(
    ("kind", "setting", "overrides", "reason"),
    [
        (
            "llama",
            AdditiveSetting(),
            ["down_proj=codebooks:3"],
            "one setting for the whole model, got 2x8 g8, 3x8 g8",
        ),
        ("llama", AdditiveSetting(scale="group"), [], "one scale per row"),
        ("llama", AdditiveSetting(group=24), [], "64 inputs, which groups of 24 do not divide"),
        ("gpt2", AdditiveSetting(), [], "c_attn is a Conv1D"),
        ("mixtral", AdditiveSetting(), [], "all experts in one tensor"),
    ],
)
def test_what_aqlm_cannot_express_is_refused_with_the_reason(make_model, kind, setting, overrides, reason):
    with pytest.raises(ConfigError, match=f"{reason}.*--dense"):
        require_aqlm(*plan_of(make_model(kind), setting, overrides))


def test_dense_layers_beside_one_setting_are_fine(make_model):
    assert require_aqlm(*plan_of(make_model("llama"), overrides=["down_proj=dense"])) == []


def test_warns_of_what_only_some_loaders_run(make_model):
    warnings = require_aqlm(*plan_of(make_model("llama"), AdditiveSetting(1, 10, 16)))
    assert "inputs divisible by 128, 12 layers" in warnings[0]
    assert "codes of 10 bits" in warnings[1]
