"""Jobs on a real single-machine Slurm (tests/slurm/up): they train, save and resume."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.metric_writer import read_metrics
from tests.launch.programs import (
    MOVING_SHAPES,
    ROOT,
    finish,
    sentence,
    start,
    succeed,
)

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(
        shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None,
        reason="no slurmctld on this machine: apt-get install slurm-wlm munge",
    ),
]
REGRESSION = "--config=tests/launch/regression.py"
STEPS = 30
# JAX derives the port from the job id; its default address is every interface.
BIND = "export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$((SLURM_JOB_ID % 4096 + 61440))"


class Slurm:
    """A Slurm cluster of this one machine.

    Args:
      folder: the folder given to ``tests/slurm/up``.
      outputs: folder of the jobs' output.
    """

    def __init__(self, folder: Path, outputs: Path) -> None:
        self.outputs, self.cache = outputs, folder / "cache"
        self.configuration = str(folder / "slurm.conf")

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m launch.slurm``; the processes of its jobs connect on loopback."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", self.configuration)
            options = (f"--output={self.outputs}/%j.out", f"--setup={BIND}")
            return finish(start("slurm", *options, *arguments, cache=self.cache))

    def queue(self, *arguments: str) -> str:
        """Submits a job and returns its id."""
        done = self.submit(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def ask(self, *command: str) -> str:
        """Returns the output of one of Slurm's commands."""
        environment = {**os.environ, "SLURM_CONF": self.configuration}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """Returns Slurm's record of a job."""
        words = self.ask("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def wait_for(self, condition: Callable[[], Any], timeout: float = 300) -> Any:
        """Waits until the condition returns a true value; returns that value."""
        end = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                printed = [file.read_text() for file in sorted(self.outputs.iterdir())]
                raise AssertionError("\n---\n".join([self.ask("squeue"), *printed]))
            time.sleep(0.05)

    def ended(self, job: str) -> dict[str, str]:
        """Waits for the end of a job; returns Slurm's record of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

        def look() -> dict[str, str] | None:
            facts = self.facts(job)
            return facts if facts["JobState"] in over else None

        return self.wait_for(look)

    def printed(self, job: str) -> str:
        return (self.outputs / f"{job}.out").read_text()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # A short path: those of sockets have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    outputs = folder / "outputs"
    outputs.mkdir()
    slurm_folder = folder / "slurm"
    up, down = ROOT / "tests/slurm/up", ROOT / "tests/slurm/down"
    started = subprocess.run([up, slurm_folder], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    try:
        yield Slurm(slurm_folder, outputs)
    finally:
        subprocess.run([down, slurm_folder], check=True, capture_output=True, timeout=120)
        shutil.rmtree(folder)


def last_step(path: Path) -> int:
    records = read_metrics(path) if path.exists() else []
    return max((record["step"] for record in records), default=0)


def last_variables(path: Path) -> Any:
    checkpointer = Checkpointer(path / "checkpoints", read_only=True)
    variables = checkpointer.restore_variables()
    checkpointer.close()
    return jax.device_get(variables)


def assert_same_run(path: Path, expected: Path) -> None:
    """Checks that losses, in order and without duplicates, and last variables are equal."""

    def losses(folder: Path) -> list[tuple[str, int, float]]:
        return [(r["split"], r["step"], r["loss"]) for r in read_metrics(folder)]

    assert losses(path) == losses(expected)
    jax.tree.map(np.testing.assert_array_equal, last_variables(path), last_variables(expected))


@pytest.fixture(scope="module")
def whole(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two tasks."""
    path = tmp_path_factory.mktemp("whole") / "run"
    done = slurm.submit("--tasks=2", "--wait", "--", REGRESSION, f"--workdir={path}")
    assert done.returncode == 0, slurm.printed(done.stdout.strip())
    return path


def test_two_tasks_are_two_processes_of_launch_local(slurm: Slurm, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "slurm run", tmp_path / "local"
    flags = (MOVING_SHAPES, "--config.num_steps=300", "--config.eval_every=100")
    local = start("local", "--cpu_devices=1", "--", *flags, f"--workdir={ours}")
    job = slurm.queue("--nodes=1", "--tasks=2", "--", *flags, f"--workdir={theirs}")
    slurm.wait_for(lambda: last_step(theirs) >= 20)
    slurm.ask("scancel", "--signal=TERM", job)
    facts = slurm.ended(job)
    succeed(local)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.printed(job)
    printed = slurm.printed(job)
    assert f"job {job} requeues itself" in printed
    assert "0: " in printed
    assert "1: " in printed
    assert "on 2 × cpu" in printed
    assert "resuming from step" in printed
    assert_same_run(theirs, ours)


def test_near_the_time_limit_it_saves_and_goes_on(
    slurm: Slurm, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    flags = (REGRESSION, f"--workdir={path}", "--config.delay=3")
    job = slurm.queue("--tasks=2", "--time=2", "--signal_seconds=30", "--", *flags)
    facts = slurm.ended(job)
    assert facts["JobState"] == "COMPLETED", slurm.printed(job)
    assert int(facts["Restarts"]) >= 1
    assert "TIME LIMIT" not in slurm.printed(job)
    assert_same_run(path, whole)


@pytest.mark.parametrize("partition", ["low", "hasty"])
def test_a_preempted_job_goes_on(partition: str, slurm: Slurm, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    # Without the signal, nothing would be saved by then.
    flags = (REGRESSION, f"--workdir={path}", "--config.delay=1", "--config.checkpoint_every=100")
    job = slurm.queue("--tasks=2", f"--partition={partition}", "--", *flags)
    slurm.wait_for(lambda: last_step(path) >= 3)
    saved = tmp_path / "saved"
    urgent = slurm.ask(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--exclusive",
        "--output=/dev/null",
        f"--wrap=ls {path}/checkpoints > {saved}",
    )
    assert slurm.ended(urgent)["JobState"] == "COMPLETED"
    stopped = last_step(path)
    facts = slurm.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), slurm.printed(job)
    assert str(stopped) in saved.read_text().split()
    assert f"resuming from step {stopped}" in slurm.printed(job)
    assert_same_run(path, whole)


def test_each_element_of_an_array_is_a_run_and_is_queued_again_alone(
    slurm: Slurm, tmp_path: Path
) -> None:
    flags = (REGRESSION, "--config.delay=0.4", f"--workdir={tmp_path}/it's {{index}}")
    array = slurm.queue("--array=1-3", "--", *flags, "--config.seed={index}")
    last = tmp_path / "it's 3"
    slurm.wait_for(lambda: last_step(last) >= 3)
    slurm.ask("scancel", "--signal=TERM", f"{array}_3")
    facts = [slurm.ended(f"{array}_{index}") for index in (1, 2, 3)]
    assert [fact["JobState"] for fact in facts] == ["COMPLETED"] * 3
    assert [fact["Restarts"] for fact in facts] == ["0", "0", "1"]
    first, second, third = (tmp_path / f"it's {index}" for index in (1, 2, 3))
    assert [last_step(path) for path in (first, second, third)] == [STEPS] * 3
    assert len({read_metrics(path)[0]["loss"] for path in (first, second, third)}) == 3


def test_folds_of_a_cross_validation_as_an_array(slurm: Slurm, tmp_path: Path) -> None:
    flags = (MOVING_SHAPES, "--seeds=0", "--config.data.num_folds=3")
    one, several = tmp_path / "one", tmp_path / "several"
    array = ("--array=1-3", "--program=launch.crossvalidate", "--wait")
    parts = slurm.submit(*array, "--", *flags, "--folds={index}", f"--workdir={several}")
    assert parts.returncode == 0, parts.stderr
    runs = [f"fold0{fold}_seed0" for fold in (1, 2, 3)]
    assert sorted(path.parent.name for path in several.glob("*/predictions")) == runs
    # The same command without Slurm prints the table of all folds and trains nothing.
    times = [(several / run / "metrics.jsonl").stat().st_mtime for run in runs]
    table = succeed(start("crossvalidate", *flags, "--folds=1,2,3", f"--workdir={several}"))
    assert [(several / run / "metrics.jsonl").stat().st_mtime for run in runs] == times
    whole = succeed(start("crossvalidate", *flags, "--folds=1,2,3", f"--workdir={one}"))
    assert "of 3 folds" in table
    assert table == whole


def test_what_is_cancelled_or_fails_has_ended(slurm: Slurm, tmp_path: Path) -> None:
    def queue(name: str, *flags: str) -> str:
        return slurm.queue("--", REGRESSION, f"--workdir={tmp_path / name}", *flags)

    cancelled, saved = (queue(name, "--config.delay=2") for name in ("cancelled", "saved"))
    failed = queue("failed", "--config.fails_at=3")
    begun = [tmp_path / name for name in ("cancelled", "saved")]
    slurm.wait_for(lambda: all(last_step(path) >= 1 for path in begun))
    slurm.ask("scancel", cancelled)
    slurm.ask("scancel", "--signal=INT", saved)
    ends = [slurm.ended(job) for job in (cancelled, saved, failed)]
    assert [(end["JobState"], end["Restarts"]) for end in ends] == [
        ("CANCELLED", "0"),
        ("FAILED", "0"),
        ("FAILED", "0"),
    ]
    assert [end["ExitCode"] for end in ends[1:]] == ["130:0", "1:0"]
    time.sleep(10)  # Longer than a job takes that is queued again.
    assert [slurm.facts(job)["Restarts"] for job in (cancelled, saved, failed)] == ["0"] * 3
    assert "the disk of this machine is broken" in slurm.printed(failed)
    for path in begun:  # Saved, both, for one who changes his mind.
        assert last_step(path) < STEPS
        assert (path / "checkpoints" / str(last_step(path))).is_dir()


def test_wait_exits_as_the_job_does_and_refusals_are_shown(slurm: Slurm, tmp_path: Path) -> None:
    done = slurm.submit("--wait", "--", "--config=experiments/moving_shapes.py:smok", "--workdir=x")
    assert done.returncode == 2
    assert "no such variant" in slurm.printed(done.stdout.strip())
    refused = slurm.submit("--partition=none", "--", MOVING_SHAPES, f"--workdir={tmp_path}/run")
    assert "invalid partition specified: none" in sentence(refused)


def test_tasks_share_the_gpus_of_their_node(slurm: Slurm, tmp_path: Path) -> None:
    script = slurm.submit("--dry_run", "--tasks=2", "--gpus=2", "--", f"--workdir={tmp_path}/x")
    words = script.stdout.replace(
        " -u -m launch.train", " -c 'import os; print(os.environ[\"JAX_LOCAL_DEVICE_IDS\"])'"
    )
    file = tmp_path / "script"
    file.write_text(words)
    number = slurm.ask("sbatch", "--parsable", "--wait", str(file))
    assert sorted(slurm.printed(number).splitlines()) == ["0: 0,1", "1: 2,3"]
