"""Models that compute on a GPU come out as on the processor; without a GPU only the refusal can be tested."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import mcq_llm
from mcq.errors import ConfigError
from mcq_llm.config import SHARED, Budget
from mcq_llm.device import moved, own_device, resolve_device
from mcq_llm.prepare import prepare
from mcq_llm.tune import TuneOptions

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def test_device_is_resolved() -> None:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == found
    assert own_device("auto").type == found
    assert own_device("cpu") == torch.device("cpu")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="device must be one of"):
        mcq_llm.Options(device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_an_absent_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        resolve_device("cuda")


@gpu
def test_a_module_moves_and_comes_back() -> None:
    layer = torch.nn.Linear(3, 2)
    with moved(layer, torch.device("cuda", 0)):
        assert layer.weight.is_cuda
    assert not layer.weight.is_cuda


@gpu
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("tune", ["none", "block"])
def test_a_gpu_finds_what_the_processor_finds(folders, text, tmp_path, kind, tune) -> None:
    options = mcq_llm.Options(
        mcq_llm.AdditiveSetting(1, 4, 4), tokens=256, window=32, precision="float32", tune=tune,
        tuning=TuneOptions(epochs=1), format="dense",
    )  # fmt: skip
    errors = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        mcq_llm.run(folders[kind], text, replace(options, device=device), out)
        lines = [json.loads(line) for line in (out / "quantize.jsonl").read_text().splitlines()]
        errors.append(np.array([line["error_after"] for line in lines]))
    ratios = errors[1] / errors[0]
    assert np.exp(np.log(ratios).mean()) == pytest.approx(1, abs=0.1)
    assert np.abs(np.log(ratios)).max() < 0.5  # a code that differs changes all that follow


@gpu
@pytest.mark.parametrize("sensitivity", ["noise", "fisher", "gradient", "measured", "attributed", "walked"])
def test_a_gpu_measures_what_the_processor_measures(folders, text, tmp_path, sensitivity) -> None:
    found = []
    for device in ("cpu", "cuda"):
        options = mcq_llm.Options(
            mcq_llm.AdditiveSetting(1, 4, 4), tokens=256, window=32, precision="float32", device=device, format="mcq",
            budget=Budget(bits=3.0, sensitivity=sensitivity),
        )  # fmt: skip
        prepared = prepare(folders["llama"], text, options, cache=tmp_path / device)
        assert prepared.model.device.type == "cpu"
        shared = sensitivity in SHARED
        (path,) = (tmp_path / device).glob(f"{'shares' if shared else 'sensitivity'}-{sensitivity}*.jsonl")
        _, *lines = path.read_text().splitlines()
        measured = {name: value for line in lines for name, value in json.loads(line).items()}
        factors = {name: sum(value["rows"]) / value["error"] if shared else value for name, value in measured.items()}
        found.append([max(factors[name], 1e-5) for name in sorted(factors)])  # less is not resolved in float32
    assert np.corrcoef(np.log(found))[0, 1] > 0.99  # they span orders of magnitude


@gpu
@pytest.mark.parametrize("tokens", [1, 40])  # kernels differ
def test_a_checkpoint_computes_on_a_gpu(folders, text, tmp_path, tokens) -> None:
    options = mcq_llm.Options(mcq_llm.AdditiveSetting(2, 8, 8), tokens=256, window=32, precision="float32")
    mcq_llm.run(folders["llama"], text, options, tmp_path / "out")
    ids = torch.arange(tokens)[None] % 256
    with torch.no_grad():
        expected = mcq_llm.load_dense(tmp_path / "out")[0](ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float16).cuda()(ids.cuda()).logits
    torch.testing.assert_close(found.cpu().float(), expected.float(), atol=0.02 * float(expected.std()), rtol=0.02)
