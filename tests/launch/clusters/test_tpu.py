"""Trainings on Cloud TPU: the commands, their quoting, and refused options."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launch.clusters.cloud_tpu import (
    FILES,
    INSTALL,
    ROOT,
    make_tpu_commands,
)
from launch.clusters.jobs import CODE
from launch.clusters.tpu_types import find_accelerator
from tests.launch.clusters.slices import options
from tests.launch.programs import (
    finish,
    sentence,
    start,
    succeed,
)

GOLDEN = Path(__file__).parent / "golden"
QUEUED_FLAGS = [
    "--name=lrcn",
    "--zone=us-west4-a",
    "--type=v5litepod-16",
    "--project=research",
    "--queued",
    "--spot",
    "--setup=sudo mkdir -p /nfs && sudo mount 10.0.0.2:/share /nfs",
    "--delete",
    "--",
    "--config=experiments/lrcn_ucf101.py",
    "--workdir=/nfs/runs/lrcn",
    "--config.data.root=/nfs/it's here",
]


@pytest.mark.slow
def test_the_program_prints_the_golden_commands() -> None:
    printed = start("tpu", "--dry_run", *QUEUED_FLAGS)
    wrong = start("tpu", "--dry_run", "--name=a", "--zone=us-west4-a", "--type=v5e-16", "--", "-x")
    assert succeed(printed) == (GOLDEN / "tpu_queued.txt").read_text()
    assert "did you mean 'v5litepod'?" in sentence(finish(wrong))


def test_commands_of_one_machine_are_the_golden_ones() -> None:
    commands = make_tpu_commands(options(repository="https://example.org/flaxnets.git"))
    lines = (GOLDEN / "tpu_single.txt").read_text().splitlines()
    assert [shlex.join(command) for command in commands] == lines
    assert [shlex.split(line) for line in lines] == commands


def test_commands_follow_gclouds_reference() -> None:
    """Flags of https://cloud.google.com/sdk/gcloud/reference/compute/tpus, copied by hand."""
    wide = {"zone", "quiet", "project"}
    known = {
        ("tpu-vm", "create"): wide | {"version", "accelerator-type", "spot"},
        ("tpu-vm", "ssh"): wide | {"worker", "command"},
        ("tpu-vm", "scp"): wide | {"worker", "recurse"},
        ("tpu-vm", "delete"): wide,
        ("queued-resources", "create"): wide
        | {"node-id", "runtime-version", "accelerator-type", "spot"},
        ("queued-resources", "delete"): wide | {"force"},
    }
    required = {
        ("tpu-vm", "create"): {"zone", "version"},
        ("queued-resources", "create"): {"zone", "runtime-version", "accelerator-type", "node-id"},
    }
    seen = set()
    for queued in (False, True):
        shared = {"setup": ["true"], "arguments": ["--workdir=/nfs/a"]}
        given = options(queued=queued, spot=True, delete=True, project="p", **shared)
        for command in make_tpu_commands(given):
            if command[0] == "sh":
                continue
            assert command[:3] == ["gcloud", "compute", "tpus"]
            kind = (command[3], command[4])
            flags = {a[2:].partition("=")[0] for a in command[5:] if a.startswith("--")}
            assert flags <= known[kind], command
            assert flags >= required.get(kind, set()), command
            seen.add(kind)
    assert seen == set(known)


@pytest.mark.stress
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud on this machine")
@pytest.mark.parametrize("queued", [False, True])
def test_gcloud_itself_parses_the_commands(
    queued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    given = options(
        queued=queued, spot=True, delete=True, setup=["true"], arguments=["--workdir=/nfs/a"]
    )
    checked = [
        shlex.join(command) for command in make_tpu_commands(given) if command[0] == "gcloud"
    ]
    for line in (*checked, checked[0] + " --no-such-flag"):
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"]
        done = subprocess.run(lint, capture_output=True, text=True)
        (found,) = json.loads(done.stdout)
        assert found["success"] == ("--no-such-flag" not in line), found["error_message"]


def inner(command: list[str]) -> str:
    """Returns the script that a command runs in the machines' shells."""
    (line,) = [argument for argument in command if argument.startswith("--command=")]
    return line.removeprefix("--command=")


def test_flags_reach_the_program_as_they_are(tmp_path: Path) -> None:
    arguments = ["--workdir=runs/a b", '--config.note=it\'s $HOME; `x` "y" \\ *\n(1)', "--", "ü"]
    line = shlex.join(make_tpu_commands(options(arguments=arguments))[-1])
    python = tmp_path / "flaxnets/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    # Quoted twice: for the shell that runs a printed line, and for the machine's shell.
    pasted = shlex.split(line)
    done = subprocess.run(["sh", "-c", inner(pasted)], cwd=tmp_path, capture_output=True, text=True)
    ran = ["-u", "-m", "launch.train", *arguments, "--cluster=none"]
    assert json.loads(done.stdout) == ran, done.stderr


def test_what_is_copied_and_installed_exists() -> None:
    commands = make_tpu_commands(options())
    (scp,) = [command for command in commands if command[4] == "scp"]
    positional = [argument for argument in scp[5:] if not argument.startswith("-")]
    assert positional == [*CODE, *FILES, "smoke:flaxnets/"]
    assert all((ROOT / name).exists() for name in positional[:-1])
    extras = re.search(r"'\.\[(.*)\]'", INSTALL)
    assert extras
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("v5litepod-1", 1),
        ("v5litepod-8", 1),
        ("v5litepod-16", 4),
        ("v6e-256", 64),
        ("v4-8", 1),
        ("v4-16", 2),
        ("v5p-32", 4),
        ("v5p-12288", 1536),
    ],
)
def test_accelerator_types_have_their_machines(value: str, hosts: int) -> None:
    """Hosts of https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e."""
    assert find_accelerator(value)[1] == hosts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Lrcn"}, "name: expected up to 63 lower-case letters"),
        ({"zone": "us-west4"}, "zone: expected one as us-west4-a, received 'us-west4'"),
        ({"type": "v5e-16"}, "type: unknown 'v5e' in 'v5e-16'; did you mean 'v5litepod'"),
        ({"type": "a100"}, "type: expected one of v4-N, v5litepod-N, v5p-N, v6e-N, received"),
        ({"type": "v5litepod-12"}, "expected v5litepod-N with N chips: 1, 4, 8, 16"),
        ({"type": "v6e-512"}, "expected v6e-N with N chips"),
        ({"type": "v5p-4"}, "expected v5p-N with N cores: a multiple of 8, up to 12288"),
        ({"type": "v4-0"}, "expected v4-N with N cores: a multiple of 8, up to 8192"),
        ({"repository": "--upload-pack=x"}, "repository: expected a URL"),
        ({"arguments": []}, "expected the flags of launch.train after --, received none"),
        ({"arguments": ["-x"]}, "expected --workdir=DIR"),
        ({"arguments": ["--workdir", "gs://bucket/x"]}, "--workdir: expected a path .* the URL"),
        ({"arguments": ["--workdir=a", "--cluster=none"]}, "--cluster: set by the launcher"),
        ({"type": "v6e-16"}, "workdir: expected an absolute path .* the 4 machines share it"),
        ({"delete": True}, "workdir: expected an absolute path .* since it outlives them"),
        ({"delete": True, "arguments": ["--workdir=/a"]}, "setup: expected a command that mounts"),
        ({"type": "v6e-16", "program": "launch.plan"}, "launch.evaluate for 4 processes"),
    ],
)
def test_what_cloud_tpu_would_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)
