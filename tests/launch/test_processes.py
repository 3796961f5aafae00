"""Runs of several processes: equal to one process, and ended together in time."""

import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.inference.trained_model import read_predictions
from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.distributed import LOST_PROCESS
from flaxnets.training.metric_writer import read_metrics
from tests.launch.jobs import Job, LocalLaunch, free_port, group_members
from tests.launch.programs import MOVING_SHAPES
from tests.launch.regression import NUM_EXAMPLES, read_trace

# Real processes take seconds to start each: `make stress` runs them.
pytestmark = pytest.mark.stress
CONFIG = "--config=tests/launch/regression.py"
STEPS = 30
HEARTBEAT = 5
# JAX ends at once if the first process dies, here by an abort of its own.
LEADER = "the leader task was preempted/died"

Start = Callable[..., Job]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Returns a function that trains a workdir as several processes."""
    folder = tmp_path_factory.mktemp("jobs")

    def train(workdir: Path, *flags: str, **options: Any) -> Job:
        flags = (CONFIG, f"--workdir={workdir}", f"--config.trace={workdir}.trace", *flags)
        logs = folder / f"{time.monotonic_ns()}"
        options = {"heartbeat": HEARTBEAT, "cache": folder / "cache", **options}
        return Job("launch.train", flags, logs=logs, **options)

    return train


@pytest.fixture(scope="module")
def eight(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a run of one process with eight devices."""
    path = tmp_path_factory.mktemp("eight") / "run"
    with start(path, num_processes=1, devices=8) as job:
        job.succeed()
    return path


def last_step(path: Path) -> int:
    return max((record["step"] for record in read_metrics(path)), default=0)


def reached(path: Path, step: int) -> bool:
    return last_step(path) >= step


def has_saved(path: Path) -> bool:
    return any(folder.name.isdecimal() for folder in (path / "checkpoints").iterdir())


def losses(path: Path) -> list[tuple[str, int]]:
    return [(r["split"], r["step"]) for r in read_metrics(path)]


def assert_same_figures(path: Path, expected: Path, rtol: float = 1e-4) -> None:
    """Checks that the records are equal, in order and without duplicates."""
    assert losses(path) == losses(expected)
    for one, other in zip(read_metrics(path), read_metrics(expected), strict=True):
        names = [n for n in ("loss", "gradient_norm", "examples", "skipped") if n in other]
        found = [one[name] for name in names]
        assert found == pytest.approx([other[name] for name in names], rel=rtol), one["step"]


def last_variables(path: Path) -> Any:
    checkpointer = Checkpointer(path / "checkpoints", read_only=True)
    assert checkpointer.latest_step == STEPS
    variables = checkpointer.restore_variables()
    checkpointer.close()
    return jax.device_get(variables)


