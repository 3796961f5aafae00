"""Evaluation of a whole split, its partial last batch included exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from flaxnets.metrics import MeanAccumulator
from flaxnets.training.data import Data
from flaxnets.training.parallel import DataParallel
from flaxnets.typing import PyTree


def evaluate(
    evaluation_step: Callable[..., Any],
    strategy: DataParallel,
    variables: PyTree,
    data: Data,
    on_outputs: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None] | None = None,
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

    Returns:
      Means by name, and ``examples``, ``skipped``: how many counted and how many did not.
    """
    accumulator = MeanAccumulator()
    skipped = 0
    for batch in data.batches():
        sums, outputs = evaluation_step(variables, strategy.shard(batch))
        accumulator.add(jax.device_get(sums))
        skipped += int(np.sum(~batch["mask"] & (batch["index"] >= 0)))
        if on_outputs is not None:
            on_outputs(batch, jax.device_get(outputs))
    means = accumulator.means()
    return {**means, "examples": accumulator.count("loss"), "skipped": float(skipped)}
