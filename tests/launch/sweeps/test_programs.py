"""Program ``launch.sweep``: refusals, signals, and two workers of which one is killed."""

import json
import os
import shlex
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from launch.reports.run_table import find_runs
from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    sentence,
    start,
    succeed,
)

pytest.importorskip("optuna")

TINY = "tests/flaxnets/training/tiny.py"
RATE = "optimizer.learning_rate=log:1e-3:1e-1"


@pytest.mark.slow
def test_what_the_program_refuses(tmp_path: Path) -> None:
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'a'}"]
    misspelt = start("sweep", *flags, "--space=optimizer.learning_rat=1,2")
    nothing = start("sweep", f"--workdir={tmp_path / 'none'}", "--page")
    assert sentence(finish(misspelt)) == (
        "error: space: no field optimizer.learning_rat in the configuration; did you mean "
        "'optimizer.learning_rate'?"
    )
    assert "no study; expected the workdir of a sweep" in sentence(finish(nothing))
    assert not list(tmp_path.iterdir())


@pytest.mark.stress
def test_the_program(tmp_path: Path) -> None:
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'a'}", "--trials=2"]
    lines = succeed(start("sweep", *flags, f"--space={RATE}")).splitlines()
    assert lines[0] == "2 trials: 2 complete"
    assert lines[1].startswith("best: trial ")
    assert lines[-1] == str(tmp_path / "a/sweep.html")
    other = start("sweep", *flags, "--space=seed=1,2")
    page = start("sweep", f"--workdir={tmp_path / 'a'}", "--page")
    assert sentence(finish(other)).endswith(
        "\n  space: optimizer.learning_rate=log:0.001:0.1 there, seed=1,2 now"
    )
    assert succeed(page).split() == [str(tmp_path / "a/sweep.html")]
    # The printed command trains the best configuration.
    command = shlex.split(lines[2])
    assert command[:3] == ["python", "-m", "launch.train"]
    succeed(start("train", *command[3:]))
    [best] = [run for run in find_runs(tmp_path / "a") if run.name == "best"]
    assert f"accuracy:max {best.best:.4g}" in lines[1]


@pytest.mark.stress
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number: int, tmp_path: Path) -> None:
    training = ["--config.num_steps=400", "--config.eval_every=100"]
    flags = [f"--workdir={tmp_path / 'a'}", "--trials=1", "--space=optimizer.momentum=0.5,0.9"]
    flags += [MOVING_SHAPES, *training]
    stopped = start("sweep", *flags)
    deadline = time.monotonic() + 200
    while not whole_steps(tmp_path / "a/trial0000"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(stopped.pid, number)
    done = finish(stopped)
    assert done.returncode == 128 + number, done.stderr
    assert f"stopped by signal {int(number)}; the same command goes on" in done.stderr
    assert trial_states(tmp_path / "a") == ["WAITING"]
    saved = whole_steps(tmp_path / "a/trial0000")
    again = finish(start("sweep", *flags))
    assert again.returncode == 0, again.stderr
    assert f"resuming from step {max(saved)}" in again.stderr
    assert trial_states(tmp_path / "a") == ["COMPLETE"]


def whole_steps(run: Path) -> list[int]:
    """Returns the steps of the complete checkpoints."""
    return [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()]


def trial_states(folder: Path) -> list[str]:
    """Returns the states of a study's trials, read without Optuna."""
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as connection:
        return [row[0] for row in connection.execute("SELECT state FROM trials ORDER BY number")]


@pytest.mark.stress
def test_two_workers_one_of_them_killed_finish_sixteen_trials(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    training = ["--config.num_steps=60", "--config.eval_every=20", "--config.checkpoint_every=5"]
    training += ["--config.data.num_train=256", "--config.data.num_validation=128"]
    training += ["--config.data.num_test=512"]
    flags = [f"--workdir={folder}", "--trials=16", "--stale_seconds=5", "--workers=2"]
    # By the loss, because after so few steps the accuracies differ by chance only.
    flags += ["--objective=loss:min", "--space=optimizer.learning_rate=log:1e-4:1e-1"]
    space = ["--space=model.recurrent.features=16,32,64"]
    swept = start("sweep", MOVING_SHAPES, *training, *flags, *space)
    killed = kill_in_the_middle(swept.pid, folder)
    lines = succeed(swept).splitlines()
    assert any("ended with exit code 137" in line for line in lines)
    assert "16 trials: 16 complete" in lines
    # The killed worker's trial has failed; the last one is its retry.
    states = ["COMPLETE"] * 17
    states[killed] = "FAIL"
    assert trial_states(folder) == states
    runs = find_runs(folder)
    assert [run.name for run in runs] == [f"trial{number:04d}" for number in range(16)]
    assert {run.state for run in runs} == {"finished"}
    for run in runs:
        steps = [record["step"] for record in run.records if record["split"] == "validation"]
        assert steps == [20, 40, 60]
    log = (folder / "sweep.log").read_text()
    assert f"trial {killed}: its worker is gone; retried as trial 16" in log
    assert "resuming from step" in log
    default = tmp_path / "default"
    judged = ["--config.best_metric=loss", "--config.best_mode=min"]
    succeed(start("train", MOVING_SHAPES, *training, *judged, f"--workdir={default}"))
    best = min(runs, key=lambda run: run.best or float("inf"))
    assert best.best is not None
    [there] = find_runs(tmp_path / "default")
    assert there.best is not None
    assert best.best < there.best
    # Also on the test split, which chose nothing.
    losses = []
    for workdir in (folder / best.name, default):
        out = tmp_path / "test.json"
        succeed(start("evaluate", f"--workdir={workdir}", "--split=test", f"--out={out}"))
        losses.append(json.loads(out.read_text())["loss"])
    assert losses[0] < losses[1]


def kill_in_the_middle(parent: int, folder: Path) -> int:
    """Kills a worker in a trial that has saved a checkpoint; returns the trial's number."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.1)
        workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for place in folder.glob("trial000[4-9]"):
            if not whole_steps(place):
                continue
            number = int(place.name.removeprefix("trial"))
            holder = (place / "lock.holder").read_text().split()[1]
            if holder in workers and trial_states(folder)[number] == "RUNNING":
                os.kill(int(holder), signal.SIGKILL)
                return number
    raise AssertionError("no trial was seen in its middle")
