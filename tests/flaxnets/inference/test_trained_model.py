"""Predictions and metrics against NumPy, for a model that returns its inputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.training.echo import (
    KINDS,
    LABELS,
    LENGTHS,
    B,
    K,
    M,
    T,
    batch_of,
    evaluate,
    gains,
    predict,
    scores,
    softmax,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("networks", [(), (M,)])
@pytest.mark.parametrize("views", [(), (2,)])
def test_probabilities_are_averaged_over_steps_then_networks_and_views(
    kind: str, networks: tuple[int, ...], views: tuple[int, ...]
) -> None:
    features = scores(B, *views, T, *networks, K)
    lengths = np.stack([LENGTHS, LENGTHS[::-1]], 1) if views else LENGTHS
    batch = batch_of(features, lengths=lengths)
    predicted = predict(VideoClassification(kind), batch)
    assert predicted.shape == (B, K)
    assert predicted.dtype == jnp.float32
    full = features.reshape(B, views[0] if views else 1, T, networks[0] if networks else 1, K)
    for b in range(B):
        parts = []
        for v in range(full.shape[1]):
            length = lengths.reshape(B, -1)[b, v]
            for m in range(full.shape[3]):
                steps = full[b, v, :length, m]
                if kind == "clip":
                    parts.append(softmax(steps.mean(0)))
                else:
                    parts.append(np.average(softmax(steps), 0, gains(kind, length)))
        np.testing.assert_allclose(predicted[b], np.mean(parts, 0), atol=1e-6)


def test_evaluation_scores_the_averaged_probabilities() -> None:
    features = scores(B, T, K)
    task, batch = VideoClassification(), batch_of(features)
    sums, outputs = evaluate(task, batch)
    probabilities = np.asarray(predict(task, batch), np.float64)
    np.testing.assert_array_equal(outputs["probabilities"], probabilities)
    own = probabilities[np.arange(B), LABELS]
    assert sums["loss"][0] == pytest.approx(-np.log(own).sum(), rel=1e-5)
    rank = (probabilities > own[:, None]).sum(1)
    assert (sums["accuracy"][0], sums["accuracy"][1]) == ((rank == 0).sum(), B)
    assert (sums["top5_accuracy"][0], sums["top5_accuracy"][1]) == ((rank < 5).sum(), B)


def test_evaluation_counts_neither_unknown_labels_nor_masked_rows() -> None:
    features = scores(B, T, K)
    task = VideoClassification("clip")
    labels = np.array([2, -1, 5, -1], np.int32)
    batch = batch_of(features, label=labels, mask=np.array([True, True, False, False]))
    sums, outputs = evaluate(task, batch)
    expected, _ = evaluate(task, {name: array[:1] for name, array in batch.items()})
    for name, (total, count) in sums.items():
        assert count == 1, name
        assert total == pytest.approx(float(expected[name][0]), rel=1e-6), name
    # A video without a label has a prediction too.
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, rtol=1e-5)


def test_evaluation_of_impossible_labels_is_finite() -> None:
    features = np.zeros((B, T, K), np.float32)
    features[..., 0] = 1e4
    sums, _ = evaluate(VideoClassification(), batch_of(features))
    assert np.isfinite(sums["loss"][0])
    assert sums["accuracy"][0] == 1


def test_a_description_names_the_likeliest_class() -> None:
    outputs = {"probabilities": np.array([[0.5, 0.5, 0], [0.1, 0.2, 0.7]], np.float32)}
    description = VideoClassification().describe_outputs(outputs, 1)
    assert description == {"prediction": 2, "probabilities": [0.1, 0.2, 0.7]}
