import numpy as np
import pytest
import torch

from mcq_llm.aqlm_format import AqlmLayer, decode
from mcq_llm.codecs import AdditiveSetting
from mcq_llm.coded_linear import CodedLinear


def make_stored(setting, outputs=12, inputs=24, seed=0):
    rng = np.random.default_rng(seed)
    groups, entries = setting.groups(inputs), 2**setting.bits
    codes = rng.integers(entries, size=(outputs, groups, setting.codebooks)).astype(np.uint16)
    codebooks = rng.standard_normal((setting.codebooks, entries, setting.group)).astype(np.float16)
    scales = rng.uniform(0.5, 2, (outputs, max(1, setting.scales(inputs)))).astype(np.float16)
    return AqlmLayer(setting, inputs, codes, codebooks, scales)


SETTINGS = {
    "two codebooks": AdditiveSetting(codebooks=2, bits=3, group=8),
    "one codebook": AdditiveSetting(codebooks=1, bits=8, group=4),  # most entries unused
    "three codebooks, scale per group": AdditiveSetting(codebooks=3, bits=4, group=8, scale="group"),
    "width not divisible": AdditiveSetting(codebooks=2, bits=3, group=7),
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS.keys())
def stored(request):
    return make_stored(request.param)


def test_computes_with_the_stored_weight(stored):
    bias = torch.randn(12)
    x = torch.randn(2, 5, 24)
    layer = CodedLinear(stored, bias)
    torch.testing.assert_close(layer(x), x @ stored.weight().T + bias)
    torch.testing.assert_close(layer.weight(), stored.weight(), rtol=0, atol=0)


def test_returns_what_it_was_made_of(stored):
    again = CodedLinear(stored).stored()
    assert (again.setting, again.inputs) == (stored.setting, stored.inputs)
    for name in ("codes", "codebooks", "scales"):
        np.testing.assert_array_equal(getattr(again, name), getattr(stored, name), strict=True)


def test_gradients_are_those_of_the_plain_decode(stored):
    layer = CodedLinear(stored)
    direction = torch.randn(12, 24)
    found = torch.autograd.grad((layer.weight() * direction).sum(), [layer.codebooks, layer.scales])
    plain = decode(layer.codes, layer.codebooks, layer.scales)[:, :24]
    expected = torch.autograd.grad((plain * direction).sum(), [layer.codebooks, layer.scales])
    for gradient, right in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5)


def test_one_gradient_alone(stored):
    layer = CodedLinear(stored)
    layer.codebooks.requires_grad_(False)
    layer.weight().sum().backward()
    assert layer.codebooks.grad is None
    assert layer.scales.grad is not None


def test_follows_the_precision_of_its_input(stored):
    layer = CodedLinear(stored, torch.zeros(12))
    assert layer(torch.randn(3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 24)).sum().backward()
    assert layer.codebooks.grad.dtype == torch.float32


def test_state_holds_codes_and_parameters_only(stored):
    assert CodedLinear(stored).state_dict().keys() == {"codes", "codebooks", "scales"}
