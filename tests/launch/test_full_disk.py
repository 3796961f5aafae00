"""Programs on a disk that fills up: one clear error within seconds, and nothing older is lost."""

import contextlib
import json
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.training.checkpoint import Checkpointer, damaged_files, steps_on_disk
from flaxnets.training.metric_writer import read_metrics
from tests.file_systems import mounted
from tests.launch.jobs import Job

# File systems in memory are mounted, which needs root, and programs take seconds each to start.
pytestmark = pytest.mark.stress
STEPS = 40
LONGEST = 30
"""Seconds after which a program on a full disk has ended."""
FLAGS = (
    "--config=tests/launch/regression.py",
    f"--config.num_steps={STEPS}",
    "--config.eval_every=20",
    "--config.checkpoint_every=10",
    "--config.delay=0.1",
)


def fill(disk: Path, leave: int = 0) -> None:
    """Writes a file until the disk is full to the last byte, then frees ``leave`` bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
        file.truncate(file.tell() - leave)


def start(workdir: Path, logs: Path, cache: Path | None, *flags: str, **options: Any) -> Job:
    flags = (*FLAGS, f"--workdir={workdir}", *flags)
    options = {"num_processes": 1, **options}
    return Job("launch.train", flags, logs=logs, cache=cache, heartbeat=5, **options)


def reached(path: Path, step: int) -> bool:
    return any(record["step"] >= step for record in read_metrics(path))


def has_saved(path: Path, step: int) -> bool:
    return (path / "checkpoints" / str(step)).is_dir() and reached(path, step + 1)


def is_saving(path: Path, step: int) -> bool:
    return any((path / "checkpoints").glob(f"{step}.*-tmp"))


def one_error(text: str) -> str:
    """Returns the only error of a program; no library's traceback stands beside it."""
    assert "Traceback" not in text, text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(text.splitlines()) < 15, text
    for name in ("metrics.jsonl", "tfevents", "log.txt"):
        told = [x for x in text.splitlines() if name in x and "cannot be written" in x]
        assert len(told) <= 1, text
    return error


def records(path: Path) -> list[tuple[Any, ...]]:
    return [(r["split"], r["step"], r["loss"], r.get("gradient_norm")) for r in read_metrics(path)]


def last_variables(path: Path) -> Any:
    checkpointer = Checkpointer(
        path / "checkpoints", best_metric="loss", mode="min", read_only=True
    )
    assert checkpointer.latest_step == STEPS
    found = checkpointer.best_step, checkpointer.restore_variables()
    checkpointer.close()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    path = tmp_path_factory.mktemp("full") / "uninterrupted"
    with start(path, path.parent / "logs", cache) as job:
        job.succeed()
    return path


def assert_whole_and_resumed_equal(
    run: Path, disk: Path, uninterrupted: Path, cache: Path, logs: Path, **options: Any
) -> None:
    steps = steps_on_disk(run / "checkpoints")
    assert steps
    for step in steps:
        assert damaged_files(run / "checkpoints" / str(step)) == []
    (disk / "filler").unlink()
    with start(run, logs, cache, **options) as job:
        job.succeed()
        assert f"resuming from step {steps[-1]}" in job.text()
    assert records(run) == records(uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, last_variables(run), last_variables(uninterrupted))


