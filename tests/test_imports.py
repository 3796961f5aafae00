"""Imports between the packages: the data go in one direction."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"flaxnets", "data", "experiments", "launch"}
NEVER = {"torch", "torchvision", "tensorflow"}

# Folder -> what its files may import of this repository.
ALLOWED = {
    "data": {"data"},
    "flaxnets": {"flaxnets"},
    "experiments": {"flaxnets", "data", "experiments"},
    "launch": {"flaxnets", "launch"},
}
# Inside flaxnets: folder -> the folders beside it that it may import.
ALLOWED_INSIDE = {
    "configuration.py": set(),
    "typing.py": set(),
    "layers": {"layers"},
    "encoders": {"layers", "encoders"},
    "recurrent": {"layers", "recurrent"},
    "heads": {"layers", "heads"},
    "decoders": {"layers", "recurrent", "decoders"},
    "models": {"layers", "encoders", "recurrent", "heads", "decoders", "models"},
    "tasks": {"layers", "decoders", "tasks", "metrics", "training"},
    "training": {"tasks", "training", "metrics"},
    "inference": {"encoders", "decoders", "models", "tasks", "training", "inference", "metrics"},
    "metrics.py": {"layers"},
}
# What every file inside flaxnets may import.
BASE = {"typing", "configuration"}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The folder that exports copy: its files import each other by relative names.
            package = "flaxnets.inference.runtime." if node.level else ""
            assert node.level == 0 or path.parent.name == "runtime", f"{path}: a relative import"
            names |= {f"{package}{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_packages_import_only_what_comes_before_them(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[0] for name in imported(path)} & TOP_LEVEL
        assert ours <= ALLOWED[folder], f"{path} imports {ours - ALLOWED[folder]}"


@pytest.mark.parametrize("folder", sorted(ALLOWED_INSIDE))
def test_rooms_of_flaxnets_import_only_what_comes_before_them(folder: str) -> None:
    base = ROOT / "flaxnets" / folder
    files = [base] if base.is_file() else list(base.rglob("*.py"))
    assert files
    for path in files:
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("flaxnets.")}
        allowed = ALLOWED_INSIDE[folder] | BASE
        assert rooms <= allowed, f"{path}: {rooms - allowed}"


def test_data_and_flaxnets_keep_to_their_libraries() -> None:
    for folder, forbidden in (
        ("data", {"jax", "flax", "optax", "absl"}),
        ("flaxnets", {"absl", "grain", "tensorflow_datasets", "ml_collections"}),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            foreign = {name.split(".")[0] for name in imported(path)} & forbidden
            assert not foreign, f"{path} imports {foreign}"


def test_neither_pytorch_nor_tensorflow_is_needed() -> None:
    for folder in ALLOWED:
        for path in (ROOT / folder).rglob("*.py"):
            if "benchmarks" in path.parts:  # They compare with PyTorch where it is installed.
                continue
            foreign = {name.split(".")[0] for name in imported(path)} & NEVER
            assert not foreign, f"{path} imports {foreign}"


def test_the_runtime_of_exports_imports_nothing_of_the_repository() -> None:
    files = list((ROOT / "flaxnets" / "inference" / "runtime").glob("*.py"))
    assert files
    allowed = {"jax", "jaxlib", "numpy", "PIL", "safetensors", "av", "flaxnets"}
    for path in files:
        for name in imported(path):
            first = name.split(".")[0]
            assert first in allowed | set(sys.stdlib_module_names), f"{path} imports {name}"
            assert first != "flaxnets" or name.startswith("flaxnets.inference.runtime."), path
