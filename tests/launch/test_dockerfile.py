"""Checks of the Dockerfile without building it."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from launch.clusters.jobs import CODE
from launch.clusters.jobset import HOME, USER
from tests.launch.programs import ROOT


def instructions() -> list[tuple[str, str]]:
    """Returns (instruction, arguments) with continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text()
    kept = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(kept))
    pairs = [line.partition(" ") for line in joined.splitlines()]
    return [(name, rest) for name, _, rest in pairs]


def only(name: str) -> str:
    (found,) = [rest for instruction, rest in instructions() if instruction == name]
    return found


def sources() -> list[str]:
    """Returns the paths that are copied into the image."""
    copied = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [source for *several, _ in copied for source in several]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    assert set(CODE) < set(sources())
    for source in sources():
        assert (ROOT / source).exists()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [line.removeprefix("!") for line in rules if line.startswith("!")]
    assert sorted(allowed) == sorted(sources())


def test_each_accelerator_installs_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pip,) = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    quoted = re.search(r'-e (".*")', pip)
    assert quoted
    assert "-c constraints.txt" in pip
    assert only("ARG") == "ACCELERATOR="
    for accelerator in ("", "cuda", "tpu"):
        environment = {"ACCELERATOR": accelerator, "PATH": "/usr/bin:/bin"}
        shell = subprocess.run(
            ["sh", "-c", f"echo {quoted[1]}"], env=environment, capture_output=True, text=True
        )
        extras = Requirement(shell.stdout.strip().replace(".", "flaxnets", 1)).extras
        assert extras == {"pretrained", "captions", *filter(None, [accelerator])}
        assert extras <= set(project["optional-dependencies"])


def test_pods_find_what_they_expect() -> None:
    assert only("WORKDIR") == HOME
    assert only("USER") == str(USER)
    entry = json.loads(only("ENTRYPOINT"))
    assert entry == ["tini", "--", "python", "-m"]
    (prepared,) = [rest for name, rest in instructions() if name == "RUN" and "useradd" in rest]
    assert f"--uid {USER}" in prepared
    assert " tini " in prepared
    version = re.fullmatch(r"python:3\.(\d+)-slim", only("FROM"))
    assert version
    assert 11 <= int(version[1]) <= 14


def test_programs_start_from_what_is_copied_alone(tmp_path: Path) -> None:
    for source in sources():
        (tmp_path / source).symlink_to(ROOT / source)
    script = "import data, experiments, flaxnets, launch.train; print(flaxnets.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "flaxnets/__init__.py"), done.stderr
