"""Commands for Cloud TPU, run by a fake gcloud whose machines are folders."""

import sys
from pathlib import Path
from typing import Any

import pytest

from launch.clusters.cloud_tpu import (
    MAX_FAILED_POLLS,
    TpuJob,
    delete_command,
    make_tpu_commands,
    run_commands,
)
from tests.launch.clusters.slices import options

GCLOUD = """#!{python}
# Two machines are two folders; a file holds the answers to describe, one per line.
import pathlib, shutil, subprocess, sys
root = pathlib.Path({root!r})
group, verb, *rest = sys.argv[3:]
flags = dict(a[2:].partition("=")[::2] for a in rest if a.startswith("--"))
with open(root / "log", "a") as log:
    log.write(f"{{group}} {{verb}}\\n")
workers = [root / "worker0", root / "worker1"]
if verb == "create":
    for worker in workers:
        worker.mkdir()
elif verb == "describe":
    first, *others = (root / "states").read_text().splitlines()
    (root / "states").write_text("\\n".join(others))
    if first == "fails":
        sys.exit(1)
    print(first)
elif verb == "scp":
    *sources, target = [a for a in rest if not a.startswith("--")]
    for worker in workers:
        for source in sources:
            subprocess.run(["cp", "-r", source, worker / target.partition(":")[2]], check=True)
elif verb == "ssh":
    for worker in workers:
        if code := subprocess.run(["sh", "-c", flags["command"]], cwd=worker).returncode:
            sys.exit(code)
elif verb == "delete":
    for worker in workers:
        shutil.rmtree(worker)
"""
# In place of Python and uv: makes an environment whose Python prints its arguments.
PYTHON3 = """#!/bin/sh
echo "$@" >> {root}/installed
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "$@" >> {root}/trained\\ntest -f launch/train.py || exit 9\\n' \
    > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the start of PATH with fake gcloud, python3 and sleep."""
    programs = {
        "gcloud": GCLOUD.format(python=sys.executable, root=str(tmp_path)),
        "python3": PYTHON3.format(root=tmp_path),
        "sleep": f"#!/bin/sh\necho $1 >> {tmp_path}/slept\n",
    }
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def queued(**changes: Any) -> TpuJob:
    """Options of two queued machines that are deleted in the end."""
    given: dict[str, Any] = {
        "type": "v4-16",
        "queued": True,
        "delete": True,
        "setup": ["echo ready > mounted"],
        "arguments": ["--workdir=/nfs/a"],
    }
    return options(**{**given, **changes})


def test_machines_are_made_trained_on_and_removed(cloud: Path) -> None:
    states = ["WAITING_FOR_RESOURCES", "fails", "PROVISIONING", "ACTIVE"]
    (cloud / "states").write_text("\n".join(states))
    assert run_commands(make_tpu_commands(queued())) == 0
    assert lines(cloud / "log") == [
        "queued-resources create",
        *["queued-resources describe"] * 4,
        *["tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh"],
        "queued-resources delete",
    ]
    assert len(lines(cloud / "slept")) == 3
    installed = lines(cloud / "installed")
    assert len(installed) == 6
    assert "-c constraints.txt -e .[pretrained,captions,tpu]" in installed[2]
    assert lines(cloud / "trained") == ["-u -m launch.train --workdir=/nfs/a --cluster=gcetpu"] * 2
    assert not (cloud / "worker0").exists()


@pytest.mark.parametrize("states", [["PROVISIONING", "FAILED"], ["fails"] * MAX_FAILED_POLLS])
def test_a_queue_that_gives_nothing_ends_the_commands(
    states: list[str], cloud: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (cloud / "states").write_text("\n".join(states))
    assert run_commands(make_tpu_commands(queued())) == 1
    assert lines(cloud / "log")[1:] == ["queued-resources describe"] * len(states)
    answer = "no answer" if states[-1] == "fails" else "FAILED"
    assert f"error: smoke will not start: {answer}" in capfd.readouterr().err


def test_the_first_failure_ends_the_commands(cloud: Path) -> None:
    failing = queued(queued=False, setup=["exit 7", "echo never > mounted"])
    assert run_commands(make_tpu_commands(failing)) == 7
    assert lines(cloud / "trained") == []
    # The machines still exist: the next attempt reuses them.
    (cloud / "log").unlink()
    again = queued(queued=False, create=False, setup=[])
    assert run_commands(make_tpu_commands(again)) == 0
    assert lines(cloud / "log")[0] == "tpu-vm ssh"
    assert lines(cloud / "log")[-1] == "tpu-vm delete"
    assert delete_command(failing) == make_tpu_commands(again)[-1]


def test_without_gcloud_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^gcloud is not on the PATH; .* --dry_run"):
        run_commands(make_tpu_commands(options()))
