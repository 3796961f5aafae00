"""Evaluation of a whole split; each example counts once, also in a partial last batch."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxnets.metrics import MeanAccumulator
from flaxnets.tasks.task import Task
from flaxnets.training.config import Data, Scorer
from flaxnets.training.parallel import Strategy
from flaxnets.typing import PyTree


def carry_maker(
    task: Task, model: nn.Module, variables: PyTree
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None:
    """Returns ``first_carry`` of ``evaluate`` for a task; None if it carries nothing."""
    first_carry = getattr(task, "first_carry", None)
    return None if first_carry is None else partial(first_carry, model, variables)


class EvaluationStopped(Exception):
    """An evaluation that its caller ended before the last batch."""


def evaluate(
    evaluation_step: Callable[..., Any],
    strategy: Strategy,
    variables: PyTree,
    data: Data,
    on_outputs: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None] | None = None,
    *,
    score: Scorer | None = None,
    describe: Callable[[dict[str, np.ndarray], int], dict[str, Any]] | None = None,
    stops: Callable[[], bool] = lambda: False,
    first_carry: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
) -> dict[str, float]:
    """Returns the means of the metrics over all examples of a split.

    Rows whose ``mask`` is False fill up the last batch (``index`` -1) or belong to clips that could
    not be decoded (``index`` >= 0), which are counted as ``skipped``.

    Args:
      evaluation_step: compiled function of (variables, batch) to sums and outputs.
      strategy: shards the batches.
      variables: Linen's variables, on the strategy's devices.
      data: the split.
      on_outputs: called with each batch and its outputs, NumPy arrays of this process's rows.
      score: computes metrics of the split from the records of all examples, of all processes;
        needs ``describe``.
      describe: function of outputs and a row to a record, ``Task.describe_outputs``.
      stops: called after each batch; True ends the evaluation. All processes get the same answer.
      first_carry: returns the carry before the first batch, arrays (B,...) by name; they are added
        to each batch, and outputs of these names are the carry of the next one. None: no batch
        depends on the one before. ``Task.first_carry`` with model and variables is one.

    Returns:
      Means by name; ``examples``, the count of the sum ``examples`` or else of ``loss``; and
      ``skipped``. Both are over all processes.

    Raises:
      EvaluationStopped: ``stops`` returned True.
      ValueError: ``score`` without ``describe``.
    """
    if score is not None and describe is None:
        raise ValueError("describe: expected a function, whose records score reads, received None")
    accumulator = MeanAccumulator()
    skipped = 0
    records: list[dict[str, Any]] = []
    batches = data.batches()
    carry: dict[str, np.ndarray] | None = None
    try:
        for batch in batches:
            if carry is None:
                carry = first_carry(batch) if first_carry is not None else {}
            sums, outputs = evaluation_step(variables, strategy.shard({**batch, **carry}))
            if carry:
                outputs = dict(outputs)
                carry = local_rows({name: outputs.pop(name) for name in carry})
            accumulator.add(jax.device_get(sums))
            skipped += int(np.sum(~batch["mask"] & (batch["index"] >= 0)))
            if on_outputs is not None or score is not None:
                outputs = local_rows(outputs)
            if on_outputs is not None:
                on_outputs(batch, outputs)
            if score is not None and describe is not None:
                records += [
                    {"index": int(batch["index"][row]), **describe(outputs, int(row))}
                    for row in np.flatnonzero(batch["mask"])
                ]
            # After the last batch, too: the score of all records may take minutes.
            if stops():
                raise EvaluationStopped
    finally:
        close_batches(batches)
    means = accumulator.means()
    if score is not None:
        means |= score(gather_records(records))
    counted = accumulator.count("examples") or accumulator.count("loss")
    if jax.process_count() > 1:  # The sums are global already, this count is local.
        skipped = int(np.sum(multihost_utils.process_allgather(np.array([skipped]))))
    return {**means, "examples": counted, "skipped": float(skipped)}


def close_batches(batches: Iterator[Mapping[str, np.ndarray]]) -> None:
    """Closes an iterator of batches, which ends its threads and worker processes, if any."""
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def local_rows(outputs: PyTree) -> dict[str, np.ndarray]:
    """Returns this process's rows of arrays (B,...) that are replicated over all devices."""
    first, count = jax.process_index(), jax.process_count()

    def cut(array: np.ndarray) -> np.ndarray:
        rows = len(array) // count
        return array[first * rows : (first + 1) * rows]

    return {name: cut(np.asarray(array)) for name, array in jax.device_get(outputs).items()}


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of all processes, each example once, in the order of ``index``.

    Collective: every process calls it and gets the same result.
    """
    if jax.process_count() > 1:
        # Only arrays of equal shapes can be gathered: JSON as bytes, padded to the longest.
        text = np.frombuffer(json.dumps(records).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.array([len(text)]))
        padded = np.zeros(int(np.max(sizes)), np.uint8)
        padded[: len(text)] = text
        texts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
        records = [
            record
            for row, size in zip(texts, np.ravel(sizes), strict=True)
            for record in json.loads(row[: int(size)].tobytes())
        ]
    once = {record["index"]: record for record in records}
    return [once[index] for index in sorted(once)]
