"""Evaluation of a whole split, its partial last batch included exactly."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxnets.metrics import MeanAccumulator
from flaxnets.training.config import Data, Scorer
from flaxnets.training.parallel import Strategy
from flaxnets.typing import PyTree


def evaluate(
    evaluation_step: Callable[..., Any],
    strategy: Strategy,
    variables: PyTree,
    data: Data,
    on_outputs: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None] | None = None,
    *,
    score: Scorer | None = None,
    describe: Callable[[dict[str, np.ndarray], int], dict[str, Any]] | None = None,
) -> dict[str, float]:
    """Means of the metrics over every example of a split.

    Rows whose ``mask`` is False fill up the last batch (``index`` -1) or stand for clips that
    could not be decoded; the latter are counted as ``skipped``.

    Args:
      evaluation_step: compiled, (variables, batch) to sums and outputs.
      strategy: where batches are put.
      variables: Linen's variables, on the strategy's devices.
      data: the split.
      on_outputs: called with each batch and its outputs, NumPy arrays of this process's rows.
      score: metrics of the whole split from the records of all examples, of all processes; needs
        ``describe``.
      describe: outputs and a row to that example's record, ``Task.describe_outputs``.

    Returns:
      Means by name, and ``examples``, ``skipped``: how many counted and how many did not, over all
      processes. What counted is what the sums ``examples``, or else ``loss``, count.

    Raises:
      ValueError: ``score`` without ``describe``.
    """
    if score is not None and describe is None:
        raise ValueError("describe: expected a function, as score reads its records, received None")
    accumulator = MeanAccumulator()
    skipped = 0
    records: list[dict[str, Any]] = []
    for batch in data.batches():
        sums, outputs = evaluation_step(variables, strategy.shard(batch))
        accumulator.add(jax.device_get(sums))
        skipped += int(np.sum(~batch["mask"] & (batch["index"] >= 0)))
        if on_outputs is None and score is None:
            continue
        outputs = local_rows(outputs)
        if on_outputs is not None:
            on_outputs(batch, outputs)
        if score is not None and describe is not None:
            records += [
                {"index": int(batch["index"][row]), **describe(outputs, int(row))}
                for row in np.flatnonzero(batch["mask"])
            ]
    means = accumulator.means()
    if score is not None:
        means |= score(gather_records(records))
    counted = accumulator.count("examples") or accumulator.count("loss")
    if jax.process_count() > 1:  # Unlike the sums, which are global already.
        skipped = int(np.sum(multihost_utils.process_allgather(np.array([skipped]))))
    return {**means, "examples": counted, "skipped": float(skipped)}


def local_rows(outputs: PyTree) -> dict[str, np.ndarray]:
    """The rows of this process of arrays (B,...) that are the same on every device."""
    first, count = jax.process_index(), jax.process_count()

    def cut(array: np.ndarray) -> np.ndarray:
        rows = len(array) // count
        return array[first * rows : (first + 1) * rows]

    return {name: cut(np.asarray(array)) for name, array in jax.device_get(outputs).items()}


def gather_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all processes, each example once, in the order of ``index``.

    Every process calls it, and gets the same.
    """
    if jax.process_count() > 1:
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
