"""What is shipped: contents of sdist and wheel, and installations of them beside other software."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    ".*cache",
    ".git",
    ".venv*",
    ".hypothesis",
    "__pycache__",
    "*.so",
    "*.egg-info",
    "build",
    "dist",
    "demo-out",
    "shared",
)
SOURCE_SUFFIXES = {".py", ".pyi", ".pyx", ".c", ".h"}
MODULE = "_core" + sysconfig.get_config_var("EXT_SUFFIX")


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources without anything built."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "mcq", ignore=NOT_SOURCES)


@pytest.fixture(scope="module")
def distributions(checkout, tmp_path_factory):
    """The sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=checkout)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture
def fresh_python(tmp_path):
    """The interpreter of a new environment: our dependencies are there, our own installation is not."""
    venv.create(tmp_path / "fresh", symlinks=True)
    python = tmp_path / "fresh" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # The .pth files of a path that a .pth file adds are ignored: no editable installation shines through.
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(site, "dependencies.pth").write_text("\n".join(ours))
    return python


def test_sdist_has_all_that_a_build_and_a_test_run_need(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = (ROOT / folder for folder in ("mcq_ext", "mcq", "adapters", "tests"))
    sources = {path for folder in folders for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES}
    assert {str(path.relative_to(ROOT)) for path in sources} <= names
    assert {
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "CHANGELOG.md",
        "README.md",
        "docs/index.md",
        "mcq/grids.npz",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_has_the_modules_and_no_sources(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = set(archive.namelist())
    assert {
        f"mcq_ext/{MODULE}",
        "mcq_ext/py.typed",
        "mcq/py.typed",
        "mcq/grids.npz",
        "mcq/encoders/__init__.py",
    } <= names
    assert {"mcq_llm/__init__.py", "mcq_llm/cli.py", "mcq_search/__init__.py", "mcq_search/py.typed"} <= names
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx", ".o", ".a"))]
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mcq", "mcq_ext", "mcq_llm", "mcq_search"}


USE = """
import importlib.metadata, importlib.util, pathlib
import numpy as np
import mcq, mcq_ext
codes = mcq.Codes.pack(np.zeros((3, 2, 1), int), codebook_bits=5, d=16)
assert (codes.unpack() == 0).all()
assert {entry.name for entry in importlib.metadata.entry_points(group="mcq.cli")} == {"llm", "search"}
for name in ("mcq", "mcq_ext", "mcq_ext._core", "mcq_llm", "mcq_search"):
    print(pathlib.Path(importlib.util.find_spec(name).origin).resolve())
"""


def test_wheel_in_a_fresh_environment(distributions, fresh_python, tmp_path):
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed")
    run(fresh_python, *install, distributions[1], cwd=tmp_path)
    origins = run(fresh_python, "-c", USE, cwd=tmp_path).split()
    assert all(Path(origin).is_relative_to(tmp_path / "fresh") for origin in origins), origins
    usage = run(tmp_path / "fresh" / "bin" / "mcq", "--help", cwd=tmp_path)
    assert all(command in usage for command in ("fit", "encode", "decode", "inspect", "llm", "search"))


def test_editable_installation(checkout, fresh_python, tmp_path):
    install = (
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--ignore-installed",
    )
    run(fresh_python, *install, "-e", checkout, cwd=tmp_path)
    origins = run(fresh_python, "-c", USE, cwd=tmp_path).split()
    places = ("mcq/__init__.py", "mcq_ext/__init__.py", f"mcq_ext/{MODULE}")
    places += ("adapters/mcq_llm/__init__.py", "adapters/mcq_search/__init__.py")
    assert origins == [str(checkout / place) for place in places]


def test_baseline_objects_use_no_wide_registers(checkout, fresh_python, tmp_path):
    if platform.machine() != "x86_64" or shutil.which("objdump") is None:
        pytest.skip("needs x86-64 and objdump")
    run(sys.executable, "setup.py", "-q", "build_clib", "--build-temp", tmp_path, cwd=checkout)
    wide = {}
    for path in tmp_path.rglob("kernels_*.o"):
        text = run("objdump", "-d", "--no-show-raw-insn", path, cwd=tmp_path)
        wide[path.stem] = {register for register in ("%ymm", "%zmm") if register in text}
    assert wide == {"kernels_baseline": set(), "kernels_avx2": {"%ymm"}, "kernels_avx512": {"%ymm", "%zmm"}}


def test_foreign_adapters_package_stays_importable(tmp_path):
    foreign = tmp_path / "adapters"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("OWNER = 'somebody else'")
    show = "import adapters, importlib.util; print(adapters.OWNER, importlib.util.find_spec('mcq_llm').origin)"
    shown = run(sys.executable, "-c", show, cwd=ROOT, PYTHONPATH=str(tmp_path)).strip()
    assert shown == f"somebody else {ROOT / 'adapters' / 'mcq_llm' / '__init__.py'}"


def test_the_imported_mcq_is_ours():
    import mcq

    assert Path(mcq.__file__).resolve().parent == ROOT / "mcq"
