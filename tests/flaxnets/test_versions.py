"""Bounds of Python and JAX: checked at import, and those of pyproject.toml."""

import re
import sys
import tomllib

import jax
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flaxnets.versions import JAX, PYTHON, check_versions
from tests.launch.programs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def specifier(bounds: tuple[tuple[int, ...], tuple[int, ...]]) -> SpecifierSet:
    first, end = (".".join(map(str, version)) for version in bounds)
    return SpecifierSet(f">={first},<{end}")


def test_what_the_tests_run_on_is_allowed() -> None:
    check_versions()


@pytest.mark.parametrize("version", [(0, 10, 2), (0, 11, 0), (0, 12, 0, 1), (0, 12, 9)])
def test_jax_within_the_bounds(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    check_versions()


@pytest.mark.parametrize("version", [(0, 9, 9), (0, 10, 1), (0, 13, 0), (1, 0, 0)])
def test_jax_outside_the_bounds(monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    found = re.escape(".".join(map(str, version)))
    message = rf"^flaxnets needs JAX 0\.10\.2 or newer and older than 0\.13, found {found}; [^\n]*$"
    with pytest.raises(ImportError, match=message):
        check_versions()


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 15, 0)])
def test_python_outside_the_bounds(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(ImportError, match=r"^flaxnets needs Python 3\.11 or newer[^\n]*$"):
        check_versions()


def test_the_bounds_are_those_of_the_project() -> None:
    assert SpecifierSet(PROJECT["requires-python"]) == specifier(PYTHON)
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *extras["cuda"], *extras["tpu"]]
    bounds = [r.specifier for r in map(Requirement, named) if r.name == "jax"]
    assert bounds == [specifier(JAX)] * 3


def test_the_makefile_has_the_same_pythons() -> None:
    allowed = re.search(r"^ALLOWED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert allowed
    pythons = [f"3.{minor}" for minor in range(PYTHON[0][1], PYTHON[1][1])]
    assert allowed[1].split() == pythons


def test_constraints_name_versions_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = list(map(Requirement, lines))
    for minor in range(PYTHON[0][1], PYTHON[1][1]):
        environment = {"python_version": f"3.{minor}"}
        here = [p for p in pins if p.marker is None or p.marker.evaluate(environment)]
        names = [p.name for p in here]
        assert len(set(names)) == len(names), f"pinned twice on 3.{minor}"
        (pinned,) = [next(iter(p.specifier)).version for p in here if p.name == "jax"]
        assert specifier(JAX).contains(pinned)
