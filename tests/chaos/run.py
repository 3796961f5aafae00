"""Kills a training again and again, and checks that it equals an uninterrupted one.

    python -m tests.chaos.run --rounds=50 --seed=0

A round trains ``tests/launch/regression.py`` in a workdir, as one process with two devices or as
two processes with one, and sends SIGKILL or SIGTERM to one or all processes: at a random time,
after a random step, while a checkpoint is being written, or during an evaluation. Then the newest
checkpoint must be complete, and processes without a signal must have ended. The next round resumes
in the same workdir. After the last step, the records must equal those of an uninterrupted run,
without duplicates; every example must occur once per epoch; and the variables must be equal
bit-for-bit. Then the rounds continue with an empty workdir.
"""

import argparse
import dataclasses
import logging
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxnets.training.checkpoint import (
    DIGESTS,
    METRICS,
    Checkpointer,
    damaged_files,
    steps_on_disk,
)
from flaxnets.training.metric_writer import read_metrics
from tests.launch.jobs import Job
from tests.launch.regression import NUM_EXAMPLES, read_trace

logger = logging.getLogger(__name__)

STEPS = 60
HEARTBEAT = 5
FLAGS = (
    "--config=tests/launch/regression.py",
    f"--config.num_steps={STEPS}",
    "--config.checkpoint_every=3",
    "--config.delay=0.03",
    "--config.eval_delay=0.1",
)


@dataclasses.dataclass
class Runs:
    """Workdirs of runs with one number of processes, and the uninterrupted reference."""

    folder: Path
    num_processes: int

    def __post_init__(self) -> None:
        self.workdir = self.folder / "run"
        self.expected = self.folder / "uninterrupted"
        start = time.monotonic()
        with self.start(self.expected) as job:
            job.succeed()
        self.seconds = time.monotonic() - start

    def start(self, workdir: Path | None = None) -> Job:
        """Starts or resumes the run."""
        path = workdir or self.workdir
        return Job(
            "launch.train",
            [*FLAGS, f"--workdir={path}", f"--config.trace={path}.trace"],
            logs=self.folder / "logs",
            num_processes=self.num_processes,
            devices=2 // self.num_processes,
            cache=self.folder / "cache",
            heartbeat=HEARTBEAT,
            initialization=60,
        )

    def clear(self) -> None:
        """Deletes the run."""
        shutil.rmtree(self.workdir)
        for trace in self.folder.glob(f"{self.workdir.name}.trace.*"):
            trace.unlink()

    def step(self) -> int:
        """Returns the last recorded step."""
        return max((record["step"] for record in read_metrics(self.workdir)), default=0)

    def is_writing(self) -> bool:
        """Returns True while a checkpoint is being written."""
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    def is_evaluating(self) -> bool:
        """Returns True while a checkpoint is on disk whose evaluation is not finished."""
        steps = steps_on_disk(self.workdir / "checkpoints")
        return any(
            step % 10 == 0 and not (self.workdir / "checkpoints" / str(step) / METRICS).exists()
            for step in steps
        )

    def check_checkpoints(self) -> int | None:
        """Returns the step of the newest checkpoint or None; all must be complete."""
        folder = self.workdir / "checkpoints"
        if not folder.is_dir():
            return None
        checkpointer = Checkpointer(folder, read_only=True)
        try:
            for step in checkpointer.steps:
                assert (folder / str(step) / DIGESTS).is_file()
                assert damaged_files(folder / str(step)) == []
                checkpointer.restore_variables(step)
            return checkpointer.latest_step
        finally:
            checkpointer.close()

    def check_finished(self) -> None:
        """Compares a finished run with the uninterrupted reference."""
        assert records_of(self.workdir) == records_of(self.expected)
        jax.tree.map(
            np.testing.assert_array_equal,
            last_variables(self.workdir),
            last_variables(self.expected),
        )
        examples = read_trace(Path(f"{self.workdir}.trace"), STEPS)
        assert examples == read_trace(Path(f"{self.expected}.trace"), STEPS)
        for first in range(0, len(examples) - NUM_EXAMPLES + 1, NUM_EXAMPLES):
            assert sorted(examples[first : first + NUM_EXAMPLES]) == list(range(NUM_EXAMPLES))


