"""Layers coded on trial, which an interrupted measurement need not code again."""

from dataclasses import replace

import numpy as np
import pytest

import mcq
import mcq_llm
from mcq.errors import InputError
from mcq_llm import drafts, sensitivity
from mcq_llm.bands import BandedSetting
from mcq_llm.codecs import CODECS
from mcq_llm.config import Budget
from mcq_llm.drafts import Drafts
from mcq_llm.plan import planned
from mcq_llm.prepare import prepare

SETTINGS = {name: kind() for name, kind in CODECS.items() if name != "lattice"}
SETTINGS["additive"] = mcq_llm.AdditiveSetting(2, 4)
SETTINGS["residual"] = CODECS["residual"](2, 4)
SETTINGS["rotated"] = CODECS["shell"](2.5, rotate=True)
SETTINGS["banded"] = BandedSetting(parts=(CODECS["shell"](2.0), CODECS["shell"](3.0)))
OPTIONS = mcq_llm.Options(
    CODECS["grid"](), tokens=256, window=32, format="mcq", budget=Budget(bits=5.0, sensitivity="walked")
)


@pytest.fixture
def unable(monkeypatch):
    """Let nothing be fitted any more."""
    return lambda: monkeypatch.setattr(drafts, "fit", None)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_draft_stands_for_what_was_fitted(tmp_path, unable, name):
    rng = np.random.default_rng(0)
    weight, inputs = rng.standard_normal((32, 64), np.float32), rng.standard_normal((200, 64))
    layer, metric = planned("model.layer", 32, 64, SETTINGS[name], OPTIONS), mcq.Gram(inputs.T @ inputs)
    found = Drafts(tmp_path, {"text": "this"}).coded(layer, weight, metric, 0)
    unkept = Drafts(None, {}).coded(layer, weight, metric, 0)
    unable()
    again = Drafts(tmp_path, {"text": "this"}).coded(layer, weight, metric, 0)
    np.testing.assert_array_equal(found, unkept)
    np.testing.assert_array_equal(found, again)
    with pytest.raises(TypeError):  # that of another text is none
        Drafts(tmp_path, {"text": "that"}).coded(layer, weight, metric, 0)


@pytest.mark.parametrize("provider", ["walked", "attributed"])
def test_an_interrupted_look_codes_no_layer_twice(folders, text, tmp_path, monkeypatch, stop_at, provider):
    options = replace(OPTIONS, budget=Budget(bits=5.0, sensitivity=provider))
    whole = prepare(folders["llama"], text, options, cache=tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = stop_at(patch, drafts, "fit", 10)
        with pytest.raises(KeyboardInterrupt):
            prepare(folders["llama"], text, options, cache=tmp_path / "cut")
        assert len(list((tmp_path / "cut").glob("drafts-*/*.safetensors"))) == 9
        again = prepare(folders["llama"], text, options, cache=tmp_path / "cut")
    fitted = [layer.name for layer, *_ in calls]
    assert len(fitted) == len(set(fitted)) + 1  # the one that was interrupted
    assert again.plan == whole.plan
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "cut").glob("drafts-*"))


def test_a_damaged_draft_is_named(folders, text, tmp_path, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        stop_at(patch, sensitivity, "attributed", 1)
        with pytest.raises(KeyboardInterrupt):
            prepare(folders["llama"], text, OPTIONS, cache=tmp_path)
    draft = next(tmp_path.glob("drafts-*/*.safetensors"))
    draft.write_bytes(draft.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{draft.name} is damaged .*remove it, and it will be made anew"):
        prepare(folders["llama"], text, OPTIONS, cache=tmp_path)
    draft.unlink()
    prepare(folders["llama"], text, OPTIONS, cache=tmp_path)
