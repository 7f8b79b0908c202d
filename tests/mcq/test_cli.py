"""The command line does what the Python API does, and words every failure in one line."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import mcq
from mcq import arrays, cli

SMALL = ("--codebooks", "2", "--codebook-bits", "4", "--group-size", "4")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; return its exit status, standard output and standard error."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mcq", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return call


@pytest.fixture
def folder(tmp_path):
    """A folder with a matrix and a Gram."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((100, 12))
    np.save(tmp_path / "x.npy", rng.standard_normal((40, 12)).astype(np.float32))
    np.save(tmp_path / "gram.npy", inputs.T @ inputs)
    return tmp_path


@pytest.mark.parametrize("kind", ["additive", "residual"])
def test_fit_encode_decode_inspect(run, folder, kind):
    x, q, codes, out = (folder / name for name in ("x.npy", "q.mcq", "codes.mcq", "out.npy"))
    gram = ("--gram", folder / "gram.npy")
    fit = run("fit", x, "-o", q, "--quantizer", kind, *SMALL, *gram, "--codes", folder / "fit.mcq", "--seed", "7")
    assert fit[0] == 0, fit
    assert "relative error" in fit[1]
    assert run("encode", q, x, "-o", codes, *gram, "--threads", "1")[0] == 0
    assert run("decode", q, codes, "-o", out)[0] == 0

    quantizer, matrix, metric = mcq.load(q), np.load(x), mcq.Gram(np.load(folder / "gram.npy"))
    assert mcq.Codes.load(codes) == quantizer.encode(matrix, metric=metric)
    np.testing.assert_array_equal(np.load(out), quantizer.decode(mcq.Codes.load(codes)))
    options = {"num_codebooks": 2, "codebook_bits": 4, "group_size": 4, "scale": "row"}
    fitted = cli.QUANTIZERS[kind](**options)
    assert mcq.Codes.load(folder / "fit.mcq") == fitted.fit_encode(matrix, metric=metric, seed=7)

    status, shown, _ = run("inspect", codes)
    assert status == 0
    assert "kind: codes" in shown
    assert "payload: 2.000 bits per entry" in shown
    status, shown, _ = run("inspect", q)
    assert status == 0
    assert f"kind: {kind}" in shown
    assert "codebooks: float16 (2, 16, 4)" in shown


@pytest.mark.parametrize("more", [[], ["--codebooks", "2", "--splits", "3", "--rotation", "random"]])
def test_product_quantizers(run, folder, more):
    x, q, codes, out = (folder / name for name in ("x.npy", "q.mcq", "codes.mcq", "out.npy"))
    fit = run("fit", x, "-o", q, "--quantizer", "product", "--codebook-bits", "3", "--rounds", "2", *more)
    assert fit[0] == 0, fit
    sizes = {"num_codebooks": 2, "num_splits": 3, "rotation": "random"} if more else {}
    expected = mcq.ProductQuantizer(codebook_bits=3, rounds=2, **sizes).fit(np.load(x))
    assert mcq.load(q).config == expected.config
    assert run("encode", q, x, "-o", codes)[0] == run("decode", q, codes, "-o", out)[0] == 0
    np.testing.assert_array_equal(np.load(out), expected.decode(expected.encode(np.load(x))))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("pyramid", mcq.PyramidQuantizer.of_rate),
        ("shell", mcq.ShellQuantizer.of_rate),
        ("trellis", mcq.TrellisQuantizer),
    ],
)
@pytest.mark.parametrize("more", [{}, {"bits": 1.5, "scale": "none"}], ids=str)
def test_quantizers_without_codebooks(run, folder, kind, make, more):
    x, q, codes, out = (folder / name for name in ("x.npy", "q.mcq", "codes.mcq", "out.npy"))
    flags = [part for name, value in more.items() for part in (f"--{name}", value)]
    fit = run("fit", x, "-o", q, "--quantizer", kind, "--codes", folder / "fit.mcq", *flags)
    assert fit[0] == 0, fit
    expected = make(**{"bits": 2, "scale": "row"} | more).fit(np.load(x))
    assert mcq.load(q).config == expected.config
    assert run("encode", q, x, "-o", codes)[0] == run("decode", q, codes, "-o", out)[0] == 0
    assert run("inspect", codes)[0] == 0
    np.testing.assert_array_equal(np.load(out), expected.decode(expected.encode(np.load(x))))


def test_codes_of_many_widths(run, folder):
    rows, out = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32), folder / "out.npy"
    np.save(folder / "rows.npy", rows)
    x, q, codes = (folder / name for name in ("rows.npy", "q.mcq", "codes.mcq"))
    assert run("fit", x, "-o", q, "--quantizer", "companded", "--bits", "4", "--codes", codes)[0] == 0
    assert run("decode", q, codes, "-o", out)[0] == 0
    assert mcq.Identity().relative_error(rows, np.load(out)) < 0.03
    status, printed = run("inspect", codes)[:2]
    assert status == 0
    assert "payload: 3." in printed


def test_codes_in_bands_are_counted(run, folder):
    x = np.load(folder / "x.npy")
    quantizer = mcq.BandedQuantizer([mcq.ShellQuantizer(8, 12), mcq.ShellQuantizer(8, 24)])
    codes = quantizer.fit_encode(x)
    codes.save(folder / "codes.mcq")
    assert f"payload: {codes.bits().payload:.3f} bits" in run("inspect", folder / "codes.mcq")[1]


