"""Runs that several processes share. Run as a script, this file is one of these processes."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import mcq_llm.quantize
from mcq.errors import ConfigError, InputError
from mcq_llm.prepare import prepare
from mcq_llm.run import run, write
from mcq_llm.world import World, fair_threads, joined

COARSE = mcq_llm.AdditiveSetting(2, 4)
#: An odd number of sequences in batches of 2: where batches are cut, one of two processes has nothing of the last.
#: In float32: in bfloat16 a mixture routes some tokens otherwise, depending on which others they are computed with.
FIXED = {"window": 32, "setting": COARSE, "precision": "float32"}
RUNS = {
    "plain": ("llama", mcq_llm.Options(tokens=480, **FIXED)),
    "tuned": ("llama", mcq_llm.Options(tokens=1056, tune="block", target="quantized", **FIXED)),
    "routed": ("mixtral", mcq_llm.Options(tokens=480, format="dense", **FIXED)),
}
#: Of the second block. Gradients are rounded otherwise, which tips codes, and there are few in so small a model.
TOLERANCE = {"plain": 1e-3, "tuned": 0.25, "routed": 1e-3}
SECONDS = 300


def main(task, folders, text, out):
    """Share `task` with the process of the other rank."""
    torch.set_num_threads(1)
    {"runs": share_runs, "failure": fail, "death": die}[task](Path(folders), Path(text).read_text(), Path(out))


def share_runs(folders, text, out):
    first_port = int(os.environ["MASTER_PORT"])
    for number, (name, (kind, options)) in enumerate(RUNS.items()):
        os.environ["MASTER_PORT"] = str(first_port + number)
        with joined() as world:
            (out / name).mkdir(exist_ok=True)
            prepared = prepare(folders / kind, text, options, world=world)
            write(prepared, out / name, name)
        (out / f"{name}.{world.rank}").write_text(digest(prepared.model))


def fail(folders, text, out):
    with joined() as world:
        prepared = prepare(folders / "llama", text, RUNS["plain"][1], world=world)
        if world.rank == 1:
            mcq_llm.quantize.quantize_layer = refuse
        write(prepared, out, "failed")


def refuse(planned, *_):
    raise InputError(f"{planned.name} is not wanted")


def die(folders, text, out):
    with joined() as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.gather(0)


def digest(model):
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def free_ports(count):
    """Return the first of `count` consecutive ports that are free now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        if first + count < 2**16:
            return first


@contextmanager
def pair(*command):
    """Start two Python processes as torchrun would, and end them."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    world["MASTER_PORT"] = str(free_ports(len(RUNS)))
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def outcome(*arguments):
    """Run this file in two processes; return what they print and their exit codes."""
    with pair(__file__, *arguments) as processes:
        printed = [process.communicate(timeout=SECONDS)[1] for process in processes]
        return printed, [process.returncode for process in processes]


@pytest.fixture(scope="module")
def text_file(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def shared(folders, text_file, tmp_path_factory):
    """A folder with the checkpoints of RUNS, made by two processes, and the digests of their models."""
    out = tmp_path_factory.mktemp("shared")
    printed, codes = outcome("runs", folders["llama"].parent, text_file, out)
    assert codes == [0, 0], printed
    return out


def lines(folder, name):
    path = folder / name
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(found, key=lambda line: line.get("layer") or line["block"])


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(folders, text, tmp_path, shared, name):
    kind, options = RUNS[name]
    run(folders[kind], text, options, tmp_path / name)
    for file, value in [("quantize.jsonl", "error_after"), ("tuning.jsonl", "loss_tuned")]:
        alone, together = lines(tmp_path / name, file), lines(shared / name, file)
        assert [line.get("layer") for line in together] == [line.get("layer") for line in alone]
        for a, b in zip(alone, together, strict=True):
            first_block = "layers.0" in a.get("layer", a.get("block"))
            assert b[value] == pytest.approx(a[value], rel=5e-3 if first_block else TOLERANCE[name]), a


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_hold_the_same_model(shared, name):
    assert (shared / f"{name}.0").read_text() == (shared / f"{name}.1").read_text()
    loaded = mcq_llm.load_dense(shared / name)[0]
    assert digest(loaded) == (shared / f"{name}.0").read_text()


@pytest.mark.parametrize(
    ("task", "reasons"),
    [
        ("failure", ["McqError: process 1 failed: model.layers.0.self_attn.k_proj is not wanted", "InputError: model"]),
        ("death", ["McqError: another process ended without a reason", ""]),
    ],
)
def test_when_one_process_fails_both_end_with_its_reason(folders, text_file, tmp_path, task, reasons):
    printed, codes = outcome(task, folders["llama"].parent, text_file, tmp_path)
    assert all(codes)
    for found, reason in zip(printed, reasons, strict=True):
        assert reason in found


def test_a_killed_run_is_resumed_under_torchrun(folders, text_file, tmp_path):
    command = ["-m", "mcq_llm", "quantize", folders["llama"], "--out", tmp_path / "tiny", "--resume"]
    command += ["--calibration", text_file, "--tokens", "128", "--window", "32"]
    with pair(*command) as processes:
        deadline = time.monotonic() + SECONDS
        while not list(tmp_path.glob("tiny*/parts/model.layers.1.*safetensors")):
            assert not any(process.poll() for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert not (tmp_path / "tiny").exists()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-port", str(free_ports(1))]
    done = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert len(lines(tmp_path / "tiny", "quantize.jsonl")) == 14


def test_layers_are_dealt_out_by_size():
    owners = World(0, 2).owners({"q": 9, "k": 3, "v": 3, "gate": 20})
    assert owners == {"gate": 0, "q": 1, "k": 1, "v": 1}


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("cut", [False, True])
def test_every_sequence_is_in_one_part(batch, cut):
    windows = torch.arange(7)[:, None]
    parts = [World(rank, 3).parts(windows, batch, cut) for rank in range(3)]
    assert sorted(torch.cat([ids for part in parts for ids, _ in part]).flatten().tolist()) == list(range(7))
    assert all(share for part in parts for _, share in part[:-1])
    for batch in zip(*parts, strict=True) if cut else ():
        assert sum(share for _, share in batch) == pytest.approx(1)


def test_fewer_sequences_than_processes_are_refused():
    with pytest.raises(ConfigError, match="there are 4 processes and 3 sequences; give more calibration tokens"):
        World(0, 4).parts(torch.zeros(3, 8), 2, cut=False)


def test_processes_on_a_machine_share_its_threads(monkeypatch):
    monkeypatch.setattr("mcq_ext.num_threads", lambda: 16)
    assert fair_threads() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert fair_threads() == 3


if __name__ == "__main__":
    main(*sys.argv[1:])
