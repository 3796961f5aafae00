"""One trial of a sweep: a configuration with drawn values, trained, and what it reached.

A trial is a run in ``WORKDIR/trialNNNN``, or one for each fold and seed below it. It is trained by
the same trainer as any run and resumes from its checkpoints. Its value is the best one of the
objective on ``eval_split``, where its best checkpoint was saved; over folds and seeds, the mean.
"""

import copy
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxnets.training.config import Config
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.workdir import Workdir
from launch.reports.statistics import speed_of
from launch.sweeps.space import Dimension, Suggest, apply
from launch.sweeps.study import Database, Objective, Settings

if TYPE_CHECKING:
    import optuna

STEP_SECONDS = "step_seconds"
"""The objective that is no metric: the median time of a training step."""


class Interrupted(BaseException):
    """A signal ended the training, after a checkpoint."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclasses.dataclass(frozen=True)
class Result:
    """What a trial reached.

    Attributes:
      values: of the objectives; None: it was pruned.
      attributes: what else to remember, for JSON: ``spread``, the standard deviation over runs of
        each objective, and ``runs``, the values of each run.
    """

    values: list[float] | None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Runner:
    """Trains trials.

    Attributes:
      settings: of the sweep; its configuration's ``best_metric`` is the first objective.
      dimensions: which fields vary.
      suggest: draws further values; None: there are none.
      folder: of all trials.
      database: which they report to.
    """

    settings: Settings
    dimensions: Sequence[Dimension]
    suggest: Suggest | None
    folder: Path
    database: Database

    def __call__(self, trial: "optuna.Trial") -> Result:
        """Trains the trial's runs, those that are missing or unfinished.

        Raises:
          Interrupted: a signal ended it.
        """
        config = copy.deepcopy(self.settings.config)
        drawn = self.database.persist(lambda: draw(trial, self.dimensions, self.suggest))
        overrides = apply(config, drawn)
        self.database.persist(lambda: trial.set_user_attr("overrides", overrides))
        runs: list[list[float]] = []
        for path, run_config in self._runs(trial.number, config):
            before = [values[0] for values in runs]
            if not self._train(trial, run_config, path, before):
                return Result(None)
            runs.append([value_of(o, run_config, path) for o in self.settings.objectives])
        columns = list(zip(*runs, strict=True))
        attributes: dict[str, Any] = {}
        if len(runs) > 1:
            attributes["spread"] = [statistics.stdev(column) for column in columns]
            attributes["runs"] = [list(column) for column in columns]
        return Result([statistics.fmean(column) for column in columns], attributes)

    def place(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial{number:04d}"

    def _runs(self, number: int, config: Config) -> Iterator[tuple[Path, Config]]:
        folds: Sequence[int | None] = range(1, self.settings.folds + 1) or (None,)
        seeds: Sequence[int | None] = self.settings.seeds or (None,)
        for fold, seed in itertools.product(folds, seeds):
            run_config, parts = copy.deepcopy(config), []
            if fold is not None:
                run_config.set_fold(fold)
                parts.append(f"fold{fold:02d}")
            if seed is not None:
                run_config.seed = seed
                parts.append(f"seed{seed}")
            place = self.place(number)
            yield (place / "_".join(parts) if parts else place), run_config

    def _train(
        self, trial: "optuna.Trial", config: Config, path: Path, before: Sequence[float]
    ) -> bool:
        """Trains one run to its end; False where the trial is pruned."""

        def on_evaluation(step: int, metrics: Mapping[str, float]) -> bool:
            value = metrics.get(config.best_metric)
            if len(self.settings.objectives) > 1 or value is None or not math.isfinite(value):
                return False
            # Of each trial the same runs are in the mean at the same step.
            place = len(before) * config.num_steps + step
            mean = statistics.fmean([*before, float(value)])
            return self.database.persist(lambda: report(trial, mean, place))

        with Workdir(path) as workdir:
            workdir.claim(self.settings.experiment, config)
            outcome = train(config, workdir, show_progress=False, on_evaluation=on_evaluation)
        if outcome.signal is not None:
            raise Interrupted(outcome.signal)
        return not outcome.stopped


def draw(
    trial: "optuna.Trial", dimensions: Sequence[Dimension], suggest: Suggest | None
) -> dict[str, Any]:
    """A value of each dimension, and those of the file.

    Raises:
      ValueError: the file does not give values by field, or gives one of a dimension.
    """
    values = {dimension.field: dimension.suggest(trial) for dimension in dimensions}
    if suggest is None:
        return values
    further = suggest(trial)
    if not isinstance(further, Mapping):
        raise ValueError(
            "space_file: expected suggest(trial) to return values by field, received "
            f"{type(further).__name__}"
        )
    if twice := values.keys() & further.keys():
        raise ValueError(f"space_file: {', '.join(sorted(twice))} is given by --space, too")
    return {**values, **further}


def report(trial: "optuna.Trial", value: float, step: int) -> bool:
    """Reports an evaluation; whether the trial is pruned."""
    # One that goes on after a kill may come by the same step again.
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(value, step)
    return trial.should_prune()


def value_of(objective: Objective, config: Config, path: Path) -> float:
    """What a finished run reached, at its best checkpoint.

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
