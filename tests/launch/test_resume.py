"""A training that is killed at any moment and resumed equals an uninterrupted one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.metric_writer import read_metrics
from tests.launch.jobs import group_members
from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    start,
    succeed,
)

STEPS = 8
UNFINISHED = ".orbax-checkpoint-tmp"
FLAGS = (
    f"--config.num_steps={STEPS}",
    "--config.eval_every=4",
    "--config.checkpoint_every=2",
    "--config.data.num_workers=2",
)
EXPERIMENTS = {
    "clips": (MOVING_SHAPES,),
    "lines": ("--config=experiments/crnn_text_lines.py:smoke", "--config.data.augment=True"),
}


class Training(NamedTuple):
    """A training that can be started again and again.

    Attributes:
      flags: its experiment.
      cache: folder of compiled programs.
    """

    flags: tuple[str, ...]
    cache: Path

    def start(self, path: Path) -> subprocess.Popen[str]:
        return start("train", *self.flags, *FLAGS, f"--workdir={path}", cache=self.cache)


def losses(path: Path) -> list[tuple[str, int, float]]:
    """Returns split, step and loss of every record, in the file's order."""
    return [(record["split"], record["step"], record["loss"]) for record in read_metrics(path)]


def last_state(path: Path) -> Any:
    """Returns the best step and all variables of the last step."""
    config = json.loads((path / "config.json").read_text())["config"]
    checkpointer = Checkpointer(
        path / "checkpoints",
        read_only=True,
        best_metric=config["best_metric"],
        mode=config["best_mode"],
    )
    assert checkpointer.latest_step == STEPS
    state = checkpointer.best_step, checkpointer.restore_variables()
    checkpointer.close()
    return state


def reached(path: Path, step: int) -> bool:
    return any(record["step"] >= step for record in read_metrics(path))


def writes_a_checkpoint(path: Path) -> bool:
    """Returns True while a checkpoint is being written."""
    return any((path / "checkpoints").glob(f"*{UNFINISHED}"))


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Waits for the condition; returns False if the process ended first."""
    while process.poll() is None:
        try:
            if condition():
                return True
        except FileNotFoundError:  # The folder was renamed during the check.
            continue
        time.sleep(0.0005)
    return False


def assert_no_process_is_left(group: int) -> None:
    """Checks that the data-loader workers end soon after their parent."""
    if not Path("/proc/self/stat").exists():
        return
    for _ in range(600):
        if not group_members(group):
            return
        time.sleep(0.1)
    left = group_members(group)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError(f"processes {left} outlived the training that started them")


@pytest.fixture(scope="module", params=["clips", pytest.param("lines", marks=pytest.mark.stress)])
def training(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(EXPERIMENTS[request.param], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, training: Training) -> Path:
    path = tmp_path_factory.mktemp("resume") / "uninterrupted"
    succeed(training.start(path))
    assert [step for split, step, _ in losses(path) if split == "train"] == [*range(1, STEPS + 1)]
    return path


def assert_same(path: Path, uninterrupted: Path) -> None:
    assert losses(path) == losses(uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, last_state(path), last_state(uninterrupted))


@pytest.mark.slow
def test_killed_again_and_again_the_run_is_the_uninterrupted_one(
    uninterrupted: Path, tmp_path: Path, training: Training
) -> None:
    path = tmp_path / "run"
    moments: list[Callable[[], bool]] = [
        lambda: (path / "config.json").exists(),
        lambda: writes_a_checkpoint(path),
        lambda: reached(path, 3),
        lambda: reached(path, 4) and writes_a_checkpoint(path),
        lambda: reached(path, STEPS),
    ]
    kills = 0
    for moment in moments:
        process = training.start(path)
        if wait_until(process, moment):
            process.kill()
            kills += 1
        done = finish(process)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        assert_no_process_is_left(process.pid)
    assert kills >= 3
    # Partial checkpoints and records do not matter, whenever the kills came.
    half_written = path / "checkpoints" / f"{STEPS}{UNFINISHED}"
    half_written.mkdir(exist_ok=True)
    (half_written / "_CHECKPOINT_METADATA").write_text("{")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "spl')
    succeed(training.start(path))
    assert_same(path, uninterrupted)
    assert not writes_a_checkpoint(path)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGHUP, True), (signal.SIGUSR1, True)],
)
def test_a_signal_ends_it_with_a_checkpoint_and_it_goes_on(
    number: int, whole_group: bool, uninterrupted: Path, tmp_path: Path, training: Training
) -> None:
    path = tmp_path / "run"
    process = training.start(path)
    assert wait_until(process, lambda: reached(path, 1))
    # Ctrl-C in a terminal reaches the workers, too.
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    done = finish(process)
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    step = max(record["step"] for record in read_metrics(path))
    assert f"stopped at step {step} by signal {number} after saving a checkpoint" in done.stderr
    assert (path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").is_file()
    assert_no_process_is_left(process.pid)
    succeed(training.start(path))
    assert_same(path, uninterrupted)
