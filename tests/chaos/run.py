"""Kills a training again and again, and checks that it equals an uninterrupted one.

    python -m tests.chaos.run --rounds=80 --seed=0

A round trains ``tests/launch/regression.py`` in a workdir, as one process with two devices, as two
processes with one, or as two that ``launch.local`` starts, and sends SIGKILL, SIGTERM, SIGHUP or
SIGUSR1 to one or all processes, or to the launcher: at a random time, after a random step, while a
checkpoint is being written or during an evaluation. Then the newest checkpoint must be complete,
and processes without a signal must have ended, within 15 s after the death of their launcher. The
next round resumes in the same workdir. After the last step, the records must equal those of an
uninterrupted run, without duplicates; every example must occur once per epoch; and the variables
must be equal bit-for-bit. Then the rounds continue with an empty workdir.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import random
import re
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

from flaxnets.training.checkpoint import DIGESTS, Checkpointer, damaged_files
from flaxnets.training.distributed import LOST_PROCESS
from flaxnets.training.metric_writer import read_metrics
from tests.launch.jobs import Job, LocalLaunch
from tests.launch.regression import NUM_EXAMPLES, read_trace

logger = logging.getLogger(__name__)

STEPS = 60
HEARTBEAT = 5
ORPHAN_SECONDS = 15
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
FLAGS = (
    "--config=tests/launch/regression.py",
    f"--config.num_steps={STEPS}",
    "--config.checkpoint_every=3",
    "--config.delay=0.03",
    "--config.eval_delay=0.1",
)


@dataclasses.dataclass
class Runs:
    """Workdirs of runs with one number of processes, and the uninterrupted reference.

    Attributes:
      folder: holds the workdirs.
      num_processes: number of processes.
      launched: True if ``launch.local`` starts them.
    """

    folder: Path
    num_processes: int
    launched: bool = False

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
        arguments = [*FLAGS, f"--workdir={path}", f"--config.trace={path}.trace"]
        if self.launched:
            arguments += [f"--heartbeat_timeout={HEARTBEAT}", "--initialization_timeout=60"]
            logs, cache = self.folder / "logs", self.folder / "cache"
            return LocalLaunch(arguments, logs=logs, cache=cache, num_processes=self.num_processes)
        return Job(
            "launch.train",
            arguments,
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
        for trace in self.folder.glob(f"{self.workdir.name}.trace*"):
            trace.unlink()

    def step(self) -> int:
        """Returns the last recorded step."""
        return max((record["step"] for record in read_metrics(self.workdir)), default=0)

    def is_writing(self) -> bool:
        """Returns True while a checkpoint is being written."""
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    def evaluated(self) -> int:
        """Returns the number of batches that evaluations have read."""
        trace = Path(f"{self.workdir}.trace-evaluation")
        return trace.stat().st_size if trace.exists() else 0

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
    if kind == "during an evaluation":
        # Of the next one or the one after that; the file grows at the start of each batch.
        size = runs.evaluated() + rng.randint(1, 8)
        return kind, lambda: runs.evaluated() > size
    return kind, lambda: runs.step() >= step and runs.is_writing()


def play_round(runs: Runs, rng: random.Random) -> str:
    """Plays one round; returns its events in words."""
    number = rng.choice(SIGNALS)
    victims = sorted(rng.sample(range(runs.num_processes), rng.randint(1, runs.num_processes)))
    # Half of the time the launcher, if there is one.
    at_launcher = runs.launched and rng.random() < 0.5
    with runs.start() as job:
        before = runs.step()
        moment, condition = choose_moment(runs, rng)
        if not job.wait_until(condition):
            moment, victims = "never: the run had finished", []
        time.sleep(rng.uniform(0, 0.02))
        who = " and ".join(map(str, victims)) or "nobody"
        if isinstance(job, LocalLaunch) and victims:
            workers = job.workers()
            targets = [workers[rank] for rank in victims if rank in workers]
            if at_launcher or not targets:
                who, targets = "the launcher", [job.processes[0].pid]
            for target in targets:
                with contextlib.suppress(ProcessLookupError):  # It has just ended.
                    os.kill(target, number)
        else:
            for victim in victims:
                job.processes[victim].send_signal(number)
        trained = runs.step() > before
        codes = job.wait(timeout=150)
        if isinstance(job, LocalLaunch):
            job.wait_for_workers(ORPHAN_SECONDS)
        text = job.text()
    killed = number == signal.SIGKILL
    lost = {-signal.SIGABRT, LOST_PROCESS, 1}
    saved = {128 + number, 128 + signal.SIGTERM}
    if who == "the launcher":
        # What it started before its handlers were set has ended with it.
        allowed = {-number} if killed else {0, -number, 128 + number}
        assert codes[0] in allowed, text
    elif runs.launched:
        assert codes[0] in ({0, 128 + number} if killed else {0, *saved, *lost}), text
        if codes[0] == 128 + signal.SIGKILL:
            assert re.search(r"error: process \d of 2 was killed by SIGKILL", text), text
    else:
        others = lost if killed else {*saved, *lost}
        for process, code in enumerate(codes):
            if process in victims:
                assert code in {-number, 0, *others}, text
            else:
                assert code == 0 or (victims and code in others), text
    latest = runs.check_checkpoints()
    launcher_died = who == "the launcher" and killed and trained
    told = "stopped at step" in text or not runs.launched  # Not before its handlers were set.
    if (set(codes) <= saved and told) or launcher_died:  # All processes saved the same step.
        assert latest == runs.step(), text
    assert "Traceback" not in text or killed, text
    split, step, *_ = records_of(runs.expected)[-1]
    # A signal during the last evaluation leaves the last step saved and the evaluation due.
    done = latest == STEPS and (split, step) in [r[:2] for r in records_of(runs.workdir)]
    if done:
        runs.check_finished()
        runs.clear()
    end = (
        "all steps done, equal to the uninterrupted run" if done else f"newest checkpoint {latest}"
    )
    kind = "processes of launch.local" if runs.launched else "processes"
    return (
        f"{runs.num_processes} {kind}, {number.name} to {who}, {moment}: exit codes {codes}, {end}"
    )


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
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have the trainings ignore it.
    rng = random.Random(seed)
    kinds = [Runs(folder / "1", 1), Runs(folder / "2", 2), Runs(folder / "local", 2, True)]
    counts: Counter[str] = Counter()
    for number in range(rounds):
        runs = kinds[number % len(kinds)]
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
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="flaxnets-chaos-") as folder:
        counts = play(arguments.rounds, arguments.seed, Path(folder))
    logger.info("%(rounds)d rounds; %(runs)d finished runs equal the uninterrupted ones", counts)


if __name__ == "__main__":
    main()
