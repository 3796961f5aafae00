"""Paths and code of workdirs: local paths in any folder, no code that nobody allowed."""

import dataclasses
import json
import re
import shlex
import types
from pathlib import Path
from typing import Any

import pytest

from flaxnets.configuration import local_path
from flaxnets.training.config import Config, localize, set_runtime
from flaxnets.training.workdir import Workdir
from launch import program
from launch.program import ForeignCode, check_experiment, check_parts, config_of, load_experiment
from launch.sweeps.page import command
from tests.experiments.grid import OWN_CELL
from tests.launch.programs import finish, sentence, start

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.name for path in (ROOT / "experiments").glob("[a-z]*.py"))
MARKED = """
from pathlib import Path
Path(__file__).with_name("was_run").touch()
from experiments.moving_shapes import get_config
"""


def write_workdir(path: Path, experiment: str, **values: Any) -> Workdir:
    """Writes the ``config.json`` of a run of ``moving_shapes:smoke``."""
    config: Any = dataclasses.asdict(load_experiment(f"{ROOT}/experiments/moving_shapes.py:smoke"))
    config["model"]["recurrent"].update(values)
    path.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment, "config": config}
    (path / "config.json").write_text(json.dumps(record))
    return Workdir(path)


# -- Code.


def test_an_experiment_outside_of_the_repository_runs_only_if_it_is_allowed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(MARKED)
    inside = tmp_path / "run" / "inside.py"
    workdir = write_workdir(tmp_path / "run", f"{file}:smoke")
    inside.write_text(MARKED)
    with pytest.raises(ForeignCode, match=re.escape(f"add --allow_code={file}")):
        config_of(workdir)
    with pytest.raises(ForeignCode):
        config_of(workdir, allowed=[str(inside), "theirs"])
    for name in (f"{inside}", "../" * 20 + f"{file}".lstrip("/")):
        with pytest.raises(ForeignCode):
            config_of(write_workdir(tmp_path / "run", name))
    assert not list(tmp_path.rglob("was_run"))

    workdir = write_workdir(tmp_path / "run", f"{file}:smoke")
    assert config_of(workdir, allowed=[str(file)]).num_steps == 6
    assert (tmp_path / "was_run").exists()


def test_the_working_directory_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "experiments" / "moving_shapes.py"
    theirs.parent.mkdir()
    theirs.write_text(MARKED)
    (tmp_path / "other.py").write_text(MARKED)
    monkeypatch.chdir(tmp_path)
    config = config_of(write_workdir(tmp_path / "run", "experiments/moving_shapes.py:smoke"))
    assert config.num_steps == 6
    with pytest.raises(FileNotFoundError, match=r"give --experiment=FILE\[:variant\]"):
        config_of(write_workdir(tmp_path / "run", "other.py:smoke"))
    assert not list(tmp_path.rglob("was_run"))