def test_safetensors_are_read_by_name(folder):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = str(folder / "some.safetensors")
    save_file({"layer.0": x, "layer.1": x + 1}, file)
    np.testing.assert_array_equal(arrays.read_array(f"{file}:layer.1"), x + 1)
    save_file({"only": x}, file)
    np.testing.assert_array_equal(arrays.read_array(file), x)


def test_bfloat16_is_widened(folder):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    x = torch.randn(3, 5).bfloat16()
    save_torch({"first": torch.ones(3), "x": x}, folder / "x.safetensors")
    widened = arrays.read_array(f"{folder / 'x.safetensors'}:x")
    np.testing.assert_array_equal(widened, x.float().numpy())


@pytest.fixture
def broken(folder):
    """The folder, with files that no command can use."""
    nan = np.ones((40, 12), np.float32)
    nan[3, 5] = np.nan
    np.save(folder / "nan.npy", nan)
    np.save(folder / "small.npy", np.eye(3))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-5])
    (folder / "empty.npy").touch()
    save_file({"a": nan, "b": nan}, folder / "two.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "two.safetensors").read_bytes()[:-5])
    mcq.Codes.pack(np.zeros((1, 1, 1), int), codebook_bits=8, d=8).save(folder / "codes.mcq")
    (folder / "plain").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit absent.npy -o q.mcq", "No such file"),
        ("fit nan.npy -o q.mcq", "nan at row 3 column 5"),
        ("fit x.npy -o q.mcq --gram small.npy", "12"),
        ("fit x.npy -o q.mcq --codebook-bits 0", "codebook_bits must be an integer from 1 to 16, got 0"),
        ("fit x.npy -o q.mcq --quantizer product", "--group-size is no option of product quantizers; leave it out"),
        ("fit x.npy -o q.mcq --codebook-bits 4 --quantizer product --scale row", "--scale is no option of product"),
        ("fit x.npy -o q.mcq --rotation random", "--rotation is no option of additive quantizers; leave it out"),
        ("fit x.npy -o q.mcq --quantizer residual --splits 4", "--splits is no option of residual quantizers"),
        ("fit x.npy -o q.mcq --quantizer shell --codebook-bits 4", "--codebook-bits is no option of shell quantizers"),
        ("fit x.npy -o q.mcq --bits 3", "--bits is no option of additive quantizers; leave it out"),
        ("fit x.npy -o absent/q.mcq", "the folder absent does not exist"),
        ("fit x.npy -o plain", "Is a directory"),
        ("fit x.txt -o q.mcq", "must be FILE.npy"),
        ("fit objects.npy -o q.mcq", "objects.npy is not a whole .npy file of numbers: Object arrays"),
        ("fit cut.npy -o q.mcq", "cut.npy is not a whole .npy file"),
        ("fit empty.npy -o q.mcq", "empty.npy is not a whole .npy file"),
        ("fit cut.safetensors -o q.mcq", "cut.safetensors is not a whole safetensors file"),
        ("fit two.safetensors -o q.mcq", "holds 2 tensors; name one as two.safetensors:TENSOR, of: a, b"),
        ("fit two.safetensors:c -o q.mcq", "has no tensor 'c'"),
        ("encode codes.mcq x.npy -o q.mcq", "codes.mcq holds Codes, but Quantizer is needed here"),
        ("encode x.npy x.npy -o q.mcq", "not a whole safetensors file"),
        ("inspect two.safetensors", "not one that mcq wrote"),
    ],
)
def test_failures_are_one_line_and_leave_no_file(run, broken, monkeypatch, command, message):
    monkeypatch.chdir(broken)
    before = sorted(broken.iterdir())
    status, _, shown = run(*command.split(), *(SMALL if command.startswith("fit") and "bits" not in command else ()))
    assert status == 2
    assert message in shown
    assert shown.startswith("mcq: ")
    assert shown.count("\n") == 1
    assert sorted(broken.iterdir()) == before


def test_decode_writes_npy_only(run, folder):
    run("fit", folder / "x.npy", "-o", folder / "q.mcq", *SMALL, "--codes", folder / "codes.mcq")
    status, _, shown = run("decode", folder / "q.mcq", folder / "codes.mcq", "-o", folder / "out.txt")
    assert (status, "must end in .npy" in shown) == (2, True)


def python(code, *words, **environment):
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment or None)


def test_missing_typer_is_explained():
    done = python("import sys; sys.modules['typer'] = None; import mcq.cli")
    assert done.returncode == 1
    assert done.stderr == "mcq: the command line needs typer; run: pip install 'multicodebook[cli]'\n"


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from mcq.cli import main; main()"


def test_plugin_that_cannot_be_imported_harms_no_other_command(folder):
    fit = python(WITHOUT_TORCH, "fit", folder / "x.npy", "-o", folder / "q.mcq", *SMALL)
    assert fit.returncode == 0, fit.stderr
    llm = python(WITHOUT_TORCH, "llm", "--help")
    assert llm.returncode == 2
    assert llm.stderr.startswith("mcq: the command 'llm' cannot be loaded: ")
    assert llm.stderr.count("\n") == 1


def test_help_lists_plugins_without_importing_them():
    show = "import sys; from mcq.cli import app; app(['--help'], standalone_mode=False)"
    done = python(f"{show}; print('torch' in sys.modules)")
    assert "llm" in done.stdout
    assert done.stdout.endswith("False\n")


def test_plugin_gets_all_that_follows_its_name():
    pytest.importorskip("torch")
    done = python("from mcq.cli import main; import sys; sys.argv[0] = 'mcq'; main()", "llm", "quantize", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: mcq llm quantize" in done.stdout
