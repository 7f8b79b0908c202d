"""Runs that are interrupted, resumed, streamed from the disk, or short of it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import mcq_llm
from mcq.errors import ConfigError, InputError
from mcq_llm.checkpoint import Checkpoint
from mcq_llm.load import load_dense, load_streamed
from mcq_llm.run import run
from mcq_llm.text import spread_windows, tokenize
from mcq_llm.tune import TuneOptions

OPTIONS = mcq_llm.Options(tokens=128, window=32)


def weights(folder):
    """The bytes of everything but the report, which has times in it."""
    names = sorted(path.name for path in folder.iterdir())
    timed = ("quantize.jsonl", "tuning.jsonl", "report.json", "report.html", "README.md")
    return {name: (folder / name).read_bytes() for name in names if name not in timed}


@pytest.fixture(scope="module")
def uninterrupted(folders, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(folders["llama"], text, OPTIONS, out)
    return out


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("what", "count"), [("save_layer", 2), ("save_layer", 9), ("save_block", 1), ("save_block", 2), ("seal", 1)]
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    folders, text, tmp_path, monkeypatch, stop_at, uninterrupted, what, count
):
    with monkeypatch.context() as patch:
        stop_at(patch, Checkpoint, what, count, Stop)
        with pytest.raises(Stop):
            run(folders["llama"], text, OPTIONS, tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.partial"]
    run(folders["llama"], text, OPTIONS, tmp_path / "tiny", resume=True)
    assert weights(tmp_path / "tiny") == weights(uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "tiny" / "quantize.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (uninterrupted / "quantize.jsonl").read_text().splitlines()]
    assert [line["error_after"] for line in lines] == [line["error_after"] for line in expected]


def test_kill_at_any_time_and_resume(folders, text, tmp_path, uninterrupted):
    (tmp_path / "text").write_text(text)
    out, generator = tmp_path / "tiny", random.Random(0)
    command = [
        sys.executable,
        "-c",
        "import mcq.cli; mcq.cli.main()",
        "llm",
        "quantize",
        folders["llama"],
        "--out",
        out,
        "--resume",
    ]
    command += ["--calibration", tmp_path / "text", "--tokens", "128", "--window", "32", "--threads", "1"]
    command = [str(part) for part in command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while process.poll() is None and not list(tmp_path.glob("tiny*/parts/*.safetensors")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(generator.random())
            process.send_signal(signal.SIGKILL)
        assert not out.exists() or weights(out)
    if not out.exists():
        subprocess.run(command, env=environment, check=True)
    found, expected = weights(out), weights(uninterrupted)
    assert [name for name in expected if found.get(name) != expected[name]] == []


def test_a_resumed_run_must_be_the_same_run(folders, text, tmp_path, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        stop_at(patch, Checkpoint, "save_block", 2, Stop)
        with pytest.raises(Stop):
            run(folders["llama"], text, OPTIONS, tmp_path / "tiny")
    with pytest.raises(InputError, match="unfinished run is in .*add --resume"):
        run(folders["llama"], text, OPTIONS, tmp_path / "tiny")
    with pytest.raises(InputError, match=r"options\.seed was 0 and is now 1"):
        run(folders["llama"], text, mcq_llm.Options(tokens=128, window=32, seed=1), tmp_path / "tiny", resume=True)
    with pytest.raises(InputError, match=r"calibration was \w+ and is now"):
        run(folders["llama"], text[::-1], OPTIONS, tmp_path / "tiny", resume=True)
    with pytest.raises(InputError, match=r"model was \w+ and is now"):
        run(folders["qwen2"], text, OPTIONS, tmp_path / "tiny", resume=True)


def test_a_tampered_part_is_refused(folders, text, tmp_path, monkeypatch, stop_at):
    with monkeypatch.context() as patch:
        stop_at(patch, Checkpoint, "save_block", 2, Stop)
        with pytest.raises(Stop):
            run(folders["llama"], text, OPTIONS, tmp_path / "tiny")
    part = tmp_path / "tiny.partial" / "parts" / "model.layers.0.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(InputError, match="is damaged .*remove it, and it will be made anew"):
        run(folders["llama"], text, OPTIONS, tmp_path / "tiny", resume=True)


def test_two_runs_do_not_share_a_folder(folders, text, tmp_path):
    from mcq_llm.storage import resumable_folder

    with resumable_folder(tmp_path / "tiny", resume=False):
        with pytest.raises(InputError, match="another process is at work"):
            run(folders["llama"], text, OPTIONS, tmp_path / "tiny", resume=True)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral"])
def test_streaming_from_the_disk_changes_nothing(folders, text, tmp_path, kind):
    options = mcq_llm.Options(tokens=128, window=32, format="dense" if kind in ("gpt2", "mixtral") else "aqlm")
    run(folders[kind], text, options, tmp_path / "whole" / kind)
    run(folders[kind], text, options, tmp_path / "streamed" / kind, stream=True, spill=tmp_path)
    assert weights(tmp_path / "whole" / kind) == weights(tmp_path / "streamed" / kind)


def test_a_streamed_model_holds_one_block_at_a_time(folders):
    model, _, blocks = load_streamed(folders["llama"])
    with blocks.loaded(1):
        empty = [all(parameter.is_meta for parameter in block.parameters()) for block in blocks.modules]
        assert empty == [True, False]
    assert all(parameter.is_meta for parameter in blocks.modules.parameters())
    assert not model.model.embed_tokens.weight.is_meta


def test_what_cannot_be_streamed_is_refused(folders, text, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((folders["llama"] / "config.json").read_text())
    with pytest.raises(InputError, match="only from safetensors files"):
        run(tmp_path / "empty", text, OPTIONS, tmp_path / "out", stream=True)
    shutil.copytree(folders["llama"], tmp_path / "part")
    tensors = load_file(folders["llama"] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "part" / "model.safetensors")
    with pytest.raises(InputError, match="must hold what model.layers.1.mlp.up_proj.weight is made of"):
        run(tmp_path / "part", text, OPTIONS, tmp_path / "out", stream=True)


def test_a_full_disk_loses_nothing(folders, text, tmp_path, uninterrupted):
    code = (
        "import resource, signal, sys, mcq_llm; from pathlib import Path; from mcq.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))\n"
        "try: mcq_llm.run(sys.argv[1], sys.argv[2], mcq_llm.Options(tokens=128, window=32), Path(sys.argv[3]))\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders["llama"]), text, str(tmp_path / "tiny")],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "make room for it and start again" in done.stdout, done.stderr
    assert not list(tmp_path.rglob("*.partial/*.partial"))
    run(folders["llama"], text, OPTIONS, tmp_path / "tiny", resume=True)
    assert weights(tmp_path / "tiny") == weights(uninterrupted)


def test_the_result_computes_what_its_files_say(uninterrupted, windows):
    with torch.inference_mode():
        assert torch.isfinite(load_dense(uninterrupted)[0](windows).logits).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_tuned_run_is_closer_resumes_and_is_written_as_it_computes(
    folders, text, tmp_path, monkeypatch, stop_at, kind
):
    options = mcq_llm.Options(tokens=2048, window=32, tune="block", setting=mcq_llm.AdditiveSetting(1, 4))
    run(folders[kind], text, options, tmp_path / "tuned")
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "tuning.jsonl").read_text().splitlines()]
    assert [line["block"] for line in lines] == ["model.layers.0", "model.layers.1"]
    assert lines[0]["loss_tuned"] < lines[0]["loss_coded"]
    assert lines[1]["loss_tuned"] <= lines[1]["loss_coded"]  # never worse
    with monkeypatch.context() as patch:
        stop_at(patch, Checkpoint, "save_block", 2, Stop)
        with pytest.raises(Stop):
            run(folders[kind], text, options, tmp_path / "again" / "tuned")
    run(folders[kind], text, options, tmp_path / "again" / "tuned", resume=True)
    assert weights(tmp_path / "again" / "tuned") == weights(tmp_path / "tuned")


def test_a_lookahead_brings_the_output_of_the_next_block_closer(folders, text, tmp_path):
    original, tokenizer = mcq_llm.load(folders["llama"])
    ids = spread_windows(tokenize(tokenizer, text), 64, 32)
    with torch.no_grad():
        target = original.model(ids)[0]
    errors = []
    for lookahead in (0, 1):
        tuning = TuneOptions(lookahead=lookahead, epochs=8, learning_rate=0.02)
        setting, kept = mcq_llm.AdditiveSetting(1, 3), (mcq_llm.Override.parse(r"layers\.1\.=dense"),)
        options = mcq_llm.Options(
            tokens=2048, window=32, tune="block", tuning=tuning, setting=setting, overrides=kept, precision="float32"
        )
        run(folders["llama"], text, options, tmp_path / str(lookahead))
        tuned = mcq_llm.load_dense(tmp_path / str(lookahead))[0]
        tuned.model.layers[1] = original.model.layers[1]  # as it was when the error was seen through it
        with torch.no_grad():
            errors.append(float((tuned.model(ids)[0] - target).norm() / target.norm()))
    assert errors[1] < errors[0]


def test_a_lookahead_needs_the_blocks_in_memory(folders, text, tmp_path):
    options = mcq_llm.Options(tokens=512, window=32, tune="block", tuning=TuneOptions(lookahead=1))
    with pytest.raises(ConfigError, match="lookahead needs the blocks behind in memory"):
        run(folders["llama"], text, options, tmp_path / "out", stream=True)


def test_bias_correction_brings_the_mean_output_back(folders, text, tmp_path):
    errors = {}
    original, tokenizer = mcq_llm.load(folders["qwen2"])
    ids = spread_windows(tokenize(tokenizer, text), 16, 32)
    for tune in ("none", "bias"):
        options = mcq_llm.Options(
            tokens=512, window=32, tune=tune, target="quantized", setting=mcq_llm.AdditiveSetting(1, 3)
        )
        run(folders["qwen2"], text, options, tmp_path / tune)
        layers = [mcq_llm.load_dense(tmp_path / tune)[0].model.layers[0], original.model.layers[0]]
        with torch.no_grad():
            x = layers[1].input_layernorm(original.model.embed_tokens(ids)).flatten(0, 1)
            means = [layer.self_attn.q_proj(x).mean(0) for layer in layers]
        errors[tune] = (means[0] - means[1]).norm().item()
    assert errors["bias"] < 0.1 * errors["none"]