def test_a_link_counts_as_the_file_that_it_names(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text(MARKED)
    link = tmp_path / "link.py"
    link.symlink_to(theirs)
    with pytest.raises(ForeignCode, match=re.escape(str(theirs))):
        config_of(write_workdir(tmp_path / "run", str(link)))
    link.unlink()
    link.symlink_to(ROOT / "experiments" / "moving_shapes.py")
    assert config_of(write_workdir(tmp_path / "run", f"{link}:smoke")).num_steps == 6


def test_the_flag_of_the_message_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    file = tmp_path / "their place; ls" / "theirs.py"
    file.parent.mkdir()
    file.write_text(MARKED)
    workdir = write_workdir(tmp_path / "run", f"{file}:smoke")
    with pytest.raises(ForeignCode) as caught:
        config_of(workdir)
    flag = shlex.split(str(caught.value).partition("add ")[2])
    assert flag == [f"--allow_code={file}"]


def test_a_sweep_from_elsewhere_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(MARKED)
    trial: Any = types.SimpleNamespace(user_attrs={"overrides": {"seed": 3}})
    settings = {"experiment": f"{tmp_path}/theirs.py:smoke", "config": {"num_steps": 7}}
    with pytest.raises(ForeignCode, match=r"study\.db: names .*theirs\.py as its experiment"):
        command(trial, settings, tmp_path)
    assert not (tmp_path / "was_run").exists()
    words = command(trial, settings, tmp_path, allowed=[str(tmp_path / "theirs.py")])
    assert {"--config.num_steps=7", "--config.seed=3"} <= set(words)


@pytest.mark.parametrize(
    "place",
    [
        "runs/other/theirs.py",
        ".venv/theirs.py",
        "mine/run/theirs.py",
        "experiments/.theirs/theirs.py",
        "env/lib/python3.12/site-packages/theirs.py",
    ],
)
def test_folders_of_runs_inside_the_repository_are_not_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = tmp_path / "repository"
    monkeypatch.setattr(program, "ROOT", root)
    for path in (root / place, root / "experiments" / "ours.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MARKED)
    record = root / "mine" / "run" / "config.json"
    with pytest.raises(ForeignCode):
        check_experiment(place, record)
    record.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere.json").touch()
    record.symlink_to(tmp_path / "elsewhere.json")  # The run is where the link is.
    with pytest.raises(ForeignCode):
        check_experiment(place, record)
    assert check_experiment("experiments/ours.py:x", record) == f"{root}/experiments/ours.py:x"


def test_another_experiment_may_be_named_in_place_of_the_recorded_one(tmp_path: Path) -> None:
    workdir = write_workdir(tmp_path / "run", "/gone/theirs.py:smoke")
    with pytest.raises(FileNotFoundError, match=r"no file /gone/theirs\.py"):
        config_of(workdir)
    assert config_of(workdir, experiment="experiments/moving_shapes.py:smoke").num_steps == 6


def test_parts_outside_of_the_repository_are_imported_only_if_they_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text(MARKED)
    (package / "cells.py").write_text(OWN_CELL)
    (tmp_path / "their_cell.py").write_text(MARKED + OWN_CELL)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = "experiments/moving_shapes.py:smoke"
    for cell in ("their_cell:LeakyCell", "their_package.cells:LeakyCell"):
        with pytest.raises(ForeignCode, match=f"recurrent.cell is '{cell}', which would import"):
            config_of(write_workdir(tmp_path / "run", experiment, cell=cell))
    assert not list(tmp_path.rglob("was_run"))
    workdir = write_workdir(tmp_path / "run", experiment, cell="their_cell:LeakyCell")
    for allowed in ("their_cell", "their_cell:LeakyCell", str(tmp_path / "their_cell.py")):
        config = config_of(workdir, allowed=[allowed])
    config.make_model()
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "value", ["os:abort", "sys:exit", "antigravity:fly", "subprocess:run", "numpy:load", "this:d"]
)
def test_modules_of_python_and_of_its_packages_are_no_parts(value: str) -> None:
    with pytest.raises(ForeignCode, match=f"add --allow_code={value.partition(':')[0]}"):
        check_parts({"model": {"parts": [{"cell": value}]}}, Path("run/config.json"))


def test_parts_of_flax_and_of_the_repository_and_other_texts_are_no_foreign_code() -> None:
    texts = [
        "http://a/b",
        "random: the baseline",
        "flax.linen:GRUCell",
        "flaxnets.recurrent.cells:LSTMCell",
        "LSTM: 3 layers",
        "a:b:c",
    ]
    texts += ["tests.experiments.grid:OWN_CELL", "no_such_module:Name", ":x", ".x:y", "/a/b:c"]
    check_parts({"a": texts, "b": {"c": 1, "d": None}}, Path("elsewhere/config.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": "6"}, "num_steps: expected a value of type int, received '6'"),
        ({"seed": True}, "seed: expected a value of type int, received True"),
        ({"ema_decay": None}, "ema_decay: expected a value of type float, received None"),
        ({"model": None}, "model: expected a value of type .*, received None"),
        ({"optimizer": {"frozen": "encoder"}}, "frozen: expected a value of type tuple, received"),
        ({"optimizer": {"multipliers": [1]}}, "multipliers: expected a value of type dict"),
        ({"optimizer": {"name": 3}}, "optimizer.name: expected a value of type str, received 3"),
    ],
)
def test_values_of_another_type_are_named_with_their_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    workdir = write_workdir(tmp_path, "experiments/moving_shapes.py:smoke")
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        config_of(workdir)


@pytest.mark.stress
@pytest.mark.subprocess
def test_no_program_runs_the_code_of_a_workdir(tmp_path: Path) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(MARKED)
    here = f"--workdir={write_workdir(tmp_path / 'run', str(file)).path}"
    commands = (
        ("evaluate",),
        ("predict", str(file)),
        ("caption", str(file)),
        ("export", "--part=encoder", f"--out={tmp_path / 'out.safetensors'}"),
        ("report",),
    )
    for name, *more in commands:
        error = sentence(finish(start(name, here, *more)))
        assert f"--allow_code={file}" in error, name
    assert not (tmp_path / "was_run").exists()


def test_every_program_that_reads_a_run_asks_what_may_run() -> None:
    for path in (ROOT / "launch").glob("*.py"):
        text = path.read_text()
        if path.name != "program.py":
            assert "config_of(" not in text, path
            assert ("program.define_run(" in text) == ("program.recorded_config(" in text), path


# -- Paths.


def test_a_home_folder_is_expanded_and_urls_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("out", "~/x") == f"{tmp_path}/x"
    for kept in ("", "x", "/a/b:c", "./~x", "c:/x", "a:b.mp4", "12:30 talk.mp4"):
        assert local_path("out", kept) == kept
    for url in ("gs://b/x", "s3://b", "HDFS://b", "https://x.org/y", "file:///x", "gs:/b/x"):
        with pytest.raises(ValueError, match=f"out: expected a path .*'{url}'; mount the storage"):
            local_path("out", url)
        with pytest.raises(ValueError, match="workdir: expected a path"):
            Workdir(Path(url))  # pathlib has removed one of the slashes.
    with pytest.raises(ValueError, match="no home folder for '~nobody_of_this_name/x'"):
        local_path("out", "~nobody_of_this_name/x")
    (tmp_path / "~no backup").touch()
    assert local_path("out", "~no backup") == "~no backup"
    with Workdir("~/run"):
        assert (tmp_path / "run" / "lock").exists()


