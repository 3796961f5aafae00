"""Reports of complete, empty and broken workdirs, and the program."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flaxnets.training.config import describe_run
from flaxnets.training.workdir import Workdir, WorkdirError
from launch.program import load_experiment
from launch.reports import run_page
from launch.reports.run_page import write_report

ROOT = Path(__file__).parents[3]
EXPERIMENT = "experiments/moving_shapes.py:smoke"
METRICS = [
    {"step": 10, "split": "train", "loss": 2.0, "steps_per_second": 1.0},
    {"step": 10, "split": "validation", "loss": 1.8, "accuracy": 0.75},
]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    """A run that has written only its configuration."""
    monkeypatch.chdir(ROOT)
    with Workdir(tmp_path / "run") as claimed:
        claimed.claim(EXPERIMENT, load_experiment(EXPERIMENT))
    return claimed


def write_predictions(workdir: Workdir, split: str) -> None:
    config = load_experiment(EXPERIMENT)
    workdir.checkpoints.mkdir(exist_ok=True)
    workdir.record_run(describe_run(config))
    workdir.record_evaluated(split, config.describe_data(split))
    records = [
        {
            "index": index,
            "label": index,
            "prediction": 1,
            "probabilities": [0.3 if k == 1 else 0.1 for k in range(8)],
        }
        for index in range(8)
    ]
    path = workdir.predictions(split)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_an_empty_run_has_a_page(workdir: Workdir) -> None:
    path = write_report(workdir)
    assert path == workdir.path / "report.html"
    text = path.read_text()
    assert "No predictions for the split test" in text
    assert "no checkpoints" in text
    assert "No curves" in text


def test_a_run_with_predictions_has_all_parts(workdir: Workdir) -> None:
    write_predictions(workdir, "validation")
    lines = "".join(json.dumps(record) + "\n" for record in METRICS)
    (workdir.path / "metrics.jsonl").write_text(lines + '{"step": 30, "spl')
    os.utime(workdir.path / "metrics.jsonl", (0, 0))
    page = write_report(workdir, "validation", [{"Model": "CRNN"}]).read_text()
    text = " ".join(page.split()).replace("\u00a0", " ")
    assert "1 of 8 clips" in text
    assert "<dd>12.5 %</dd>" in text
    assert '<th scope="row">CRNN</th>' in text
    # One correct clip and six wrong ones are shown, with 8 frames each.
    assert page.count('<img src="data:image/jpeg') == 7 * 8
    assert "anticlockwise" in text
    assert "older than" not in text
    os.utime(workdir.predictions("validation"), (0, 0))
    (workdir.path / "metrics.jsonl").touch()
    assert "older than the last training record" in write_report(workdir, "validation").read_text()


def test_a_split_without_predictions_is_evaluated_first(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        def __init__(self, config: object, workdir: Workdir) -> None:
            self.workdir = workdir

        def evaluate(self, split: str) -> None:
            write_predictions(self.workdir, split)

    monkeypatch.setattr(run_page, "TrainedModel", Model)
    assert "1 of 8 clips" in write_report(workdir, "test").read_text()
    with pytest.raises(ValueError, match="--split=train: the training split has no end"):
        write_report(workdir, "train")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda w: (w.path / "config.json").unlink(), WorkdirError, "no config.json in it"),
        (lambda w: w.predictions("test").write_text("{}\n{"), ValueError, "no JSON records"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    workdir: Workdir, prepare: Callable[[Workdir], object], error: type[Exception], message: str
) -> None:
    workdir.predictions("test").parent.mkdir()
    prepare(workdir)
    with pytest.raises(error, match=message):
        write_report(workdir)


def test_an_empty_file_of_predictions_is_told(workdir: Workdir) -> None:
    workdir.predictions("test").parent.mkdir()
    workdir.predictions("test").touch()
    assert "holds no record" in write_report(workdir).read_text()


@pytest.mark.slow
def test_the_program_prints_the_path(workdir: Workdir) -> None:
    write_predictions(workdir, "test")
    command = [sys.executable, "-m", "launch.report", f"--workdir={workdir.path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(workdir.path / "report.html")
