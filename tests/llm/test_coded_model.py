import pytest
import torch

from mcq.errors import InputError
from mcq_llm.aqlm_format import AqlmLayer
from mcq_llm.blocks import find_blocks, get_weight, linear_layers, set_weight
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.coded_model import CodedModel, load_coded
from mcq_llm.config import Options
from mcq_llm.export import export
from mcq_llm.load import load_dense
from mcq_llm.storage import round_to_stored


def coded(model, setting=AdditiveSetting(2, 4, 8)):  # noqa: B008
    """Quantize all layers of a model in place, without calibration."""
    round_to_stored(model)
    blocks, stored = find_blocks(model), {}
    for index, block in enumerate(blocks.modules):
        for name, layer in linear_layers(block, f"{blocks.name}.{index}.").items():
            encoder = setting.quantizer()
            codes = encoder.fit_encode(get_weight(layer).numpy().copy(order="C"), seed=0)
            stored[name] = AqlmLayer.of(setting, encoder, codes)
            set_weight(layer, stored[name].weight())
    return stored


def same_layers(a, b):
    return a.keys() == b.keys() and all(
        (a[name].setting, a[name].inputs) == (b[name].setting, b[name].inputs)
        and (a[name].codes == b[name].codes).all()
        and (a[name].codebooks == b[name].codebooks).all()
        and (a[name].scales == b[name].scales).all()
        for name in a
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "setting", [AdditiveSetting(2, 5, 8), AdditiveSetting(1, 9, 8), AdditiveSetting(2, 3, 16)], ids=str
)
def test_a_folder_comes_back_as_it_was_written(make_model, tokenizer, windows, tmp_path, kind, setting):
    model = make_model(kind)
    stored, options = coded(model, setting), Options(setting)
    export(model, tokenizer, stored, tmp_path / "a", options, "a")
    loaded, _, found = load_coded(tmp_path / "a")
    assert same_layers(found, stored)
    again = CodedModel(loaded, found, torch.bfloat16).finish()
    assert same_layers(again, stored)
    export(loaded, tokenizer, again, tmp_path / "b", options, "b")
    with torch.inference_mode():
        assert torch.equal(load_dense(tmp_path / "b")[0](windows).logits, model(windows).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_are_those_of_layers_that_decode_on_every_call(make_model, windows, kind):
    model = make_model(kind)
    stored = coded(model)
    student = CodedModel(model, stored, torch.float32)
    for part in windows.split(2):
        model(part, labels=part).loss.backward()
    student.push_gradients()
    name, layer = next(iter(student.layers.items()))
    weights = {f"{name}.weight": layer.weight().T if kind == "gpt2" else layer.weight()}
    loss = sum(torch.func.functional_call(model, weights, (part,), {"labels": part}).loss for part in windows.split(2))
    for found, expected in zip(
        (layer.codebooks.grad, layer.scales.grad),
        torch.autograd.grad(loss, (layer.codebooks, layer.scales)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert all(model.get_submodule(layer).weight.grad is None for layer in stored)


def test_decode_follows_the_codebooks(make_model):
    model = make_model("llama")
    stored = coded(model)
    student = CodedModel(model, stored, torch.float32)
    name, layer = next(iter(student.layers.items()))
    before = model.get_submodule(name).weight.detach().clone()
    with torch.no_grad():
        layer.codebooks *= 2
    student.decode()
    torch.testing.assert_close(model.get_submodule(name).weight.detach(), 2 * before)


def test_only_coded_weights_require_gradients(make_model):
    model = make_model("llama")
    stored = coded(model)
    student = CodedModel(model, stored, torch.float32)
    assert {name.removesuffix(".weight") for name, p in model.named_parameters() if p.requires_grad} == set(stored)
    student.finish()
    assert not any(p.requires_grad for p in model.parameters())


def test_a_folder_without_codes_is_refused(folders):
    with pytest.raises(InputError, match="must hold AQLM layers"):
        load_coded(folders["llama"])
