import json

import pytest
from typer.testing import CliRunner

import mcq.cli
from mcq.errors import McqError
from mcq_llm.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    return path


def small(text_file):
    return ["--calibration", text_file, "--tokens", 128, "--window", 32]


def test_quantize_then_evaluate(folders, text_file, tmp_path):
    out = tmp_path / "out"
    done = run("quantize", folders["llama"], "--out", out, *small(text_file), "--threads", 1)
    assert done.exit_code == 0, done.output
    assert len((out / "quantize.jsonl").read_text().splitlines()) == 14
    assert json.loads((out / "config.json").read_text())["quantization_config"]["num_codebooks"] == 2
    done = run("eval", out, "--text", text_file, "--windows", 2, "--window", 32)
    assert done.exit_code == 0, done.output
    assert "consecutive-windows-v1" in done.output


def test_options_reach_the_run(folders, text_file, tmp_path):
    out = tmp_path / "out"
    choice = [
        "--codebooks",
        1,
        "--codebook-bits",
        4,
        "--group-size",
        16,
        "--override",
        "mlp=scale:group",
        "--dense",
    ]
    done = run("quantize", folders["gpt2"], "--out", out, *small(text_file), *choice)
    assert done.exit_code == 0, done.output
    settings = {json.loads(line)["setting"] for line in (out / "quantize.jsonl").read_text().splitlines()}
    assert settings == {"1x4 g16", "1x4 g16 group scale"}


def test_dry_run_prints_the_plan_and_writes_nothing(folders, text_file, tmp_path):
    done = run("quantize", folders["llama"], "--out", tmp_path / "out", *small(text_file), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "model.layers.1.mlp.down_proj" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--override", "mlp=books:3"], "have the options rotate, codebooks"),
        (["--override", "nowhere=dense"], "matches no layer"),
        (["--codebook-bits", "0"], "bits per code must be an integer"),
        (["--override", "down_proj=codebooks:3"], "Add --format mcq"),
        (["--tokens", "100000"], "calibration needs"),
        (["--size", "1MB", "--bits", "2"], "--size and --bits are two ways"),
        (["--bands", "2", "--cache", "x"], "--bands and --cache must go with an allocation: --allocate, a fraction"),
        (["--tie"], "--tie must go with an allocation"),
        (["--epochs", "2"], "--epochs must go with --tune block; add that, or leave out --epochs"),
        (["--target", "quantized", "--correction", "1"], "--correction must go with another --target"),
        (["--bits", "4.5", "--codebooks", "2"], "--codebooks must go with one setting for all layers"),
        (["--codec", "shell", "--codebook-bits", "4"], "--codebook-bits must go with codebooks"),
    ],
)
def test_errors_are_clear_and_leave_nothing(folders, text_file, tmp_path, arguments, message):
    done = run("quantize", folders["llama"], "--out", tmp_path / "out", *small(text_file), *arguments)
    assert isinstance(done.exception, McqError)
    assert message in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_the_mcq_command_has_these_and_prints_an_error_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mcq", "llm", "quantize", "./missing"])
    with pytest.raises(SystemExit) as stop:
        mcq.cli.main()
    assert stop.value.code != 0
    assert capsys.readouterr().err.startswith("mcq: give --out FOLDER")


def test_the_output_folder_is_checked_before_the_model_is_loaded(text_file):
    done = run("quantize", "./missing", "--out", text_file.parent)
    assert "must not exist or be empty" in str(done.exception)


def test_a_quantized_model_is_not_quantized_again(folders, text_file, tmp_path):
    run("quantize", folders["llama"], "--out", tmp_path / "a", *small(text_file))
    done = run("quantize", tmp_path / "a", "--out", tmp_path / "b", *small(text_file))
    assert "quantized already (aqlm)" in str(done.exception)
