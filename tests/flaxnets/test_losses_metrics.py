"""Losses and metrics against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.losses import cross_entropy
from flaxnets.metrics import MeanAccumulator, top_k_accuracy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32) * 3
LABELS = RNG.integers(0, 5, 6).astype(np.int32)
MASK = np.array([True, True, False, True, True, False])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(smoothing: float) -> None:
    log_probabilities = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
    targets = np.eye(5)[LABELS] * (1 - smoothing) + smoothing / 5
    expected = -(targets * log_probabilities).sum(-1)[MASK].sum()
    total, count = cross_entropy(LOGITS, LABELS, MASK, label_smoothing=smoothing)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert float(count) == 4


def test_masked_rows_may_hold_anything() -> None:
    labels = np.where(MASK, LABELS, -1).astype(np.int32)
    logits = np.where(MASK[:, None], LOGITS, np.nan).astype(np.float32)
    for function in (cross_entropy, top_k_accuracy):
        np.testing.assert_array_equal(
            function(logits, labels, MASK), function(LOGITS, LABELS, MASK)
        )


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy(k: int) -> None:
    best = np.argsort(-LOGITS, axis=-1)[:, :k]
    expected = sum(label in row for label, row in zip(LABELS[MASK], best[MASK], strict=True))
    right, count = top_k_accuracy(LOGITS, LABELS, MASK, k=k)
    assert (float(right), float(count)) == (expected, 4)


def test_constant_logits_and_nans_are_wrong() -> None:
    everything = np.ones(6, bool)
    for value in (0.0, np.nan):
        logits = jnp.full((6, 5), value)
        assert float(top_k_accuracy(logits, LABELS, everything)[0]) == 0


def test_means_come_after_the_sum() -> None:
    means = MeanAccumulator()
    means.add({"loss": (3.0, 1.0), "accuracy": (0.0, 0.0)})
    means.add({"loss": (1.0, 3.0)})
    assert means.means()["loss"] == 1.0
    assert np.isnan(means.means()["accuracy"])
    assert means.count("loss") == 4.0