def assert_each_example_once_an_epoch(path: Path) -> None:
    examples = read_trace(path.with_name(f"{path.name}.trace"), STEPS)
    for epoch in range(len(examples) // NUM_EXAMPLES):
        part = examples[epoch * NUM_EXAMPLES : (epoch + 1) * NUM_EXAMPLES]
        assert sorted(part) == list(range(NUM_EXAMPLES))


def test_two_processes_train_and_evaluate_as_one_does(
    start: Start, eight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with start(path, "--profile_steps=12:13", devices=4) as job:
        job.succeed()
        first, second = (log.read_text() for log in job.logs)
    assert_same_figures(path, eight)
    assert_each_example_once_an_epoch(path)
    assert "process 0 of 2 waits for the others" in first
    assert (path / "log.txt").read_text().count("step 10, validation") == 1
    assert len(list((path / "tensorboard").iterdir())) == 1
    assert "a trace of the training steps is in" in first
    assert "a trace of the training steps is in" not in second
    for name in ("perfetto_trace.json.gz", "*.xplane.pb"):
        assert len(list((path / "profile").rglob(name))) == 1
    for processes, workdir in ((2, path), (1, eight)):
        out = tmp_path / f"{processes}.json"
        flags = [f"--workdir={workdir}", "--split=validation", f"--out={out}"]
        options = {"num_processes": processes, "devices": 8 // processes}
        with Job("launch.evaluate", flags, logs=tmp_path / f"logs{processes}", **options) as job:
            job.succeed()
    two, one = (read_predictions(p / "predictions" / "validation.jsonl") for p in (path, eight))
    assert [record["index"] for record in two] == [i for i in range(NUM_EXAMPLES) if i != 5]
    assert [r["index"] for r in one] == [r["index"] for r in two]
    np.testing.assert_allclose([r["y"] for r in two], [r["y"] for r in one], rtol=1e-3, atol=1e-5)


def test_two_processes_read_lines_as_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        path = tmp_path / f"{processes}"
        flags = ["--config=experiments/crnn_text_lines.py:smoke", f"--workdir={path}"]
        logs = tmp_path / f"logs{processes}"
        options = {"num_processes": processes, "devices": 8 // processes}
        with Job("launch.train", flags, logs=logs, cache=tmp_path / "cache", **options) as job:
            job.succeed()
    two, one = tmp_path / "2", tmp_path / "1"
    assert_same_figures(two, one)
    rates = [
        [(r["character_error_rate"], r["too_long"]) for r in read_metrics(path) if "examples" in r]
        for path in (two, one)
    ]
    assert len(rates[0]) == 2
    assert rates[0] == rates[1]
    for name in ("alphabet.json", "language_model.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.parametrize(
    ("num_processes", "devices", "flags"),
    [
        (1, 8, ()),
        (1, 1, ()),
        (2, 2, ()),
        (1, 8, ("--config.fsdp=2",)),
    ],
    ids=["8", "1", "2 × 2", "fsdp 4 × 2"],
)
def test_saved_on_eight_devices_it_goes_on_on_any_others(
    num_processes: int,
    devices: int,
    flags: tuple[str, ...],
    start: Start,
    eight: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    with start(path, "--config.delay=0.05", num_processes=1, devices=8) as job:
        assert job.wait_until(partial(reached, path, 6))
        job.processes[0].send_signal(signal.SIGUSR1)
        assert job.wait() == [128 + signal.SIGUSR1], job.text()
    stopped = last_step(path)
    assert 6 <= stopped < STEPS
    with start(path, *flags, num_processes=num_processes, devices=devices) as job:
        job.succeed()
        assert f"resuming from step {stopped}" in job.logs[0].read_text()
    assert_same_figures(path, eight)
    assert_each_example_once_an_epoch(path)
    if (num_processes, devices, flags) == (1, 8, ()):
        assert [r.get("loss") for r in read_metrics(path)] == [
            r.get("loss") for r in read_metrics(eight)
        ]
        jax.tree.map(np.testing.assert_array_equal, last_variables(path), last_variables(eight))


def test_a_signal_to_one_process_ends_both_after_the_same_step(
    start: Start, eight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    for number, victim in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0)):
        before = last_step(path)
        with start(path, "--config.delay=0.05", devices=4) as job:
            assert job.wait_until(partial(reached, path, before + 3))
            job.processes[victim].send_signal(number)
            codes = job.wait()
            text = job.text()
        assert codes[victim] == 128 + number, text
        assert codes[1 - victim] == 128 + signal.SIGTERM, text
        step = last_step(path)
        assert text.count(f"stopped at step {step} by signal") == 2
        checkpointer = Checkpointer(path / "checkpoints", read_only=True)
        assert checkpointer.latest_step == step
        checkpointer.close()
    with start(path, devices=4) as job:
        job.succeed()
    assert_same_figures(path, eight)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_during_an_evaluation_ends_it_in_both_and_it_is_repeated(
    victim: int, start: Start, eight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    # The checkpoint is on disk while the evaluation lasts.
    with start(path, "--config.eval_delay=0.5", devices=4) as job:
        assert job.wait_until(lambda: (path / "checkpoints" / "10").is_dir())
        job.processes[victim].send_signal(signal.SIGTERM)
        codes = job.wait(60)
        text = job.text()
    assert codes == [128 + signal.SIGTERM] * 2, text
    assert text.count("stopped at step 10 by signal") == 2
    assert losses(path)[-1] == ("train", 10)
    with start(path, devices=4) as job:
        job.succeed()
    assert_same_figures(path, eight)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_names_it(
    victim: int, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with start(path, "--config.delay=0.05") as job:
        assert job.wait_until(lambda: reached(path, 6) and has_saved(path))
        job.processes[victim].kill()
        killed = time.monotonic()
        codes = job.wait()
        seconds = time.monotonic() - killed
        text = job.logs[1 - victim].read_text()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] in (LOST_PROCESS, -signal.SIGABRT), text
    assert seconds < 5
    pid = job.processes[victim].pid
    named = rf"process {victim} of 2 \({pid} on .*\) has died"
    assert re.search(named if victim else f"{named}|{LEADER}", text), text
    checkpointer = Checkpointer(path / "checkpoints", read_only=True)
    assert checkpointer.latest_step is not None
    checkpointer.restore_variables()
    checkpointer.close()


def test_an_error_of_one_process_ends_the_other(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with start(path, "--config.fails_at=6") as job:
        codes = job.wait()
        first, second = (log.read_text() for log in job.logs)
    assert codes == [LOST_PROCESS, 1], job.text()
    assert "error: process 1 of 2 (" in second
    assert "batch 6: the disk of this machine is broken" in second
    assert "Traceback" not in second
    assert re.search(r"process 1 of 2 \(\d+ on .*\) has died", first)
    # The folder is unlocked, and the run can resume.
    with start(path) as job:
        job.succeed()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1])
def test_a_dead_launcher_leaves_no_process_and_the_run_goes_on(number: int, tmp_path: Path) -> None:
    def launch(path: Path) -> LocalLaunch:
        flags = [CONFIG, f"--workdir={path}", f"--config.trace={path}.trace"]
        flags += ["--config.delay=0.05"]
        return LocalLaunch(flags, logs=tmp_path / "logs", cache=tmp_path / "cache")

    whole, path = tmp_path / "whole", tmp_path / "run"
    with launch(whole) as job:
        job.succeed()
    with launch(path) as job:
        assert job.wait_until(partial(reached, path, 6))
        assert set(job.workers()) == {0, 1}
        job.processes[0].send_signal(number)
        killed = number == signal.SIGKILL
        assert job.wait(60) == [-number if killed else 128 + number], job.text()
        job.wait_for_workers(15)
    stopped = last_step(path)
    assert 6 <= stopped < STEPS
    checkpointer = Checkpointer(path / "checkpoints", read_only=True)
    assert checkpointer.latest_step == stopped  # They saved.
    checkpointer.close()
    with launch(path) as job:
        job.succeed()
        assert f"resuming from step {stopped}" in job.text()
    assert [r["loss"] for r in read_metrics(path)] == [r["loss"] for r in read_metrics(whole)]
    jax.tree.map(np.testing.assert_array_equal, last_variables(path), last_variables(whole))
    assert_each_example_once_an_epoch(path)


def test_no_worker_of_a_loader_is_left_either(tmp_path: Path) -> None:
    path = tmp_path / "run"
    flags = [MOVING_SHAPES, f"--workdir={path}", "--config.num_steps=2000"]
    flags += ["--config.data.num_workers=2", "--config.log_every=1"]
    with LocalLaunch(flags, logs=tmp_path / "logs", cache=tmp_path / "cache") as job:
        assert job.wait_until(partial(reached, path, 2))
        groups = list(job.workers().values())
        assert all(len(group_members(group)) >= 3 for group in groups)
        job.processes[0].kill()
        end = time.monotonic() + 15
        while left := [group for group in groups if group_members(group)]:
            assert time.monotonic() < end, left
            time.sleep(0.1)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_launcher_names_a_worker_that_is_killed(victim: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    flags = (CONFIG, f"--workdir={path}", "--config.delay=0.05")
    with LocalLaunch(flags, logs=tmp_path / "logs", cache=tmp_path / "cache") as job:
        assert job.wait_until(partial(reached, path, 6))
        os.kill(job.workers()[victim], signal.SIGKILL)
        assert job.wait(60) == [128 + signal.SIGKILL]
        text = job.text()
    assert f"[{victim}] error: process {victim} of 2 was killed by SIGKILL" in text
    after = text.partition("error: process")[2]
    assert not re.search("Gloo|Traceback|heartbeat", after), text


def slurm(process: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
    }


def open_mpi(process: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    }


@pytest.mark.parametrize("environment", [slurm, open_mpi], ids=["Slurm", "Open MPI"])
def test_a_launcher_that_sets_variables_is_enough(
    environment: Callable[[int], dict[str, str]], start: Start, eight: Path, tmp_path: Path
) -> None:
    port = str(free_port())

    def variables(process: int) -> dict[str, str]:
        bind = {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
        return {**environment(process), "JAX_COORDINATOR_PORT": port, **bind}

    path = tmp_path / "run"
    with start(path, devices=4, environment=variables, connected=False) as job:
        job.succeed()
        assert "processes: 0: " in job.logs[0].read_text()
    assert_same_figures(path, eight)
