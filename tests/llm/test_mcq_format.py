"""Checkpoints in mcq's own format: any codec, mixed settings, and files that are not what they should be."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mcq_llm
from mcq.errors import ConfigError, FormatError, InputError
from mcq_llm.blocks import find_blocks
from mcq_llm.codecs import CODECS
from mcq_llm.html_report import write_report
from mcq_llm.load import load, load_dense, load_streamed
from mcq_llm.mcq_format import MARK
from mcq_llm.overrides import Override
from mcq_llm.plan import make_plan
from mcq_llm.run import run
from mcq_llm.summary import summarize

OPTIONS = mcq_llm.Options(tokens=128, window=32, format="mcq", setting=mcq_llm.ResidualSetting(2, 4))
MIXED = (
    Override.parse("down_proj=codebooks:3,group:4"),
    Override.parse("q_proj=codec:additive,bits:3,scale:group"),
    Override.parse("layers.1.mlp.up=dense"),
)
#: "lattice" stands for others.
STORED = [codec for codec in CODECS if codec != "lattice"]


def small(codec):
    """A setting for layers of 64 inputs."""
    return CODECS[codec].of_bits(4) if codec not in ("additive", "residual") else CODECS[codec](2, 4)


def options_of(codec, **changes):
    return mcq_llm.Options(**{"tokens": 128, "window": 32, "format": "mcq", "setting": small(codec)} | changes)


def bytes_of(folder):
    timed = ("quantize.jsonl", "tuning.jsonl", "report.json", "report.html", "README.md")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in timed}


@pytest.fixture(scope="module")
def written(folders, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("mcq") / "tiny"
    run(folders["llama"], text, mcq_llm.Options(tokens=128, window=32, format="mcq", overrides=MIXED), out)
    return out


@pytest.fixture
def copy(written, tmp_path):
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("codec", STORED)
def test_the_loaded_model_computes_what_ours_computes(folders, text, tmp_path, windows, codec, kind):
    from mcq_llm.prepare import prepare
    from mcq_llm.run import write

    prepared = prepare(folders[kind], text, options_of(codec))
    write(prepared, tmp_path, "tiny")
    loaded, _ = load(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(windows).logits, prepared.model(windows).logits)
        assert not torch.equal(loaded(windows).logits, load(folders[kind])[0](windows).logits)


@pytest.mark.parametrize("codec", STORED)
def test_dense_checkpoints_take_every_codec(folders, text, tmp_path, codec):
    run(folders["llama"], text, options_of(codec), tmp_path / "codes")
    run(folders["llama"], text, options_of(codec, format="dense"), tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    first = [load(tmp_path / name)[0].model.layers[0].self_attn.q_proj.weight for name in ("codes", "dense")]
    assert torch.equal(first[0].half().float(), first[1])


def test_settings_may_differ_from_layer_to_layer(written):
    lines = [json.loads(line) for line in (written / "quantize.jsonl").read_text().splitlines()]
    settings = {line["layer"].rpartition(".")[2]: line["setting"] for line in lines}
    assert settings["down_proj"] == "3x8 g4"
    assert settings["q_proj"] == "2x3 g8 group scale"
    assert settings["gate_proj"] == "2x8 g8"
    assert len(lines) == 13


@pytest.mark.parametrize("codec", STORED)
def test_planned_sizes_are_those_of_the_files(folders, text, tmp_path, codec):
    run(folders["llama"], text, options_of(codec), tmp_path / "tiny")
    sizes = summarize(tmp_path / "tiny").sizes
    described = sum(
        tensor.numel()
        for path in (tmp_path / "tiny").glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if name.endswith(f"{MARK}config")
    )
    assert sizes.quantized - described == pytest.approx(sizes.predicted, abs=1)


@pytest.mark.parametrize("codec", STORED)
def test_an_interrupted_run_ends_with_the_same_bytes(folders, text, tmp_path, monkeypatch, stop_at, codec):
    from mcq_llm.checkpoint import Checkpoint

    class Stop(Exception):
        pass

    run(folders["llama"], text, options_of(codec), tmp_path / "whole" / "tiny")
    with monkeypatch.context() as patch:
        stop_at(patch, Checkpoint, "save_layer", 9, Stop)
        with pytest.raises(Stop):
            run(folders["llama"], text, options_of(codec), tmp_path / "parts" / "tiny")
    run(folders["llama"], text, options_of(codec), tmp_path / "parts" / "tiny", resume=True)
    assert bytes_of(tmp_path / "parts" / "tiny") == bytes_of(tmp_path / "whole" / "tiny")


@pytest.mark.parametrize("codec", STORED)
def test_a_tuned_model_is_closer_and_loads_as_it_computes(folders, text, tmp_path, windows, codec):
    from mcq_llm.prepare import prepare
    from mcq_llm.run import write

    prepared = prepare(folders["qwen2"], text, options_of(codec, tokens=2048, tune="block"))
    write(prepared, tmp_path, "tiny")
    lines = [json.loads(line) for line in (tmp_path / "tuning.jsonl").read_text().splitlines()]
    gains = [line["loss_coded"] - line["loss_tuned"] for line in lines]  # at 4 bits little is left in single blocks
    assert min(gains) >= 0
    assert max(gains) > 0
    with torch.inference_mode():
        assert torch.equal(load(tmp_path)[0](windows).logits, prepared.model(windows).logits)


def test_row_scales_of_tuning_are_counted(folders, text, tmp_path):
    setting = mcq_llm.AdditiveSetting(2, 4, 8, "none")  # has no scales of its own
    run(folders["llama"], text, options_of("additive", setting=setting, tokens=2048, tune="block"), tmp_path / "tiny")
    tensors = [name for path in (tmp_path / "tiny").glob("*.safetensors") for name in load_file(path)]
    assert "model.layers.0.mlp.up_proj.mcq.row_scale" in tensors
    plan = make_plan(find_blocks(load(folders["llama"])[0]), options_of("additive", setting=setting, tune="block"))
    assert plan[0].all_in == pytest.approx(setting.cost(64, 64).all_in + 16 / 64)


def test_streams_like_any_other_checkpoint_and_is_not_quantized_again(written, folders, text, tmp_path):
    for stream in (False, True):
        with pytest.raises(InputError, match=r"quantized already \(mcq\)"):
            run(written, text, OPTIONS, tmp_path / "again", stream=stream)
    with pytest.raises(InputError, match=r"quantized already \(mcq\)"):
        load_streamed(written)


def test_report_and_card_know_the_format(written):
    write_report(written)
    card = (written / "README.md").read_text()
    assert 'mcq_llm.load("tiny")' in card
    assert "| written as | codes of multicodebook |" in card
    assert "aqlm" not in card.lower()


def test_altered_and_truncated_files_are_refused(copy):
    shard = copy / "model-00001-of-00003.safetensors"
    intact = shard.read_bytes()
    for damaged in (intact[:-10], intact[:100], b"", intact[:-7] + bytes([intact[-7] ^ 1]) + intact[-6:]):
        shard.write_bytes(damaged)
        with pytest.raises(FormatError, match="does not match its checksum"):
            load(copy)
    shard.unlink()
    with pytest.raises(FormatError, match="00001-of-00003.safetensors, which is missing"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "has version '2'.*upgrade"),
        ({"format_version": None}, "has version None"),
        ({"sha256": None}, "checksums"),
        ({"sha256": {"../config.json": "0"}}, "checksums"),
    ],
)
def test_newer_and_strange_configurations_are_refused(copy, changes, message):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        load_dense(copy)


def test_a_layer_that_is_not_described_is_refused():
    from mcq_llm.mcq_format import McqLayer

    with pytest.raises(FormatError, match="this layer is not described as a layer"):
        McqLayer.restore({}, "this layer")
    config = torch.tensor(list(b'{"quantizer": ["residual", {}]}'), dtype=torch.uint8)
    with pytest.raises(FormatError, match="not described"):
        McqLayer.restore({"mcq.config": config}, "this layer")


def test_fused_experts_are_refused(folders, text, tmp_path):
    with pytest.raises(ConfigError, match="one tensor with all experts.*--override 'experts=dense'"):
        run(folders["mixtral"], text, OPTIONS, tmp_path / "tiny")