@pytest.mark.parametrize("moment", ["training", "saving", "evaluating", "almost full"])
def test_a_disk_that_fills_ends_the_run_with_one_error_and_it_resumes(
    moment: str, uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk") as disk:
        run = disk / "run"
        condition = {
            "training": partial(has_saved, run, 10),
            "saving": partial(is_saving, run, 20),
            "evaluating": partial(reached, run, 20),
            "almost full": partial(has_saved, run, 10),
        }[moment]
        with start(run, tmp_path / "logs", cache) as job:
            assert job.wait_until(condition), job.text()
            fill(disk, leave=20_000 if moment == "almost full" else 0)
            codes = job.wait(timeout=LONGEST)
            text = job.text()
        print(f"--- {moment}\n{text}")  # noqa: T201
        assert codes == [1], text
        error = one_error(text)
        assert f"{run}/checkpoints/" in error
        assert "could not be written" in error
        assert "No space left on device" in error
        assert_whole_and_resumed_equal(run, disk, uninterrupted, cache, tmp_path / "resumed")


def test_a_signal_on_a_full_disk_ends_the_run(
    uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk") as disk:
        run = disk / "run"
        with start(run, tmp_path / "logs", cache) as job:
            assert job.wait_until(partial(has_saved, run, 10)), job.text()
            fill(disk)
            time.sleep(0.3)
            job.processes[0].send_signal(signal.SIGTERM)
            codes = job.wait(timeout=LONGEST)
            text = job.text()
        assert codes == [1], text
        assert "No space left on device; steps that are kept: 10" in one_error(text)
        assert_whole_and_resumed_equal(run, disk, uninterrupted, cache, tmp_path / "resumed")


@pytest.mark.parametrize("name", ["tensorboard", "metrics.jsonl", "log.txt"])
def test_a_full_disk_of_one_file_alone_is_told_once_and_the_run_goes_on(
    name: str, uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with mounted(tmp_path / "disk", "size=64k") as disk:
        run.mkdir()
        if name == "tensorboard":
            (disk / name).mkdir()
        else:
            (disk / name).write_text("")
        (run / name).symlink_to(disk / name)
        fill(disk)
        with start(run, tmp_path / "logs", cache) as job:
            codes = job.wait(timeout=2 * LONGEST)
            text = job.text()
        print(f"--- {name}\n{text}")  # noqa: T201
        assert codes == [0], text
        assert "Traceback" not in text
        assert text.count("cannot be written: No space left on device; training goes on") == 1
        if name != "metrics.jsonl":
            assert records(run) == records(uninterrupted)
        expected = last_variables(uninterrupted)
        jax.tree.map(np.testing.assert_array_equal, last_variables(run), expected)


def test_two_processes_on_a_full_disk_end_and_resume(
    uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk") as disk:
        run = disk / "run"
        with start(run, tmp_path / "logs", cache, num_processes=2) as job:
            assert job.wait_until(partial(has_saved, run, 10)), job.text()
            fill(disk)
            codes = job.wait(timeout=LONGEST)
            text = job.text()
        assert 1 in codes, text
        assert 0 not in codes, text
        assert "No space left on device; steps that are kept: 10" in text
        (disk / "filler").unlink()
        assert damaged_files(run / "checkpoints" / "10") == []
        with start(run, tmp_path / "resumed", cache, num_processes=2) as job:
            job.succeed()
        assert [record[:2] for record in records(run)] == [r[:2] for r in records(uninterrupted)]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_alone_cannot_write_ends_both(
    failing: int, uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = (f"--config.file_limit={failing}", "--config.delay=0.3")
    # No cache of compiled programs, whose warnings would fill the limited log.
    with start(run, tmp_path / "logs", None, *flags, num_processes=2) as job:
        assert job.wait_until(partial(is_saving, run, 10)), job.text()
        codes = job.wait(timeout=LONGEST)
        text = job.text()
    print(f"--- process {failing}\n{text}")  # noqa: T201
    assert codes[failing] == 1, text
    assert codes[1 - failing] in (-signal.SIGABRT, 128 + signal.SIGABRT, 1), text
    assert f"error: process {failing} of 2" in text
    assert re.search("checkpoints/10: the checkpoint could not be written: .*too large", text)
    with start(run, tmp_path / "resumed", cache, num_processes=2) as job:
        job.succeed()
    assert [record[:2] for record in records(run)] == [r[:2] for r in records(uninterrupted)]


def test_an_evaluation_whose_outputs_cannot_be_written_names_the_file(
    uninterrupted: Path, cache: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        fill(disk)
        (uninterrupted / "predictions").symlink_to(disk)
        try:
            arguments = (f"--workdir={uninterrupted}", "--split=validation")
            with Job(
                "launch.evaluate", arguments, logs=tmp_path / "logs", num_processes=1, cache=cache
            ) as job:
                codes = job.wait(timeout=LONGEST)
                text = job.text()
        finally:
            (uninterrupted / "predictions").unlink()
        print(f"--- launch.evaluate\n{text}")  # noqa: T201
        assert codes == [1], text
        error = one_error(text)
        assert "No space left on device" in error
        assert "predictions/validation.jsonl" in error
    assert json.loads((uninterrupted / "config.json").read_text())["experiment"]
