"""Evaluation and prediction with a checkpoint of a run."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.config import Config, Data, UndefinedMethod, data_differences
from flaxnets.training.distributed import is_first
from flaxnets.training.evaluation import carry_maker, evaluate, gather_records
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import make_evaluation_step
from flaxnets.training.workdir import Workdir, WorkdirError, write_text_atomically


@runtime_checkable
class PredictsFiles(Protocol):
    """Configuration of an experiment whose model can be applied to files."""

    def make_prediction_data(self, paths: Sequence[str]) -> Data:
        """Returns the batches of files without labels, in the given order."""


@runtime_checkable
class DescribesPredictions(Protocol):
    """Configuration of an experiment whose predictions for files are no classes, as forecasts."""

    def describe_prediction(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns what is told of a file, JSON, of a record of ``TrainedModel.predict``."""


@runtime_checkable
class WritesResults(Protocol):
    """Configuration of an experiment whose benchmark has a result file of its own."""

    def write_results(self, path: Path, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes the records of a split in the benchmark's format, beside their ``path``."""


def prediction_data(config: Config, paths: Sequence[str]) -> Data:
    """Returns the batches of files without labels.

    Raises:
      UndefinedMethod: the experiment does not define ``make_prediction_data``.
    """
    if not isinstance(config, PredictsFiles):
        raise UndefinedMethod(config, "make_prediction_data")
    return config.make_prediction_data(paths)


class TrainedModel:
    """The model of a run with the variables of one checkpoint, compiled for this machine.

    Attributes:
      config: the configuration of the run.
      workdir: the folder of the run.
      step: the step of the checkpoint.
      class_names: names of the classes in training, by label; empty if the labels have none.
      variables: Linen's collections; averaged parameters if the run kept an average.
    """

    def __init__(self, config: Config, workdir: Workdir, step: int | None = None) -> None:
        """Restores a checkpoint.

        Args:
          config: the configuration of the run.
          workdir: its folder.
          step: by default the best one, or the newest if none was evaluated.

        Raises:
          FileNotFoundError: no checkpoint, or none of that step.
          ValueError: a checkpoint that does not fit the assets beside it.
          WorkdirError: no record of the data, or another preprocessing than in training.
        """
        self.config, self.workdir = config, workdir
        recorded = workdir.read_data()
        self.class_names: tuple[str, ...] = tuple(recorded["class_names"])
        # Before the model is built, whose sizes may depend on them (a vocabulary).
        config.load_assets(workdir.path)
        preprocessing = {"preprocessing": config.describe_preprocessing()}
        if lines := data_differences({"preprocessing": recorded["preprocessing"]}, preprocessing):
            raise WorkdirError(
                f"{workdir.path}: was trained with another preprocessing: {'; '.join(lines)}"
            )
        self.step, variables = restore_variables(workdir, step)
        config.check_variables(variables)
        self._strategy = DataParallel()
        self.variables = self._strategy.place_variables(variables)
        self._task = config.make_prediction_task()
        self.model = config.make_model()
        self._evaluation_step = self._strategy.compile_evaluation(
            make_evaluation_step(self.model, self._task)
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Returns the metrics of a split and writes its outputs to ``predictions/SPLIT.jsonl``.

        A line holds ``index``, ``label`` if there is one, and ``Task.describe_outputs``. An
        experiment that ``WritesResults`` writes its benchmark's format beside it. Of several
        processes each makes the call, and the first one writes.

        Raises:
          ValueError: ``train``, or a split that the experiment does not have.
          FileNotFoundError: the data are not where they were.
          WorkdirError: data of other classes, or another list of a split that training read.
        """
        described = self.check_split(split)
        records: list[dict[str, Any]] = []

        def keep(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
            records.extend(self._records(batch, outputs))

        metrics = self.measure(self.config.make_data(split), split, keep)
        all_records = gather_records(records)
        if is_first():
            path = self.workdir.predictions(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record) + "\n" for record in all_records]
            write_text_atomically(path, "".join(lines))
            self.workdir.record_evaluated(split, described)
            if isinstance(self.config, WritesResults):
                self.config.write_results(path, split, all_records)
        return metrics

    def check_split(self, split: str) -> Mapping[str, Any]:
        """Returns the description of a split that can be evaluated; raises as ``evaluate``."""
        if split == "train":
            raise ValueError(
                "split: expected one that ends, as validation, received 'train': the training "
                "data have no end"
            )
        try:
            described = self.config.describe_data(split)
        except FileNotFoundError as error:
            if "--config.data.root" in str(error):  # The experiment says it already.
                raise
            raise FileNotFoundError(
                f"{error}; if the data were moved, --config.data.root=FOLDER tells where they are"
            ) from error
        self.workdir.check_data(split, described)
        return described

    def measure(
        self, data: Data, split: str, on_outputs: Callable[..., None] | None = None
    ) -> dict[str, float]:
        """Returns the metrics on data, as those of a split or changed ones; writes nothing.

        Args:
          data: batches that end.
          split: whose ``make_scorer`` scores the records.
          on_outputs: as of ``flaxnets.training.evaluation.evaluate``.
        """
        return evaluate(
            self._evaluation_step,
            self._strategy,
            self.variables,
            data,
            on_outputs,
            score=self.config.make_scorer(split, complete=True),
            describe=self._task.describe_outputs,
            first_carry=carry_maker(self._task, self.model, self.variables),
        )

    def predict(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields a record for each file: its ``index`` in ``paths`` and its outputs.

        A file that could not be read yields ``{"index": …, "error": REASON}``.

        Raises:
          UndefinedMethod: the experiment does not define ``make_prediction_data``.
        """
        data = prediction_data(self.config, paths)
        for batch in data.batches():
            _, outputs = self._evaluation_step(self.variables, self._strategy.shard(batch))
            for row in range(len(batch["index"])):
                # Index -1 fills up the last batch.
                index = int(batch["index"][row])
                if not batch["mask"][row] and index >= 0:
                    reasons = getattr(data, "bad", {})  # those of ``data.loader.Loader``
                    yield {"index": index, "error": reasons.get(index, "could not be read")}
            yield from self._records(batch, jax.device_get(outputs))

    def _records(
        self, batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> Iterator[dict[str, Any]]:
        for row in np.flatnonzero(batch["mask"]):
            label = {"label": int(batch["label"][row])} if "label" in batch else {}
            yield {
                "index": int(batch["index"][row]),
                **label,
                **self._task.describe_outputs(dict(outputs), int(row)),
            }


def describe_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics for JSON, which has neither NaN nor infinity: None takes their place.

    >>> describe_metrics({"loss": float("nan"), "step": 3, "accuracy": 0.5})
    {'loss': None, 'step': 3, 'accuracy': 0.5}
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Returns the records that ``TrainedModel.evaluate`` wrote.

    Raises:
      ValueError: a line is damaged; names it.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: damaged ({error}); expected one JSON record per line, as "
                "launch.evaluate writes them; evaluate again"
            ) from None
    return records
