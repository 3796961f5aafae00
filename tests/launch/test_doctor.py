"""The doctor says what is missing, and works where other programs refuse to start."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from launch import doctor
from launch.doctor import BROKEN, MISSING, OK, Limits, Row, cgroup_limits, import_all
from tests.launch.programs import ROOT, start, succeed


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_table_of_this_environment() -> None:
    text = succeed(start("doctor"))
    assert text.endswith("\nThe base installation works.\n")
    rows = dict(line[2:].split(None, 1) for line in text.splitlines() if line.startswith("  "))
    assert rows["jax"].split() == ["ok", importlib.metadata.version("jax")]
    assert rows["JAX"].startswith("ok")
    assert "H.264" in rows["video"]
    assert "JPEG, PNG" in rows["images"]
    assert "GiB" in rows["memory"]
    assert rows["dev"].startswith("ok")


@pytest.mark.subprocess
def test_it_runs_in_an_environment_without_packages(tmp_path: Path) -> None:
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / "python", "-m"]
    refused, told = (
        subprocess.run(
            [*map(str, command), name],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        for name in ("launch.plan", "launch.doctor")
    )
    assert refused.returncode == 1
    assert "are not installed" in refused.stderr
    assert told.returncode == 1
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    assert "  jax                   BROKEN   not installed" in lines
    assert "                                 by  pip install -c constraints.txt -e ." in lines
    assert any(line.startswith("  disk, this folder     ok") for line in lines)
    assert lines[-1].startswith("The base installation is broken: jax, flax, ")


def test_a_module_that_fails_or_dies_is_told_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies_at_once.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    (tmp_path / "wants_another.py").write_text("print('[1')\nimport no_such_module\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reasons = import_all(["json", "dies_at_once", "wants_another", "math"])
    assert reasons == {
        "json": "",
        "dies_at_once": "killed by signal 11",
        "wants_another": "ModuleNotFoundError: No module named 'no_such_module'",
        "math": "",
    }


def test_devices_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 0.5)
    monkeypatch.setattr(doctor, "_DEVICES", "import time; time.sleep(60)")
    [row] = [row for row in doctor.check_devices() if row.name == "JAX"]
    assert row == Row("JAX", BROKEN, "finds no device: no answer within 0 s")


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "": [],
        "here": [doctor.Requirement("numpy", (), "numpy>=2")],
        "gone": [
            doctor.Requirement("numpy", (), "numpy>=2"),
            doctor.Requirement("no-such-package", (), "no-such-package"),
        ],
    }
    monkeypatch.setattr(doctor, "read_requirements", lambda: known)
    here, gone = doctor.check_extras()
    assert (here.name, here.state) == ("here", OK)
    assert (gone.state, gone.found) == (MISSING, "without no-such-package")
    assert gone.command == "pip install -c constraints.txt -e '.[gone]'"


def test_extras_of_packages_are_looked_into() -> None:
    requirements = doctor.read_requirements()
    assert requirements[""][0].name == "jax"
    [cuda] = requirements["cuda"]
    assert cuda.extras == ("cuda13",)
    # The extra brings packages beside jax; without it, jax itself has none that are missing.
    names = {
        needed.name
        for text in importlib.metadata.requires("jax") or ()
        if (needed := doctor._requirement(text, cuda.extras))
    }
    assert any("cuda13" in name for name in names)
    assert doctor.missing_packages(doctor.Requirement("jax", (), "jax")) == []


def test_limits_of_control_groups(tmp_path: Path) -> None:
    two = tmp_path / "two"
    (two / "job" / "step").mkdir(parents=True)
    (two / "job" / "memory.max").write_text("4294967296\n")
    (two / "job" / "step" / "memory.max").write_text("max\n")
    (two / "job" / "step" / "cpu.max").write_text("150000 100000\n")
    (two / "job" / "cpu.max").write_text("max 100000\n")
    assert cgroup_limits(two, "0::/job/step\n") == Limits(2**32, 1.5)

    one = tmp_path / "one"
    for controller, name, value in (
        ("memory", "memory.limit_in_bytes", 2**31),
        ("cpu", "cpu.cfs_quota_us", 50_000),
        ("cpu", "cpu.cfs_period_us", 100_000),
    ):
        (one / controller / "docker").mkdir(parents=True, exist_ok=True)
        (one / controller / "docker" / name).write_text(f"{value}\n")
    (one / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    own = "4:memory:/docker\n3:cpu,cpuacct:/docker\n"
    assert cgroup_limits(one, own) == Limits(2**31, 0.5)
    (one / "cpu" / "docker" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_limits(one, own).cores is None
    assert cgroup_limits(tmp_path / "none", "") == Limits()


def test_only_the_doctor_starts_in_a_broken_environment() -> None:
    assert launch.is_doctor(["python", "-X", "utf8", "-m", "launch.doctor"])
    assert not launch.is_doctor(["python", "-m", "launch.train", "launch.doctor"])
    assert not launch.is_doctor(["python", "-m", "launch"])
    assert launch.is_doctor(["python", "-um", "launch.doctor"])
    assert launch.is_doctor(["python", "-mlaunch.doctor"])
    assert not launch.is_doctor(["python", "-Imlaunch.runs", "-m", "launch.doctor"])
