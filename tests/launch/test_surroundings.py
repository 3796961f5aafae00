"""Programs in poor surroundings: closed streams, an ASCII locale, no device, a full terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

import launch
from launch import program
from tests.launch.programs import ROOT

REGRESSION = ("--config=tests/launch/regression.py", "--config.num_steps=2")


def further(value: str) -> Any:
    """Marks a value of the same kind, as each starts a program."""
    return pytest.param(value, marks=pytest.mark.stress)


def run(
    name: str, *arguments: str, redirections: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program through the shell, with redirections as ``2>&-``."""
    command = [sys.executable, "-m", f"launch.{name}", *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        timeout=300,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize(
    "redirections", ["<&- >&- 2>&-", further("2>&-"), further("> /dev/full 2>&1")]
)
def test_a_training_needs_no_open_streams(redirections: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = run("train", *REGRESSION, f"--workdir={workdir}", redirections=redirections)
    assert done.returncode == 0, done.stderr
    # No library wrote its messages into a file that has the number of a closed stream.
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 2]
    assert json.loads((workdir / "config.json").read_text())["config"]["num_steps"] == 2
    assert (workdir / "checkpoints/2").is_dir()


@pytest.mark.subprocess
@pytest.mark.parametrize("encoding", ["C", further("de_DE.ISO-8859-1")])
def test_names_are_utf8_in_any_locale(encoding: str, tmp_path: Path) -> None:
    workdir = tmp_path / "käse – मक्खन"
    workdir.mkdir()
    config = {"best_metric": "loss", "best_mode": "min", "eval_split": "test", "num_steps": 4}
    record = {"experiment": "käse.py", "config": config}
    (workdir / "config.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    variables = {"LC_ALL": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("runs", str(tmp_path), **variables)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("käse – मक्खन  "))
    assert "not begun" in line
    assert " käse.py " in line


def test_huge_pages_are_asked_for_where_glibc_and_linux_can(tmp_path: Path) -> None:
    enabled = tmp_path / "enabled"

    def tunables(modes: str, library: str, value: str = "") -> str | None:
        enabled.write_text(f"{modes}\n")
        return launch.huge_page_tunables(value, enabled=enabled, library=library)

    asks = "always [madvise] never"
    assert tunables(asks, "glibc 2.36") == "glibc.malloc.hugetlb=1"
    assert tunables(asks, "glibc 2.36", "a.b=3") == "a.b=3:glibc.malloc.hugetlb=1"
    assert tunables(asks, "glibc 2.36", "glibc.malloc.hugetlb=0") is None
    assert tunables("[always] madvise never", "glibc 2.36") is None
    assert tunables("always madvise [never]", "glibc 2.36") is None
    assert tunables(asks, "glibc 2.31") is None
    assert tunables(asks, "musl 1.2") is None
    absent = tmp_path / "absent"
    assert launch.huge_page_tunables("", enabled=absent, library="glibc 2.36") is None


def test_python_is_restarted_once_whatever_becomes_of_the_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: starts.append(command))
    monkeypatch.setattr(launch, "needs_utf8", lambda: True)
    for name in ("PYTHONUTF8", launch.TUNABLES, launch.RESTARTED):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        launch.restart_python()
        monkeypatch.delenv(launch.TUNABLES, raising=False)  # As for programs with capabilities.
    (command,) = starts
    assert command[:3] == [sys.executable, "-X", "utf8"]
    monkeypatch.setenv(launch.RESTARTED, "1")  # Of the process that started this one.
    monkeypatch.setattr(sys, "executable", "")
    launch.restart_python()
    assert len(starts) == 1


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(
    launch.huge_page_tunables("") is None, reason="Linux or glibc has no huge pages to ask for"
)
def test_programs_start_with_huge_pages() -> None:
    done = run("doctor", GLIBC_TUNABLES="")
    line = next(line for line in done.stdout.splitlines() if "huge pages" in line)
    assert "of these programs, GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in line


@pytest.mark.subprocess
@pytest.mark.parametrize("platform", ["cuda", further("tpu"), further("gpux")])
def test_a_platform_without_a_device_is_one_sentence(platform: str, tmp_path: Path) -> None:
    done = run("train", *REGRESSION, f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS=platform)
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if "error" in line]
    assert error.startswith(f"error: JAX_PLATFORMS={platform}: expected a platform that JAX has")
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--config.optimizer.frozen=encoder", "--config.optimizer.frozen=head"), ("head",)),
        (("--config.optimizer.frozen", "encoder", "--config.optimizer.frozen=head"), ("head",)),
        (("--config.optimizer.frozen=('a','b')", "--config.optimizer.frozen=('c',)"), ("c",)),
        (("--config.optimizer.frozen=a", "--config.optimizer.frozen=()"), ()),
        (("--config.optimizer.frozen=a,b/c",), ("a", "b/c")),
        (("--config.optimizer.frozen=23,04",), ("23", "04")),
        (("--config.optimizer.frozen=00,1_0",), ("00", "1_0")),
        (("--config.optimizer.frozen=7",), ("7",)),
        (("--config.optimizer.frozen=1e3,01.50,None",), ("1e3", "01.50", "None")),
        (("--config.optimizer.frozen=",), ()),
    ],
)
def test_of_a_tuple_that_is_given_again_the_last_counts(
    arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    argv = ["program", "--config=tests/launch/regression.py", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    values(argv)
    assert program.conform_tuples(values.config).optimizer.frozen == expected


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120,160", (120, 160)),
        ("(120, 160.0)", (120, 160)),
        ("240", "expected 2 values, received"),
        ("", "expected 2 values, received"),
        ("240,wide", "expected values of type int, received 'wide'"),
        ("240.5,320", "expected values of type int, received '240.5'"),
        ("(240.5,320)", r"expected values of type int, received 240\.5"),
    ],
)
def test_values_of_a_tuple_are_of_the_field_s_type(
    value: str, expected: tuple[int, int] | str
) -> None:
    argv = ["program", "--config=experiments/lrcn_ucf101.py", f"--config.data.frame_size={value}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    values(argv)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=rf"^data\.frame_size: {expected}"):
            program.conform_tuples(values.config)
    else:
        assert program.conform_tuples(values.config).data.frame_size == expected
