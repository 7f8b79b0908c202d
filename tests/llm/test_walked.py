"""A run that leaves the model as it is, and the errors of its own that each layer makes in it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mcq_llm
from mcq_llm.attribution import attributed
from mcq_llm.blocks import get_weight
from mcq_llm.drafts import Drafts
from mcq_llm.load import load
from mcq_llm.prepare import prepare
from mcq_llm.run import write
from mcq_llm.storage import round_to_stored
from mcq_llm.walked import walked

OPTIONS = mcq_llm.Options(
    mcq_llm.AdditiveSetting(1, 4, 4), tokens=256, window=32, format="mcq", precision="float32", device="cpu"
)
NOWHERE = Drafts(None, {})


@pytest.mark.parametrize("target", ["original", "block", "quantized"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_ends_where_a_run_ends(folders, text, tmp_path, kind, target):
    options = replace(OPTIONS, target=target)
    prepared = prepare(folders[kind], text, options)
    round_to_stored(prepared.model)  # a run computes with the weights that it writes
    before = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    found = {layer.name: layer for layer in walked(prepared, NOWHERE)}
    for name, tensor in prepared.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    (tmp_path / "out").mkdir()
    write(prepared, tmp_path / "out", "out")
    for name, layer in found.items():
        torch.testing.assert_close(layer.weight, get_weight(prepared.model.get_submodule(name)), atol=1e-3, rtol=1e-2)


def test_errors_and_corrections_make_up_the_difference(folders, text):
    prepared = prepare(folders["llama"], text, OPTIONS)
    modules = dict(load(folders["llama"])[0].named_modules())
    first, *_, last = list(walked(prepared, NOWHERE))
    difference = first.weight - get_weight(modules[first.name])
    torch.testing.assert_close(first.error, difference, atol=1e-3, rtol=0)  # nothing has drifted yet
    difference = last.weight - get_weight(modules[last.name])
    assert (difference - last.error).norm() > 0.01 * difference.norm()


def test_shares_of_parts_add_up(folders, text, windows):
    prepared = prepare(folders["llama"], text, OPTIONS)
    model = load(folders["llama"])[0]
    modules = dict(model.named_modules())
    run = list(walked(prepared, NOWHERE))
    coded = {layer.name: layer.weight for layer in run}
    errors = {layer.name: layer.error for layer in run}
    rest = {layer.name: layer.weight - get_weight(modules[layer.name]) - layer.error for layer in run}
    whole, own, corrections = (attributed(model, modules, coded, windows, part) for part in (None, errors, rest))
    for name, share in whole.items():
        np.testing.assert_allclose(share, own[name] + corrections[name], atol=1e-6)
