"""What a report counts: right and wrong by class, confusions, and the speed of a run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of ``count`` examples, with its 95 % Wilson interval; shares are in [0,1]."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """``right / count``, NaN of nothing."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (JASA 22, 1927), which stays inside [0,1]; all of it of nothing.

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
    """``count`` examples of class ``label`` taken for ``prediction``, a ``share`` of the class."""

    label: int
    prediction: int
    count: int
    share: float


def confusion_matrix(predictions: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """(K,K) int64 counts, rows the true class, columns the predicted one; without unknown labels.

    Args:
      predictions: records with ``label`` (-1 unknown) and ``prediction``.
      num_classes: K, above every label and prediction.
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for record in predictions:
        if record["label"] >= 0:
            matrix[record["label"], record["prediction"]] += 1
    return matrix


def per_class(matrix: np.ndarray) -> list[Rate]:
    """The right ones of each class of a confusion matrix (K,K)."""
    return [Rate(int(matrix[k, k]), int(matrix[k].sum())) for k in range(len(matrix))]


def most_confused(matrix: np.ndarray, limit: int = 10) -> list[Confusion]:
    """The largest entries off the diagonal of a confusion matrix (K,K), largest first.

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
    """How often fewer than ``k`` classes are likelier than the label, where that is known."""
    known = [record for record in predictions if record["label"] >= 0]
    return Rate(sum(rank_of_label(record) <= k for record in known), len(known))


def rank_of_label(record: Mapping[str, Any]) -> int:
    """1 where no class is likelier than the label."""
    probabilities = record["probabilities"]
    own = probabilities[record["label"]]
    return 1 + sum(value > own for value in probabilities)


@dataclasses.dataclass(frozen=True)
class Speed:
    """The time of a run's training steps, without its evaluations and checkpoints.

    Attributes:
      seconds: compilation included.
      steps_per_second: over all of them.
      typical_steps_per_second: median of the records.
      clips_per_second: over all of them; None where no record has it.
      data_wait_share: share of the time spent waiting for batches, in [0,1].
    """

    seconds: float
    steps_per_second: float
    typical_steps_per_second: float
    clips_per_second: float | None
    data_wait_share: float | None


def speed_of(metrics: Sequence[Mapping[str, Any]]) -> Speed | None:
    """The speed from the training records; None where none has ``steps_per_second``."""
    records = sorted((r for r in metrics if r["split"] == "train"), key=lambda r: r["step"])
    # A record covers the steps since the one before it.
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
