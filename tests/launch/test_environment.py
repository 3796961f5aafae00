"""Wrong environments end a program in one sentence."""

import importlib.metadata
import re
import subprocess
import sys

import jax
import pytest

import launch
from flaxnets.training.config import Config
from launch.program import explained_memory
from tests.launch.programs import ROOT


def test_this_environment_is_accepted() -> None:
    assert launch.find_problem() is None


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("optax", None, "optax is not installed in the environment "),
        ("jax", "0.4.30", "expected jax.*, received jax 0.4.30 in the environment "),
        ("flax", "0.1.0", "expected flax.*, received flax 0.1.0 in the environment "),
    ],
)
def test_missing_and_outdated_packages(
    name: str, version: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.version

    def fake(asked: str) -> str:
        if asked != name:
            return installed(asked)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    problem = launch.find_problem()
    assert problem is not None
    assert re.match(message, problem)


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    problem = launch.find_problem()
    assert problem is not None
    assert problem.startswith("expected Python 3.11 or newer, received ")


@pytest.mark.slow
def test_a_missing_extra_is_one_sentence_and_a_failed_import_is_not() -> None:
    script = """
from launch import program
def main(argv):
    {}
program.run(main)
"""
    ours = "raise ModuleNotFoundError('expected the extra x, found none')"
    results = [
        subprocess.run(
            [sys.executable, "-c", script.format(line)], cwd=ROOT, capture_output=True, text=True
        )
        for line in (ours, "import no_such_module")
    ]
    assert [done.returncode for done in results] == [1, 1]
    assert results[0].stderr.strip() == "error: expected the extra x, found none"
    assert "Traceback" in results[1].stderr


def test_exhausted_memory_is_one_sentence() -> None:
    config = Config(batch_size=64, accumulate_steps=2)
    told = "RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes.\nBufferAssignment: …"
    expected = (
        r"^out of memory with batch_size=64 and accumulate_steps=2: lower batch_size, raise "
        r"accumulate_steps .*remat.*RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 byt"
    )
    with pytest.raises(ValueError, match=expected), explained_memory(config):
        raise jax.errors.JaxRuntimeError(told)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained_memory(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
