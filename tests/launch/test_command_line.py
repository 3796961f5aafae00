"""The command line explains itself: lists of programs and fields, from any folder."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.__main__ import GROUPS, describe, find_programs
from launch.program import CALLS, read_calls, record_call
from tests.launch.programs import MOVING_SHAPES, ROOT, finish, sentence, start

LRCN = f"--config={ROOT / 'experiments' / 'lrcn_ucf101.py'}"


def test_every_program_is_listed_once_with_a_sentence() -> None:
    programs = find_programs(ROOT / "launch")
    assert {"train", "evaluate", "predict", "track"} <= set(programs)
    assert not {"program", "processes", "explain", "plan_report"} & set(programs)
    lines = list(describe(programs))
    for name, text in programs.items():
        assert text.endswith("."), name
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
    assert all(f"\n{group}" in lines for group in GROUPS)
    assert any("experiments/moving_shapes.py: CNN, RNN or both" in line for line in lines)


def test_programs_that_no_group_names_are_listed_too() -> None:
    assert list(describe({"train": "Trains.", "new": "Is new."}))[1:5] == [
        "\nStart",
        "  train  Trains.",
        "\nOthers",
        "  new    Is new.",
    ]


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_fields_of_an_experiment_and_its_values_need_no_workdir() -> None:
    done = finish(start("train", "--config=experiments/lrcn_ucf101.py", "--help"))
    assert done.returncode == 0, done.stderr
    assert "model.recurrent: The recurrent layer over time" in done.stdout
    assert "--config.model.recurrent.cell=lstm  (str)" in done.stdout
    assert "elman, lstm, gru, convlstm" in " ".join(done.stdout.split())
    shown = finish(start("train", MOVING_SHAPES, "--show", "--config.batch_size=4"))
    assert shown.returncode == 0, shown.stderr
    assert "--config.batch_size=4  # in the experiment: 8" in shown.stdout.splitlines()


def test_commands_of_docstrings_keep_their_lines() -> None:
    files = [*(ROOT / "launch").glob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    for file in files:
        doc = ast.get_docstring(ast.parse(file.read_text()), clean=False) or ""
        assert not re.search(r"\S {4,}--\w", doc), file


@pytest.mark.subprocess
@pytest.mark.parametrize(
    "command", ["launch", f"launch.train {LRCN} --help", f"launch.train {LRCN} --show"]
)
def test_a_reader_that_leaves_is_no_error(command: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    assert program.stderr.read() == b""
    program.stderr.close()
    assert program.wait() in (0, 141)


@pytest.mark.subprocess
def test_a_program_that_is_not_there_names_the_nearest() -> None:
    for given, meant in (("evalute", "launch.evaluate"), ("--foo", "listed by python -m launch")):
        done = subprocess.run(
            [sys.executable, "-m", "launch", given], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.strip().endswith(meant)


@pytest.mark.slow
@pytest.mark.subprocess
def test_flags_that_are_missing_or_of_other_programs(tmp_path: Path) -> None:
    wrong = finish(start("train", MOVING_SHAPES, f"--workdir={tmp_path}", "--lr", "0.1"))
    assert sentence(wrong) == (
        "error: --lr: no such flag; did you mean --config.optimizer.learning_rate?"
    )
    absent = finish(start("train", f"--workdir={tmp_path}"))
    assert "--config: expected an experiment, as --config=experiments/" in sentence(absent)
    field = finish(start("train", MOVING_SHAPES, "--config.optimizer.lr=1"))
    assert sentence(field).endswith("did you mean 'optimizer.learning_rate'?")
    tracker = "wandbb" if importlib.util.find_spec("wandb") else "wandb"
    absent = finish(start("train", MOVING_SHAPES, f"--workdir={tmp_path}", f"--tracker={tracker}"))
    assert "did you mean 'wandb'?" in sentence(absent) or "-e '.[wandb]'" in sentence(absent)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with packages of this repository's names, which fail when they are imported."""
    for name in ("data", "experiments", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return tmp_path


def run_in(folder: Path, path: Sequence[Path], *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a working directory and a ``PYTHONPATH``."""
    variables = {"PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("in_front", [True, pytest.param(False, marks=pytest.mark.stress)])
def test_packages_of_other_people_do_not_get_in_the_way(foreign: Path, in_front: bool) -> None:
    path = [foreign, ROOT] if in_front else [ROOT, foreign]
    done = run_in(foreign, path, "flaxnets", "train", LRCN, "--show")
    assert done.returncode == 0, done.stderr
    assert "--config.name=LRCN" in done.stdout
    # With python -m, Python itself takes a foreign package launch; other ones are passed over.
    (foreign / "launch" / "__init__.py").unlink()
    done = run_in(foreign, path, "launch.train", LRCN, "--show")
    assert done.returncode == 0, done.stderr


@pytest.mark.subprocess
def test_packages_that_were_imported_before_are_named(foreign: Path) -> None:
    (foreign / "data" / "__init__.py").write_text("")
    (foreign / "sitecustomize.py").write_text("import data\n")
    done = run_in(ROOT, [foreign], "launch.train", LRCN, "--show")
    expected = f"expected the package data of {ROOT}, received {foreign / 'data' / '__init__.py'}"
    assert done.returncode == 1
    assert expected in done.stderr


def test_a_workdir_keeps_the_commands_that_trained_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_calls(tmp_path) == []
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir=a b", "--config=x.py"])
    record_call(tmp_path)
    with (tmp_path / CALLS).open("a") as file:
        file.write('{"time": "cut off by a ki\n[1]\n')
    record_call(tmp_path)
    calls = read_calls(tmp_path)
    assert len(calls) == 2
    assert all(call["command"].endswith("'--workdir=a b' --config=x.py") for call in calls)
    assert all(call["time"].startswith("20") for call in calls)
