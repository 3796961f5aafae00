"""Training, test, cost and order probes of one cell of a study, kept as ``result.json``."""

import json
import logging
import statistics
from pathlib import Path
from typing import Any

from flaxnets.inference.trained_model import TrainedModel
from flaxnets.training.config import Config, override
from flaxnets.training.cost import estimate_cost
from flaxnets.training.evaluation import close_batches
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import NonFiniteLoss, read_metrics
from flaxnets.training.workdir import WorkdirInUse, write_text_atomically
from launch import program
from launch.comparison.order_probes import PROBES, ProbedData
from launch.comparison.study import Cell

RESULT = "result.json"

logger = logging.getLogger(__name__)


def make_config(cell: Cell) -> Config:
    """Returns the configuration of a cell's run.

    Raises:
      ValueError: no such variant or field.
    """
    config = program.load_experiment(cell.spec)
    override(config, cell.overrides())
    return program.conform_tuples(config)


def read_result(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """Returns the result of a cell; None if it is not done.

    Raises:
      ValueError: the result is that of other settings, as of another budget.
    """
    path = folder / cell.folder / RESULT
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    there, here = result["settings"], _settings(cell)
    if different := [n for n in {**there, **here} if there.get(n) != here.get(n)]:
        name = different[0]
        raise ValueError(
            f"{path}: expected the result of {name} = {here.get(name)}, received that of "
            f"{there.get(name)}; take another --workdir for another budget or study"
        )
    return result


def run_cell(folder: Path, cell: Cell) -> int | None:
    """Trains and tests a cell unless it is done, or another process has it.

    A training whose loss is not finite has the result that it diverged.

    Returns:
      The exit code if a signal ended the training; None otherwise.
    """
    if read_result(folder, cell) is not None:
        return None
    path = folder / cell.folder
    path.mkdir(parents=True, exist_ok=True)
    try:
        with program.open_workdir(path) as workdir:
            if read_result(folder, cell) is not None:  # Another process has just ended it.
                return None
            config = make_config(cell)
            workdir.claim(cell.spec, config)
            logger.info("%s", cell.folder)
            try:
                outcome = train(
                    config,
                    workdir,
                    show_progress=False,
                    on_start=lambda: program.record_call(workdir.path),
                )
            except NonFiniteLoss as error:  # A result, too, that others do not wait for.
                logger.warning("%s: %s", cell.folder, error)
                _write_result(path, cell, config, value=None, diverged=str(error))
                return None
            if outcome.signal is not None:
                return 128 + outcome.signal
            model = TrainedModel(config, workdir)
            metrics = model.evaluate(cell.task.split)
            probes = {}
            if cell.task.order_probes:
                for probe in PROBES:
                    data = ProbedData(config.make_data(cell.task.split), probe)
                    probes[probe] = model.measure(data, cell.task.split)[cell.task.metric]
            _write_result(
                path,
                cell,
                config,
                value=metrics[cell.task.metric],
                metrics=metrics,
                probes=probes,
                step=model.step,
                steps=outcome.step,
            )
    except WorkdirInUse:
        logger.info("%s is trained by another process", cell.folder)
    return None


def _write_result(path: Path, cell: Cell, config: Config, **figures: Any) -> None:
    """Writes a cell's result: ``value`` of the metric, None if the training diverged."""
    result = {
        "task": cell.task.name,
        "family": cell.family,
        "rung": cell.rung,
        "fold": cell.fold,
        "seed": cell.seed,
        "settings": _settings(cell),
        "metric": cell.task.metric,
        "metrics": {},
        "probes": {},
        "steps": 0,
        **figures,
        **_cost(config),
        **_speed(path, config),
    }
    write_text_atomically(path / RESULT, json.dumps(result, indent=1) + "\n")


def _settings(cell: Cell) -> dict[str, Any]:
    """Returns what a result depends on; the data may be moved."""
    values = {"experiment": cell.spec, **cell.overrides()}
    return {name: value for name, value in values.items() if name != "data.root"}


def _cost(config: Config) -> dict[str, Any]:
    """Returns parameters, operations for each example, and bytes of a training step."""
    batches = config.make_data("train").batches()
    batch = next(batches)
    close_batches(batches)
    cost = estimate_cost(config, batch)
    rows = len(batch["mask"])
    return {
        "parameters": sum(cost.parameters.values()),
        "flops": cost.evaluate.products / rows,
        "memory": cost.memory.peak if cost.memory else None,
    }


def _speed(path: Path, config: Config) -> dict[str, Any]:
    """Returns the median seconds of a training step, as the run's records have it."""
    rates = [
        record["clips_per_second"]
        for record in read_metrics(path)
        if record["split"] == "train" and record.get("clips_per_second")
    ]
    return {"step_seconds": config.batch_size / statistics.median(rates) if rates else None}