def records_of(workdir: Path) -> list[tuple[Any, ...]]:
    return [
        (record["split"], record["step"], record["loss"], record.get("gradient_norm"))
        for record in read_metrics(workdir)
    ]


def last_variables(workdir: Path) -> Any:
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    assert checkpointer.latest_step == STEPS
    variables = checkpointer.restore_variables()
    checkpointer.close()
    return jax.device_get(variables)


def choose_moment(runs: Runs, rng: random.Random) -> tuple[str, Callable[[], bool]]:
    """Returns the moment of the signal, in words and as a condition."""
    kind = rng.choice(["any time", "after a step", "during a save", "during an evaluation"])
    if kind == "any time":
        end = time.monotonic() + rng.uniform(0, runs.seconds)
        return kind, lambda: time.monotonic() >= end
    step = runs.step() + rng.randint(1, STEPS // 3)
    if kind == "after a step":
        return kind, lambda: runs.step() >= step
    happens = runs.is_writing if kind == "during a save" else runs.is_evaluating
    return kind, lambda: runs.step() >= step and happens()


def play_round(runs: Runs, rng: random.Random) -> str:
    """Plays one round; returns its events in words."""
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    victims = sorted(rng.sample(range(runs.num_processes), rng.randint(1, runs.num_processes)))
    with runs.start() as job:
        moment, condition = choose_moment(runs, rng)
        if not job.wait_until(condition):
            moment, victims = "never: the run had finished", []
        time.sleep(rng.uniform(0, 0.02))
        for victim in victims:
            job.processes[victim].send_signal(number)
        codes = job.wait(timeout=150)
        text = job.text()
    others = {-signal.SIGABRT, 1} if number == signal.SIGKILL else {128 + number, -signal.SIGABRT}
    for process, code in enumerate(codes):
        if process in victims:
            assert code in {-number, 128 + number, 0, *others}, text
        else:
            assert code == 0 or (victims and code in others), text
    latest = runs.check_checkpoints()
    stopped = {128 + number}
    if set(codes) == stopped:  # All processes saved the same step.
        assert latest == runs.step(), text
    assert "Traceback" not in text or number == signal.SIGKILL, text
    done = all(code == 0 for code in codes)
    if done:
        assert latest == STEPS
        runs.check_finished()
        runs.clear()
    who = f"{number.name} to {' and '.join(map(str, victims)) or 'nobody'}"
    end = (
        "all steps done, equal to the uninterrupted run" if done else f"newest checkpoint {latest}"
    )
    return f"{runs.num_processes} processes, {who}, {moment}: exit codes {codes}, {end}"


def play(rounds: int, seed: int, folder: Path, *, finish: bool = True) -> Counter[str]:
    """Plays the rounds.

    Args:
      rounds: number of rounds.
      seed: random seed of the signals.
      folder: an empty folder for the workdirs.
      finish: also finish and check the runs that remain after the last round.

    Returns:
      Numbers of ``rounds`` and of finished ``runs``.
    """
    rng = random.Random(seed)
    kinds = [Runs(folder / str(count), count) for count in (1, 2)]
    counts: Counter[str] = Counter()
    for number in range(rounds):
        runs = kinds[number % 2]
        story = play_round(runs, rng)
        counts["rounds"] += 1
        counts["runs"] += "all steps done" in story
        logger.info("round %d: %s", number + 1, story)
    for runs in kinds if finish else ():
        with runs.start() as job:
            job.succeed()
        runs.check_finished()
        counts["runs"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="flaxnets-chaos-") as folder:
        counts = play(arguments.rounds, arguments.seed, Path(folder))
    logger.info("%(rounds)d rounds; %(runs)d finished runs equal the uninterrupted ones", counts)


if __name__ == "__main__":
    main()
