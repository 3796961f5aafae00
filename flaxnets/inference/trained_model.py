"""Evaluation and prediction with a checkpoint of a run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.config import Config
from flaxnets.training.distributed import is_first
from flaxnets.training.evaluation import evaluate, gather_records
from flaxnets.training.files import write_text_atomically
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import make_evaluation_step
from flaxnets.training.workdir import Workdir


class TrainedModel:
    """A run's model with the variables of one checkpoint, compiled for this machine.

    Attributes:
      step: the checkpoint's step.
      variables: Linen's collections.
    """

    def __init__(self, config: Config, workdir: Workdir, step: int | None = None) -> None:
        """Restores ``step``, by default the best one (the newest where none was evaluated).

        Raises:
          FileNotFoundError: no checkpoint, or none of that step.
          ValueError: a checkpoint that does not belong to the assets beside it.
        """
        self.config, self.workdir = config, workdir
        config.load_assets(workdir.path)
        self.step, variables = restore_variables(workdir, step)
        config.check_variables(variables)
        self._strategy = DataParallel()
        self.variables = self._strategy.place_variables(variables)
        self._task = config.make_prediction_task()
        self._evaluation_step = self._strategy.compile_evaluation(
            make_evaluation_step(config.make_model(), self._task)
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics of a whole split; its outputs go to ``predictions/SPLIT.jsonl``.

        Each line holds ``index``, ``label`` where there is one, and what the task says of the
        outputs. The experiment may write other formats beside them. Of several processes, which all
        call it, the first writes for all.

        Raises:
          ValueError: ``train``, or what the experiment says of a split that it lacks.
        """
        if split == "train":
            raise ValueError("split: the training data have no end, so train cannot be evaluated")
        records: list[dict[str, Any]] = []

        def keep(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
            records.extend(self._records(batch, outputs))

        metrics = evaluate(
            self._evaluation_step,
            self._strategy,
            self.variables,
            self.config.make_data(split),
            keep,
            score=self.config.make_scorer(split, complete=True),
            describe=self._task.describe_outputs,
        )
        everyone = gather_records(records)
        if is_first():
            path = self.workdir.predictions(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(record) + "\n" for record in everyone]
            write_text_atomically(path, "".join(lines))
            self.config.write_results(path, split, everyone)
        return metrics

    def predict(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields a record for each file that could be read: its ``index`` in ``paths`` and outputs.

        A file that could not be read yields ``{"index": …, "error": True}``.
        """
        for batch in self.config.make_prediction_data(paths).batches():
            placed = self._strategy.shard(batch)
            _, outputs = self._evaluation_step(self.variables, placed)
            for row in range(len(batch["index"])):
                if not batch["mask"][row] and batch["index"][row] >= 0:
                    yield {"index": int(batch["index"][row]), "error": True}
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


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records that ``TrainedModel.evaluate`` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
