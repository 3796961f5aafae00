"""Trackers: every record is sent once, and a service that fails ends no training."""

import importlib.util
import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flaxnets.training.metric_writer import MetricsWriter
from flaxnets.training.trackers import TRACKERS, Sender, follow
from flaxnets.training.workdir import Workdir
from tests.flaxnets.training.tiny import TinyConfig
from tests.launch.programs import MOVING_SHAPES, finish, start


class Recording:
    """A tracker that keeps what it is sent; ``log`` raises ``problems`` first."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.received: list[tuple[int, dict[str, float]]] = []
        self.problems: list[Exception] = []
        self.closed = 0

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        assert config["optimizer.learning_rate"] == 1e-3
        self.opened.append(run)
        return run or "first"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.problems:
            raise self.problems.pop(0)
        self.received.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run without records."""
    with Workdir(tmp_path / "run") as claimed:
        claimed.claim("tiny.py", TinyConfig())
    return tmp_path / "run"


def write(workdir: Path, resume_step: int, *records: tuple[int, str, float]) -> None:
    writer = MetricsWriter(workdir, resume_step=resume_step)
    for step, split, loss in records:
        writer.write(step, split, {"loss": loss})
    writer.close()


def test_each_record_is_sent_once_and_a_resumed_run_continues(workdir: Path) -> None:
    tracker = Recording()
    sender = Sender(workdir, "own", tracker, "p")
    sender.send()
    assert tracker.opened == []  # There is nothing to show yet.
    write(workdir, 0, (1, "train", 3.0), (2, "train", 2.0), (2, "validation", float("nan")))
    sender.send()
    sender.send()
    # Training died after step 2, and resumes from a checkpoint of step 1.
    again = Recording()
    write(workdir, 1, (2, "train", 2.0), (3, "train", 1.0))
    Sender(workdir, "own", again, "p").send()
    assert tracker.received == [(1, {"train/loss": 3.0}), (2, {"train/loss": 2.0}), (2, {})]
    assert again.received == [(3, {"train/loss": 1.0})]
    assert (tracker.opened, again.opened) == ([""], ["first"])


def ends_after(calls: int) -> Callable[[float], bool]:
    """Returns a function of the seconds to wait that tells the end at its last call."""
    count = iter(range(1, calls + 1))
    return lambda seconds: next(count) == calls


def test_a_service_that_is_away_is_told_once_and_gets_the_records_later(workdir: Path) -> None:
    tracker, said = Recording(), list[str]()
    tracker.problems = [ConnectionError("away"), ConnectionError("away")]
    write(workdir, 0, (1, "train", 3.0), (2, "train", 2.0))
    assert follow(Sender(workdir, "own", tracker, "p"), ends_after(4), said.append)
    assert [step for step, _ in tracker.received] == [1, 2]
    assert [text.split(" (")[0] for text in said] == [
        "cannot be reached",
        "works again; all records are sent",
    ]
    assert tracker.closed == 1


def test_what_was_not_sent_is_sent_later(workdir: Path) -> None:
    tracker = Recording()
    write(workdir, 0, (1, "train", 3.0), (2, "train", 2.0))
    tracker.problems = [ConnectionError("away")] * 3
    assert not follow(Sender(workdir, "own", tracker, "p"), ends_after(3), lambda text: None)
    Sender(workdir, "own", tracker, "p").send()
    assert [step for step, _ in tracker.received] == [1, 2]


def test_a_damaged_state_is_one_sentence(workdir: Path) -> None:
    write(workdir, 0, (1, "train", 3.0))
    (workdir / "tracker_own.json").write_text("{")
    with pytest.raises(ValueError, match=r"tracker_own\.json: damaged .* delete it"):
        Sender(workdir, "own", Recording(), "p").send()


@pytest.mark.stress  # Waits for TRACKER_SECONDS.
@pytest.mark.subprocess
def test_a_service_that_hangs_ends_no_training(tmp_path: Path) -> None:
    flags = (MOVING_SHAPES, f"--workdir={tmp_path / 'run'}", "--config.num_steps=2")
    hangs = "--tracker=tests.launch.hanging_tracker:Hangs"
    done = finish(start("train", *flags, hangs))
    assert done.returncode == 0, done.stderr
    assert "has not got all records" in done.stderr


needs = {name: importlib.util.find_spec(name) is None for name in TRACKERS}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_services_get_all_records(
    name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs[name]:
        pytest.skip(f"the extra {name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(workdir.parent / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for last in (2, 4):
        records = [(step, "train", 1.0 / step) for step in (last - 1, last)]
        write(workdir, last - 2, *records)
        done = finish(start("track", f"--workdir={workdir}", f"--tracker={name}"))
        assert done.returncode == 0, done.stderr
        assert f"2 records sent to {name}" in done.stdout
    state = json.loads((workdir / f"tracker_{name}.json").read_text())
    assert state["sent"] == {"train": 4}
    if name == "mlflow":
        with sqlite3.connect(workdir.parent / "mlflow.db") as database:
            rows = database.execute("select step, value from metrics order by step").fetchall()
        assert rows == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
