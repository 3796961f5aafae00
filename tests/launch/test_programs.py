"""Programs from the command line: a mistake gives one sentence, correct flags work."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    sentence,
    start,
    succeed,
)

Done = subprocess.CompletedProcess[str]


def run_all(commands: Mapping[str, Sequence[str]]) -> dict[str, Done]:
    """Runs programs two at a time; most of their time is start-up."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda command: finish(start(*command)), commands.values())
        return dict(zip(commands, results, strict=True))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    path = tmp_path_factory.mktemp("programs") / "run"
    short = ("--config.num_steps=2", "--config.eval_every=2")
    done = finish(start("train", MOVING_SHAPES, f"--workdir={path}", *short))
    assert done.returncode == 0, done.stderr
    return path


WRONG_FLAGS: dict[str, tuple[Sequence[str], str]] = {
    "misspelt flag": (
        (MOVING_SHAPES.replace("config", "confg"),),
        "Unknown command line flag 'confg'. Did you mean: config ?",
    ),
    "misspelt field": (
        (MOVING_SHAPES, "--config.optimizer.learning_rat=1"),
        "--config.optimizer.learning_rat: no such field of the configuration; did you mean "
        "'optimizer.learning_rate'?",
    ),
    "misspelt field after a config apart": (
        ("--config", "experiments/moving_shapes.py:smoke", "--config.batch_sise=4"),
        "--config.batch_sise: no such field of the configuration; did you mean 'batch_size'?",
    ),
    "wrong type": ((MOVING_SHAPES, "--config.num_steps=many"), "--config.num_steps=many"),
    "value out of range": ((MOVING_SHAPES, "--config.num_steps=0"), "num_steps: expected at least"),
    "no config": ((), "--config: expected an experiment"),
    "no such file": (
        ("--config=experiments/moving_shape.py:smoke",),
        "no file experiments/moving_shape.py; expected the path of an experiment",
    ),
    "no such variant": (
        ("--config=experiments/moving_shapes.py:smoek",),
        "moving_shapes:smoek: no such variant; did you mean 'smoke'?",
    ),
    "no experiment": (("--config=flaxnets/metrics.py",), "get_config"),
    "positional argument": ((MOVING_SHAPES, "runs/there"), "unexpected arguments: runs/there"),
    "unknown kind of model": (
        (MOVING_SHAPES, "--config.model.recurrent.cell=lstn"),
        "model.recurrent.cell: unknown 'lstn'; did you mean 'lstm'?",
    ),
}


@pytest.mark.slow
def test_wrong_flags_of_train(tmp_path: Path) -> None:
    where = f"--workdir={tmp_path / 'run'}"
    done = run_all({name: ("train", *given, where) for name, (given, _) in WRONG_FLAGS.items()})
    for name, (_, expected) in WRONG_FLAGS.items():
        assert expected in sentence(done[name]), name
    # No run began, so correct flags can use the folder.
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {
        "lock",
        "lock.holder",
        "log.txt",
    }


def test_a_batch_that_the_devices_cannot_divide(tmp_path: Path) -> None:
    flags = (MOVING_SHAPES, f"--workdir={tmp_path / 'run'}", "--config.batch_size=12")
    error = sentence(finish(start("train", *flags, devices=8)))
    assert "batch_size: expected a multiple of the 8 devices, received 12; 8 or 16 would" in error


@pytest.mark.slow
def test_wrong_workdirs(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    before = (workdir / "config.json").read_bytes()
    held = tmp_path / "held"
    held.mkdir()
    here = f"--workdir={workdir}"
    with filelock.FileLock(held / "lock"):
        (held / "lock.holder").write_text("process 17 on elsewhere\n")
        done = run_all(
            {
                "difference": ("train", MOVING_SHAPES, here, "--config.optimizer.b1=0.5"),
                "in use": ("train", MOVING_SHAPES, f"--workdir={held}"),
                "a file": ("train", MOVING_SHAPES, f"--workdir={tmp_path / 'file'}"),
                "evaluate": ("evaluate", f"--workdir={tmp_path / 'empty'}"),
                "predict": ("predict", f"--workdir={tmp_path / 'none'}", str(tmp_path / "file")),
                "report": ("report", f"--workdir={tmp_path / 'empty'}"),
            }
        )
    difference = sentence(done["difference"])
    assert "holds a run of another configuration" in difference
    assert "  optimizer.b1: 0.9 there, 0.5 now" in difference.splitlines()
    assert "in use by another process (process 17 on elsewhere)" in sentence(done["in use"])
    assert "no folder that can be written to" in sentence(done["a file"])
    assert "no such folder; expected the workdir of a run" in sentence(done["predict"])
    for name in ("evaluate", "report"):
        assert "expected a workdir that launch.train made" in sentence(done[name])
    assert (workdir / "config.json").read_bytes() == before
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.slow
def test_wrong_questions_to_a_run(workdir: Path, tmp_path: Path) -> None:
    # The configuration of a run without checkpoints.
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(workdir / "config.json", fresh)
    here, clips = f"--workdir={workdir}", [str(tmp_path / f"{n}.avi") for n in range(4)]
    done = run_all(
        {
            "split": ("evaluate", here, "--split=tset"),
            "train": ("evaluate", here, "--split=train"),
            "step": ("evaluate", here, "--step=7"),
            "untrained": ("evaluate", f"--workdir={fresh}"),
            "clips": ("predict", here, *clips),
            "no clips": ("predict", here),
            "no video": ("predict", here, __file__, str(tmp_path)),
            "report of train": ("report", here, "--split=train"),
        }
    )
    assert "split: expected one of train, validation, test, received 'tset'" in sentence(
        done["split"]
    )
    assert "the training data have no end" in sentence(done["train"])
    assert "no checkpoint of step 7; there are 2" in sentence(done["step"])
    assert "no checkpoints; expected a workdir that has trained" in sentence(done["untrained"])
    error = sentence(done["clips"])
    assert "4 of 4 files do not exist" in error
    assert all(clip in error for clip in clips[:3])
    assert clips[3] not in error
    assert "expected paths of video files after the flags" in sentence(done["no clips"])
    assert "2 of 2 files could not be read" in sentence(done["no video"])
    assert "expected a video file, received a folder" in done["no video"].stdout
    assert "the training split has no end" in sentence(done["report of train"])
    assert not list(workdir.rglob("*.tmp"))
    assert not list(workdir.rglob("tset*"))


@pytest.mark.slow
def test_evaluate_and_report(workdir: Path, tmp_path: Path) -> None:
    out = tmp_path / "test.json"
    printed = json.loads(succeed(start("evaluate", f"--workdir={workdir}", f"--out={out}")))
    assert printed == json.loads(out.read_text())
    assert {"split": "test", "step": 2, "examples": 12, "skipped": 0}.items() <= printed.items()
    lines = (workdir / "predictions/test.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["index"] for record in records] == list(range(12))
    correct = [record["prediction"] == record["label"] for record in records]
    assert printed["accuracy"] == pytest.approx(sum(correct) / 12)
    page = Path(succeed(start("report", f"--workdir={workdir}")).strip())
    assert page == workdir / "report.html"
    assert "CRNN, smoke" in page.read_text()
    assert not list(workdir.rglob("*.tmp"))
