"""Linear baselines: their predictions, and the inputs that these depend on."""

import numpy as np
import pytest

from experiments.features.frozen_features import over_time, predict_linear

N, T, D = 4, 8, 3
TRAIN, TEST = np.arange(30), np.array([35, 31, 33])


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Returns 40 points (40,3) around three distant corners, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(40) % 3)
    return 5 * np.eye(3)[labels] + rng.normal(0, 0.2, (40, 3)), labels


def test_separable_classes_are_separated() -> None:
    inputs, labels = blobs()
    pairs = predict_linear(inputs, labels, TRAIN, TEST)
    assert pairs == [(label, label) for label in labels[TEST]]
    assert all(type(value) is int for pair in pairs for value in pair)


def test_labels_of_test_examples_do_not_change_predictions() -> None:
    inputs, labels = blobs()
    wrong = labels.copy()
    wrong[TEST] = (labels[TEST] + 1) % 3
    pairs = predict_linear(inputs, wrong, TRAIN, TEST)
    assert pairs == [(w, label) for w, label in zip(wrong[TEST], labels[TEST], strict=True)]


def test_other_examples_change_nothing() -> None:
    inputs, labels = blobs()
    unused = np.setdiff1d(np.arange(40), [*TRAIN, *TEST[:1]])
    moved = inputs.copy()
    moved[unused] *= -100
    assert predict_linear(inputs, labels, TRAIN, TEST[:1]) == predict_linear(
        moved, labels, TRAIN, TEST[:1]
    )


def test_the_scale_of_an_input_does_not_change_predictions() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    inputs = rng.normal(0, 2, (60, 4)) + labels[:, None]
    train, test = np.arange(40), np.arange(40, 60)
    scaled = inputs * np.array([1e-4, 1, 1e3, 50]) + np.array([0, 7, -1e3, 3])
    assert predict_linear(inputs, labels, train, test) == predict_linear(
        scaled, labels, train, test
    )


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N, T, D)).astype(np.float32)


def test_summaries_equal_loops(features: np.ndarray) -> None:
    averaged, maximum, thirds = over_time(features, "x").values()
    for n in range(N):
        for d in range(D):
            values = [float(features[n, t, d]) for t in range(T)]
            assert averaged[n, d] == pytest.approx(sum(values) / T, abs=1e-6)
            assert maximum[n, d] == max(values)
            # 8 steps in thirds: 3, 3 and 2.
            for third, part in enumerate((values[:3], values[3:6], values[6:])):
                assert thirds[n, third * D + d] == pytest.approx(sum(part) / len(part), abs=1e-6)
    assert thirds.shape == (N, 3 * D)


def test_summaries_named_blind_to_order_ignore_the_order(features: np.ndarray) -> None:
    shuffled = features[:, np.random.default_rng(3).permutation(T)]
    summaries, others = over_time(features, "x"), over_time(shuffled, "x")
    assert all(name.startswith("x, ") for name in summaries)
    for name, values in summaries.items():
        assert np.allclose(values, others[name], atol=1e-6) == ("blind to order" in name), name
    assert sum("blind to order" in name for name in summaries) == 2
