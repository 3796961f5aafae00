"""Plan of a sweep, checked before any trial starts."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flaxnets.training.config import Config
from flaxnets.training.optimizer import make_optimizer
from launch.sweeps.space import (
    Choices,
    Dimension,
    Label,
    Suggest,
    apply,
    draw,
    load_suggest,
    make_cells,
    parse_spaces,
)
from launch.sweeps.study import (
    STEP_SECONDS,
    Objective,
    Settings,
    check_sampler,
    import_optuna,
    make_pruner,
)

DEFAULT_TRIALS = 16

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a sweep.

    Attributes:
      settings: settings that all workers share.
      dimensions: fields that vary.
      suggest: draws further values; None: there are none.
      cells: values of each trial of a grid; None: a sampler draws the values.
      trials: number of trials.
    """

    settings: Settings
    dimensions: Sequence[Dimension]
    suggest: Suggest | None
    cells: list[dict[str, Label]] | None
    trials: int


def make_plan(
    experiment: str,
    config: Config,
    *,
    space: Sequence[str],
    space_file: Path | None = None,
    objectives: Sequence[str] = (),
    trials: int | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of the sweep that a command describes.

    Args:
      experiment: ``FILE[:variant]``.
      config: its configuration; changed so that the first metric chooses the best checkpoint.
      space: ``FIELD=VALUES`` texts.
      space_file: Python file with ``suggest(trial)``.
      objectives: ``METRIC:max`` or ``METRIC:min`` texts; empty: the configuration's best metric.
      trials: number of trials; None: the cells of a grid, otherwise ``DEFAULT_TRIALS``.
      **options: ``sampler``, ``pruner``, ``folds``, ``seeds``, ``sampler_seed`` of ``Settings``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an argument, or a combination of them, that no sweep can have.
      flaxnets.training.config.UndefinedMethod: folds of an experiment that has none.
    """
    dimensions = parse_spaces(space, config)
    suggest, digest = (None, "") if space_file is None else load_suggest(space_file)
    settings = Settings(
        experiment=experiment,
        config=config,
        space=[str(dimension) for dimension in dimensions],
        space_file=digest,
        objectives=_parse_objectives(objectives, config),
        **options,
    )
    _check_settings(settings)
    cells = None
    if settings.sampler == "grid":
        if suggest is not None:
            raise ValueError("space_file: expected none with the sampler grid, received one")
        cells = make_cells(dimensions)
        if trials not in (None, len(cells)):
            raise ValueError(f"trials: the grid has {len(cells)} cells, received {trials}")
        trials = len(cells)
    if not dimensions and suggest is None:
        raise ValueError("space: expected --space=FIELD=VALUES or --space_file, received none")
    _try_draw(settings, dimensions, suggest)
    _check_names(settings.config, dimensions)
    return Plan(settings, dimensions, suggest, cells, trials or DEFAULT_TRIALS)


def _parse_objectives(texts: Sequence[str], config: Config) -> list[Objective]:
    """Returns the objectives; their first metric becomes the configuration's best metric."""
    found = [_parse_objective(text, config) for text in texts]
    found = found or [Objective(config.best_metric, config.best_mode)]
    names = [objective.metric for objective in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"objective: expected each once, received {name} twice")
    metric = next((one for one in found if one.metric != STEP_SECONDS), None)
    if metric is None:
        raise ValueError(f"objective: expected a metric beside {STEP_SECONDS}, received none")
    config.best_metric, config.best_mode = metric.metric, metric.mode
    return found


def _parse_objective(text: str, config: Config) -> Objective:
    metric, colon, mode = text.partition(":")
    known = {config.best_metric: config.best_mode, STEP_SECONDS: "min"}
    if not colon:
        mode = known.get(metric, "")
    if not metric or mode not in ("max", "min"):
        raise ValueError(
            f"objective: expected METRIC:max or METRIC:min, as {metric or 'loss'}:min, received "
            f"{text!r}"
        )
    return Objective(metric, mode)


def _check_settings(settings: Settings) -> None:
    """Raises ValueError for settings by which no trial can be judged."""
    config = settings.config
    config.validate()
    if config.eval_split in ("", "test", "train"):
        raise ValueError(
            "eval_split: expected a split that judges the trials, which is neither train nor "
            f"test, received {config.eval_split!r}"
        )
    check_sampler(settings.sampler)
    make_pruner(settings)
    if len(set(settings.seeds)) < len(settings.seeds):
        seeds = ",".join(map(str, settings.seeds))
        raise ValueError(f"seeds: expected each once, received {seeds}")
    for fold in range(1, settings.folds + 1):
        copy.deepcopy(config).set_fold(fold)


def _check_names(config: Config, dimensions: Sequence[Dimension]) -> None:
    """Raises ValueError for a text among the values of a field that names no part.

    A draw would find it only in the trial that has it. Each text is tried alone; what it would lack
    together with the other fields is left to the trials.
    """
    for dimension in dimensions:
        for value in dimension.values if isinstance(dimension, Choices) else ():
            if not isinstance(value, str):
                continue
            changed = copy.deepcopy(config)
            apply(changed, {dimension.field: value})
            optimizer = dataclasses.replace(changed.optimizer, multipliers={}, frozen=())
            make = partial(make_optimizer, optimizer, changed.num_steps, {})
            builds: list[Callable[[], Any]] = [changed.validate, make]
            for build in (*builds, changed.make_model, changed.make_task):
                try:
                    build()
                except Exception as error:
                    if f"unknown {value!r}" in str(error):
                        raise ValueError(f"space: {error}") from None
                    logger.debug("%s=%s: %s", dimension.field, value, error)


def _try_draw(settings: Settings, dimensions: Sequence[Dimension], suggest: Suggest | None) -> None:
    """Draws and sets values once, so that errors are raised before the sweep begins."""
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = draw(study.ask(), dimensions, suggest)
    if settings.seeds and "seed" in values:
        raise ValueError("seeds: expected none where the field seed varies, received some")
    apply(copy.deepcopy(settings.config), values)
