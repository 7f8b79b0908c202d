"""Imports go adapters -> mcq -> mcq_ext only, and each layer has its own short list of third parties."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = sorted(path for path in (ROOT / "adapters").iterdir() if any(path.glob("*.py")))
FOLDERS = {"mcq_ext": ROOT / "mcq_ext", "mcq": ROOT / "mcq"} | {path.name: path for path in ADAPTERS}
ALLOWED = {"mcq_ext": {"mcq_ext", "numpy"}, "mcq": {"mcq", "mcq_ext", "numpy", "scipy", "safetensors"}}
ALLOWED_IN_CLI = {"typer", "tqdm"}


def sources(*packages):
    files = [(package, path) for package in packages for path in sorted(FOLDERS[package].rglob("*.py"))]
    return [pytest.param(package, path, id=str(path.relative_to(ROOT))) for package, path in files]


def imported_names(tree):
    """All imports as dotted names, such as ``mcq.codes.Codes``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_levels(path):
    return {name.partition(".")[0] for name in imported_names(ast.parse(path.read_text()))}


@pytest.mark.parametrize(("package", "path"), sources("mcq_ext", "mcq"))
def test_lower_layers_import_only_what_they_may(package, path):
    allowed = ALLOWED[package] | (ALLOWED_IN_CLI if path == ROOT / "mcq" / "cli.py" else set())
    assert top_levels(path) - sys.stdlib_module_names <= allowed


@pytest.mark.parametrize(("package", "path"), sources(*(path.name for path in ADAPTERS)))
def test_adapters_keep_apart(package, path):
    others = {adapter.name for adapter in ADAPTERS} - {package}
    assert not top_levels(path) & (others | {"adapters"})


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(("package", "path"), sources(*(path.name for path in ADAPTERS)))
def test_adapters_use_public_names_only(package, path):
    tree = ast.parse(path.read_text())
    ours = [name.split(".") for name in imported_names(tree) if name.partition(".")[0] in ("mcq", "mcq_ext")]
    assert not [parts for parts in ours if any(map(is_private, parts))]
    bound = {parts[-1] for parts in ours} | {parts[0] for parts in ours}
    touched = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)]
    assert not [ast.unparse(node) for node in touched if ast.unparse(node).partition(".")[0] in bound]


def test_adapters_is_a_plain_folder():
    assert not (ROOT / "adapters" / "__init__.py").exists()
