"""The study of a sweep in its database: made once, joined by any number of workers.

All its trials are in it from the beginning, waiting; so their number is fixed however many workers
there are, and each is taken by one of them.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxnets.training.config import Config, nearest, to_dict
from flaxnets.training.differences import differences
from launch.sweep_space import Label
from launch.sweep_storage import Database, import_optuna

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("grid", "random", "tpe", "gp")
PRUNERS = ("none", "median", "hyperband")
SETTINGS = "sweep"
"""The study's attribute that holds its settings."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What trials are judged by: a metric of ``eval_split``, or ``step_seconds``."""

    metric: str
    mode: str
    """``max`` or ``min``."""

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"

    @property
    def sign(self) -> int:
        """1 where the greatest value is the best, -1 where the smallest is."""
        return 1 if self.mode == "max" else -1


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is the same for all workers of a study.

    Attributes:
      experiment: ``FILE[:variant]``.
      config: before a trial changes it.
      space: the dimensions as text.
      space_file: the digest of the file that draws values, empty without one.
      objectives: one or more.
      sampler: one of ``SAMPLERS``.
      pruner: one of ``PRUNERS``.
      folds: of a cross-validation, 0 without one.
      seeds: of each trial's runs; empty: the configuration's.
      sampler_seed: of the sampler.
    """

    experiment: str
    config: Config
    space: Sequence[str]
    space_file: str
    objectives: Sequence[Objective]
    sampler: str
    pruner: str
    folds: int = 0
    seeds: Sequence[int] = ()
    sampler_seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the study's attribute."""
        return {
            "experiment": self.experiment,
            "config": to_dict(self.config),
            "space": sorted(self.space),
            "space_file": self.space_file,
            "objectives": [str(objective) for objective in self.objectives],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "folds": self.folds,
            "seeds": list(self.seeds),
            "sampler_seed": self.sampler_seed,
        }

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """One line for each value that another study's settings have differently."""
        own = self.to_json()
        lines = [
            f"{name}: {_show(recorded.get(name))} there, {_show(value)} now"
            for name, value in own.items()
            if name != "config" and recorded.get(name) != value
        ]
        if recorded.get("experiment") == self.experiment:
            lines += differences(recorded["config"], self.config)
        return lines


def open_study(
    database: Database,
    name: str,
    settings: Settings,
    *,
    trials: int,
    cells: Sequence[Mapping[str, Label]] | None = None,
) -> "optuna.Study":
    """Makes the study with its trials, or joins the one that is there.

    More trials than it has are added to it.

    Args:
      database: where it is.
      name: of the study.
      settings: its own, which those of a study that is there must equal.
      trials: their number.
      cells: the values of each trial; None: a sampler draws them.

    Raises:
      ValueError: the study there is of another sweep, with the differences, or has more trials.
      DatabaseUnreachable: no answer.
    """
    module, _ = import_optuna()
    directions = ["maximize" if o.mode == "max" else "minimize" for o in settings.objectives]

    def make_or_join() -> "optuna.Study":
        if name in module.get_all_study_names(database.storage):
            study = module.load_study(study_name=name, storage=database.storage)
            _check_joins(study, settings, trials)
        else:
            study = module.create_study(
                study_name=name, storage=database.storage, directions=directions
            )
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, settings.to_json())
        # Those that are missing: of a new study, a longer sweep, or one whose maker was killed.
        for number in range(len(study.get_trials(deepcopy=False)), trials):
            study.enqueue_trial({} if cells is None else dict(cells[number]))
        return study

    study = database.exclusively(make_or_join)
    study.pruner = make_pruner(settings)
    return study


def load_study(database: Database, name: str | None) -> "optuna.Study":
    """A study that is there, to look at.

    Args:
      database: where it is.
      name: of the study; None: the only one of a sweep in the database.

    Raises:
      ValueError: there is none, or there are several without a name.
    """
    optuna, _ = import_optuna()
    names = database.persist(lambda: optuna.get_all_study_names(database.storage))
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        there = f"; there are {', '.join(sorted(names))}" if names else ""
        raise ValueError(f"study: no study {name or 'given'} in {database.name}{there}")
    study = database.persist(lambda: optuna.load_study(study_name=name, storage=database.storage))
    if SETTINGS not in study.user_attrs:
        raise ValueError(f"study: {name} in {database.name} was not made by launch.sweep")
    return study


def _check_joins(study: "optuna.Study", settings: Settings, trials: int) -> None:
    recorded = study.user_attrs.get(SETTINGS)
    place = f"study: {study.study_name}"
    count = len(study.get_trials(deepcopy=False))
    if recorded is None and count:
        raise ValueError(f"{place} was not made by launch.sweep; name another --study")
    lines = [] if recorded is None else settings.differences(recorded)
    if count > trials:
        lines.append(f"trials: {count} there, {trials} now")
    if lines:
        raise ValueError(
            f"{place} is of another sweep; name another --study or --workdir, or give these flags "
            "as they were:\n  " + "\n  ".join(lines)
        )


def make_sampler(settings: Settings, number: int) -> "optuna.samplers.BaseSampler":
    """What draws the values of a trial.

    It depends on the trial's number, not on who asks, so that workers never draw the same.

    Raises:
      ValueError: ``gp`` without PyTorch.
    """
    optuna, _ = import_optuna()
    check_sampler(settings.sampler)
    seed = int(np.random.SeedSequence((settings.sampler_seed, number)).generate_state(1)[0])
    samplers = {
        # The values of a cell are in its trial.
        "grid": optuna.samplers.RandomSampler,
        "random": optuna.samplers.RandomSampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
    }
    return samplers[settings.sampler](seed=seed)


def check_sampler(name: str) -> None:
    """Raises ValueError for an unknown sampler, or one that needs what is not installed."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler: unknown {name!r}{nearest(name, SAMPLERS)}")
    if name == "gp" and importlib.util.find_spec("torch") is None:
        raise ValueError("the sampler gp needs PyTorch, which is not installed: pip install torch")


def make_pruner(settings: Settings) -> "optuna.pruners.BasePruner":
    """What ends bad trials early.

    ``median`` ends a trial whose best value so far is worse than the median of the others' at the
    same evaluation, from the fifth trial on; ``hyperband`` gives brackets of trials (Li et al.,
    1603.06560) a first evaluation, and the best third of them three times as much.

    Raises:
      ValueError: an unknown one, or one with several objectives.
    """
    optuna, _ = import_optuna()
    if settings.pruner not in PRUNERS:
        raise ValueError(f"pruner: unknown {settings.pruner!r}{nearest(settings.pruner, PRUNERS)}")
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    if len(settings.objectives) > 1:
        raise ValueError(
            "pruner: expected none with several objectives, received " + settings.pruner
        )
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner()
    config = settings.config
    runs = max(settings.folds, 1) * max(len(settings.seeds), 1)
    least = min(config.eval_every, config.num_steps)
    return optuna.pruners.HyperbandPruner(
        min_resource=least, max_resource=runs * config.num_steps, reduction_factor=3
    )


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)
