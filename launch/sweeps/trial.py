"""Trial of a sweep: a configuration with drawn values, its training, and the values it reached.

A trial is a run in ``WORKDIR/trialNNNN``, or one run for each fold and seed below that folder. It
is trained like any other run and resumes from its checkpoints. Its value is the best value of the
objective on ``eval_split``; over folds and seeds, the mean.
"""

import contextlib
import copy
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flaxnets.training.config import Config
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import WorkdirInUse
from launch import program
from launch.reports.statistics import speed_of
from launch.sweeps.plan import Plan
from launch.sweeps.space import apply, draw
from launch.sweeps.study import STEP_SECONDS, Objective, import_optuna

if TYPE_CHECKING:
    from optuna import Trial

LOCK_POLL_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal ended the worker; a training saved a checkpoint first.

    It is not an ``Exception``, so Optuna does not record the trial as failed.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclasses.dataclass(frozen=True)
class Runner:
    """Trains the trials of a sweep.

    Attributes:
      plan: the sweep; ``best_metric`` of its configuration is the first objective.
      folder: parent of the trials' folders.
    """

    plan: Plan
    folder: Path

    def __call__(self, trial: "Trial", number: int) -> list[float]:
        """Trains the trial's runs that are missing or unfinished.

        The trial's attributes get ``overrides``, the values of the fields; with several runs also
        ``runs``, the values of each run by objective, and ``spread``, their standard deviations.

        Args:
          trial: draws the values and is reported to.
          number: names the folder.

        Returns:
          The values of the objectives.

        Raises:
          optuna.TrialPruned: the pruner stopped it.
          Interrupted: a signal ended it.
        """
        settings = self.plan.settings
        config = copy.deepcopy(settings.config)
        drawn = draw(trial, self.plan.dimensions, self.plan.suggest)
        trial.set_user_attr("overrides", apply(config, drawn))
        runs: list[list[float]] = []
        for path, run_config in self._runs(number, config):
            self._train(trial, run_config, path, [values[0] for values in runs])
            runs.append([value_of(o, run_config, path) for o in settings.objectives])
        columns = list(zip(*runs, strict=True))
        if len(runs) > 1:
            trial.set_user_attr("spread", [statistics.stdev(column) for column in columns])
            trial.set_user_attr("runs", [list(column) for column in columns])
        return [statistics.fmean(column) for column in columns]

    def _runs(self, number: int, config: Config) -> Iterator[tuple[Path, Config]]:
        """Yields the folder and configuration of each fold and seed."""
        folds: Sequence[int | None] = range(1, self.plan.settings.folds + 1) or (None,)
        seeds: Sequence[int | None] = self.plan.settings.seeds or (None,)
        for fold, seed in itertools.product(folds, seeds):
            run_config, parts = copy.deepcopy(config), []
            if fold is not None:
                run_config.set_fold(fold)
                parts.append(f"fold{fold:02d}")
            if seed is not None:
                run_config.seed = seed
                parts.append(f"seed{seed}")
            path = self.folder / f"trial{number:04d}"
            yield (path / "_".join(parts) if parts else path), run_config

    def _train(self, trial: "Trial", config: Config, path: Path, before: Sequence[float]) -> None:
        """Trains one run to its end; ``before`` are the values of the trial's earlier runs."""

        def on_evaluation(step: int, metrics: Mapping[str, float]) -> bool:
            value = metrics.get(config.best_metric)
            several = len(self.plan.settings.objectives) > 1
            if several or value is None or not math.isfinite(value):
                return False
            # Two trials are compared at the same step, where the means are over the same runs.
            total_step = len(before) * config.num_steps + step
            return report(trial, statistics.fmean([*before, float(value)]), total_step)

        # A worker that was only slow may still train the trial that is retried here. Optuna refuses
        # its next report or its values, which ends it.
        with contextlib.ExitStack() as held:
            while True:
                try:
                    workdir = held.enter_context(program.open_workdir(path))
                    break
                except WorkdirInUse:
                    time.sleep(LOCK_POLL_SECONDS)
            workdir.claim(self.plan.settings.experiment, config)
            outcome = train(
                config,
                workdir,
                show_progress=False,
                on_start=lambda: program.record_call(workdir.path),
                on_evaluation=on_evaluation,
            )
        if outcome.signal is not None:
            raise Interrupted(outcome.signal)
        if outcome.stopped:
            raise import_optuna().TrialPruned


def report(trial: "Trial", value: float, step: int) -> bool:
    """Reports an evaluation; returns whether the trial is pruned."""
    # A resumed run may evaluate a step again that was reported before, for which Optuna warns.
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if step not in reported:
        trial.report(value, step)
    return trial.should_prune()


def value_of(objective: Objective, config: Config, path: Path) -> float:
    """Returns the value of a finished run at its best checkpoint.

    Raises:
      ValueError: no evaluation has the metric as a finite number.
    """
    records = read_metrics(path)
    if objective.metric == STEP_SECONDS:
        speed = speed_of(records)
        if speed is None:
            raise ValueError(f"{path}: no training record has the time of its steps")
        return 1 / speed.typical_steps_per_second
    sign = 1 if config.best_mode == "max" else -1
    evaluated = [record for record in records if record["split"] == config.eval_split]
    scored = [record for record in evaluated if record.get(config.best_metric) is not None]
    best = max(scored, key=lambda record: sign * record[config.best_metric], default={})
    value = best.get(objective.metric)
    if value is None:
        names = sorted({name for record in evaluated for name in record} - {"step", "split"})
        raise ValueError(
            f"objective: no evaluation of {config.eval_split} gave a finite {objective.metric}; "
            f"there are {', '.join(names) or 'none'}"
        )
    return float(value)
