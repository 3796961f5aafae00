"""Statistics of a report against independent references."""

import itertools
import math

import numpy as np
import pytest

from launch.reports.run_page import percent
from launch.reports.statistics import (
    Rate,
    confusion_matrix,
    most_confused,
    per_class,
    rank_of_label,
    speed_of,
    top_k_rate,
)
from tests.launch.reports.records import make_record


def test_confusion_matrix_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    records = [
        {"label": int(a), "prediction": int(b)} for a, b in zip(labels, guesses, strict=True)
    ]
    matrix = confusion_matrix(records, 8)
    expected = metrics.confusion_matrix(labels, guesses, labels=range(8))
    np.testing.assert_array_equal(matrix, expected)
    for label, rate in enumerate(per_class(matrix)):
        assert rate.count == np.sum(labels == label)
        assert rate.correct == np.sum((labels == label) & (guesses == label))
    pairs = most_confused(matrix, limit=100)
    assert sum(pair.count for pair in pairs) == np.sum(labels != guesses)
    assert all(a.count >= b.count for a, b in itertools.pairwise(pairs))


@pytest.mark.parametrize(("correct", "count"), [(0, 5), (5, 5), (1, 3), (180, 200)])
def test_wilson_interval_solves_its_equation(correct: int, count: int) -> None:
    low, high = Rate(correct, count).interval
    assert 0 <= low <= correct / count <= high <= 1
    # At its ends p, the observed share lies z standard errors of p away.
    for end in (low, high):
        distance = abs(correct / count - end)
        standard_error = math.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(1.959964 * standard_error, abs=1e-9)


def test_rate_of_nothing_says_nothing() -> None:
    assert math.isnan(Rate(0, 0).share)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert percent(Rate(0, 0).share) == "–"


def test_rank_and_top_k() -> None:
    rng = np.random.default_rng(1)
    records = [make_record(i, int(rng.integers(9)), list(rng.random(9))) for i in range(50)]
    ranks = [1 + list(np.argsort(-np.array(r["probabilities"]))).index(r["label"]) for r in records]
    assert [rank_of_label(record) for record in records] == ranks
    unknown = make_record(50, -1, [1 / 9] * 9)
    assert top_k_rate([*records, unknown], 5) == Rate(sum(rank <= 5 for rank in ranks), 50)


def test_speed_needs_training_records() -> None:
    assert speed_of([]) is None
    assert speed_of([{"step": 5, "split": "validation", "loss": 1.0}]) is None
    without = [{"step": 4, "split": "train", "steps_per_second": 2.0}]
    speed = speed_of(without)
    assert speed is not None
    assert (speed.seconds, speed.data_wait_share) == (2.0, None)
