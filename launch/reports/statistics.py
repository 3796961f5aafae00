"""Statistics of a report: accuracies with intervals, confusion matrix, speed of a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """An accuracy: ``correct`` of ``count`` examples, with its 95 % Wilson interval."""

    correct: int
    count: int

    @property
    def share(self) -> float:
        """Returns ``correct / count`` in [0,1]; NaN if ``count`` is 0."""
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Returns Wilson's score interval (JASA 22, 1927), inside [0,1]; (0, 1) if ``count`` is 0.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)
        """
        if not self.count:
            return 0.0, 1.0
        n, p = self.count, self.share
        centre = p + Z_95**2 / (2 * n)
        spread = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
        scale = 1 + Z_95**2 / n
        return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """``count`` examples of class ``label``, a ``share`` of it, predicted as ``prediction``."""

    label: int
    prediction: int
    count: int
    share: float


def confusion_matrix(predictions: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """Returns (K,K) int64 counts: rows are true classes, columns predicted ones.

    Args:
      predictions: records with ``label`` (-1 unknown, not counted) and ``prediction``.
      num_classes: K; labels and predictions are less than K.
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for record in predictions:
        if record["label"] >= 0:
            matrix[record["label"], record["prediction"]] += 1
    return matrix


def per_class(matrix: np.ndarray) -> list[Rate]:
    """Returns the accuracy of each class of a confusion matrix (K,K)."""
    return [Rate(int(matrix[k, k]), int(matrix[k].sum())) for k in range(len(matrix))]


def most_confused(matrix: np.ndarray, limit: int = 10) -> list[Confusion]:
    """Returns the largest off-diagonal entries of a confusion matrix (K,K), largest first.

    Equal counts are ordered by their share of the true class.
    """
    totals = matrix.sum(axis=1)
    pairs = [
        Confusion(int(i), int(j), int(matrix[i, j]), float(matrix[i, j] / totals[i]))
        for i, j in np.argwhere(matrix)
        if i != j
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.label))[:limit]


def top_k_rate(predictions: Sequence[Mapping[str, Any]], k: int) -> Rate:
    """Returns the top-``k`` accuracy over the records with a known label."""
    known = [record for record in predictions if record["label"] >= 0]
    return Rate(sum(rank_of_label(record) <= k for record in known), len(known))


def rank_of_label(record: Mapping[str, Any]) -> int:
    """Returns the rank of the label by probability; 1 if no class is more probable."""
    probabilities = record["probabilities"]
    own = probabilities[record["label"]]
    return 1 + sum(value > own for value in probabilities)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of a run's training steps, without its evaluations and checkpoints.

    Attributes:
      seconds: total time, including compilation.
      steps_per_second: mean over all steps.
      typical_steps_per_second: median over the records.
      clips_per_second: mean over all steps; None if some record lacks it.
      data_wait_share: share of the time spent waiting for batches, in [0,1]; None if some record
        lacks it.
    """

    seconds: float
    steps_per_second: float
    typical_steps_per_second: float
    clips_per_second: float | None
    data_wait_share: float | None


def speed_of(metrics: Sequence[Mapping[str, Any]]) -> Speed | None:
    """Returns the speed by the training records; None if none has ``steps_per_second``."""
    records = sorted((r for r in metrics if r["split"] == "train"), key=lambda r: r["step"])
    # A record covers the steps since the previous record.
    covered = [
        (record, record["step"] - before)
        for record, before in zip(records, [0, *(r["step"] for r in records)], strict=False)
        if record.get("steps_per_second")
    ]
    if not covered:
        return None
    times = np.array([steps / record["steps_per_second"] for record, steps in covered])

    def mean(name: str) -> float | None:
        values = [record[name] for record, _ in covered if record.get(name) is not None]
        if len(values) < len(covered):
            return None
        return float(np.dot(values, times) / times.sum())

    return Speed(
        seconds=float(times.sum()),
        steps_per_second=float(sum(steps for _, steps in covered) / times.sum()),
        typical_steps_per_second=float(np.median([r["steps_per_second"] for r, _ in covered])),
        clips_per_second=mean("clips_per_second"),
        data_wait_share=mean("data_wait_share"),
    )