PATH_NAMES = {"root", "cache", "annotations", "weights", "initialize_from", "start"}
PATH_NAMES |= {"compilation_cache"}


def path_fields(config: Any, prefix: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= path_fields(value, f"{prefix}{field.name}.")
        elif field.name in PATH_NAMES and isinstance(value, str):
            found.add(prefix + field.name)
    return found


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name != "__init__.py"])
def test_every_path_of_an_experiment_is_local(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "imagenet").mkdir()  # The name of weights all the same.
    base = load_experiment(str(ROOT / "experiments" / experiment))
    names = path_fields(base)
    encodes = hasattr(getattr(getattr(base, "model", None), "encoder", None), "weights")
    weights = {"model.encoder.weights"} if encodes else set()
    assert {"initialize_from", "compilation_cache"} | weights <= names
    for name in names:
        for text, expected in (
            ("~/x", f"{tmp_path}/x"),
            ("there", f"{tmp_path}/there"),
            ("imagenet", "imagenet" if name.endswith("weights") else f"{tmp_path}/imagenet"),
            ("gs://b/x", None),
        ):
            config = load_experiment(str(ROOT / "experiments" / experiment))
            set_runtime(config, f"{name}={text}")
            if expected is None:
                with pytest.raises(ValueError, match=f"{name}: expected a path on this machine"):
                    localize(config)
                with pytest.raises(ValueError, match=f"{name}: expected a path on this machine"):
                    config.validate()
                continue
            localize(config)
            owner: Any = config
            for part in name.split("."):
                owner = getattr(owner, part)
            assert owner == expected, name


def test_no_flag_that_is_a_path_is_a_plain_text() -> None:
    plain = re.compile(r'DEFINE_(?:multi_)?string\(\s*"(\w+)"')
    for path in (ROOT / "launch").glob("*.py"):
        names = set(plain.findall(path.read_text()))
        paths = {"workdir", "out", "attention", "space_file", "output", "experiment"}
        assert not names & paths, path


@pytest.mark.stress
@pytest.mark.subprocess
def test_programs_make_no_folder_of_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "--config=experiments/moving_shapes.py:smoke"
    names = {path.name for path in ROOT.iterdir()}
    for words in (
        ("train", config, "--workdir=gs://bucket/x"),
        ("train", config, "--workdir", "s3:/bucket/x"),
        ("train", config.replace("=", "=gs://"), f"--workdir={tmp_path}"),
        ("train", config, f"--workdir={tmp_path}", "--config.initialize_from=gs://bucket/x"),
        ("evaluate", f"--workdir={tmp_path}", "--out=gs://bucket/x.json"),
        ("evaluate", "--workdir=gs://bucket/x"),
    ):
        assert "expected a path on this machine, received the URL" in sentence(
            finish(start(*words))
        )
    assert {path.name for path in ROOT.iterdir()} <= names | {"__pycache__"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["", "./", "experiments/../", f"{ROOT}/"])
def test_a_run_records_its_experiment_so_that_any_folder_finds_it(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    name = program.recorded_name(f"{folder}experiments/moving_shapes.py:smoke")
    assert name == "experiments/moving_shapes.py:smoke"
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert program.recorded_name("mine.py:x") == f"{tmp_path}/mine.py:x"
    assert check_experiment(name, tmp_path / "run/config.json") == f"{ROOT}/{name}"
    assert isinstance(load_experiment(name), Config)


def rewritten(*argv: str) -> list[str]:
    return list(program._rewrite(["prog", *argv]))[1:]


def test_flags_of_the_configuration_in_a_program_that_reads_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program.flags, "FLAGS", {"override": None, "workdir": None})
    assert rewritten("--workdir=x", "--config.data.root=/b", "-config.a", "1", "file.avi") == [
        *("--workdir=x", "--override=data.root=/b", "--override=a=1", "file.avi"),
    ]
    assert rewritten("--config.a=b=c", "--", "--config.x=1") == [
        *("--override=a=b=c", "--", "--config.x=1"),
    ]


def test_the_experiment_of_the_command_line_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.flags, "FLAGS", {"config": None})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = "experiments/moving_shapes.py:smoke"
    assert rewritten(f"--config={name}", "--config.seed=1") == [
        *(f"--config={ROOT}/{name}", "--config.seed=1"),
    ]
    assert rewritten("--config", "~/mine.py:v") == [f"--config={tmp_path}/mine.py:v"]
    with pytest.raises(ValueError, match="--config: expected a path on this machine"):
        rewritten("--config=https://x.org/mine.py")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "moving_shapes.py").touch()  # One's own comes first.
    assert rewritten(f"--config={name}") == [f"--config={name}"]
