"""The examples in docstrings and in the README run, and links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import mcq
import mcq_ext
import mcq_llm
import mcq_search
from mcq import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MODULES = [
    module.name
    for package in (mcq, mcq_ext, mcq_search)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", ["mcq", "mcq_ext", *MODULES])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("package", [mcq, mcq_llm, mcq_search], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    known = set(re.findall(r"\w+", (ROOT / "docs" / "reference.md").read_text()))
    assert not set(package.__all__) - known


def test_readme_python_runs(capsys):
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, {})
    assert "Bits(payload=" in capsys.readouterr().out


def test_readme_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("weight.npy", rng.standard_normal((300, 24)))
    np.save("gram.npy", np.eye(24))
    commands = re.findall(r"^mcq (?:fit|encode|decode|inspect) .*", README, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, command
    assert np.load("rebuilt.npy").shape == (300, 24)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link
