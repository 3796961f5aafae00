"""Classification heads of steps and of clips, against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_last,
    pool_max,
    pool_mean,
)

B, T, F, K = 3, 4, 6, 5
LENGTHS = np.array([4, 2, 1], np.int32)
INPUTS = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
POOLS = [pool_last, pool_mean, pool_max, AttentionPooling(3)]


def dense(parameters: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(parameters["kernel"], np.float64) + np.asarray(parameters["bias"])


def test_conv_and_late_pooling_equal_numpy() -> None:
    for options in ({"hidden_features": (7, 8)}, {"step_features": (7, 8)}):
        head = ClipClassifier(K, pool_max, **options)
        variables = head.init(jax.random.key(1), INPUTS, LENGTHS, train=False)
        logits = head.apply(variables, INPUTS, LENGTHS, train=False)
        assert logits.shape == (B, 1, K)
        assert logits.dtype == jnp.float32
        parameters = variables["params"]
        kind = "hidden" if "hidden_features" in options else "step"
        for b, length in enumerate(LENGTHS):
            x = INPUTS[b, :length].astype(np.float64)
            if kind == "hidden":
                x = x.max(0)
            for layer in range(2):
                x = np.maximum(dense(parameters[f"{kind}_{layer}"], x), 0)
            if kind == "step":
                x = x.max(0)
            np.testing.assert_allclose(logits[b, 0], dense(parameters["scores"], x), atol=1e-5)


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: getattr(pool, "__name__", str(pool)))
def test_padding_changes_no_clip_and_every_parameter_trains(pool: Any) -> None:
    head = ClipClassifier(K, pool, step_features=(4,), hidden_features=(5,))
    variables = head.init(jax.random.key(0), INPUTS, LENGTHS, train=False)
    other = np.where((np.arange(T) < LENGTHS[:, None])[..., None], INPUTS, np.float32(50))

    def total(variables: Any, inputs: Any) -> Any:
        logits = head.apply(variables, inputs, LENGTHS, train=False)
        return jnp.sum(jnp.sin(logits)), logits

    (gradient, logits), (_, others) = (
        jax.jit(jax.grad(total, has_aux=True))(variables, inputs) for inputs in (INPUTS, other)
    )
    np.testing.assert_allclose(others, logits, atol=1e-6)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


def test_pool_last_reads_the_last_valid_step() -> None:
    head = ClipClassifier(K, pool_last)
    variables = head.init(jax.random.key(0), INPUTS, LENGTHS, train=False)
    steps = StepClassifier(K).apply(variables, INPUTS, LENGTHS, train=False)
    logits = head.apply(variables, INPUTS, LENGTHS, train=False)
    np.testing.assert_allclose(logits[:, 0], steps[np.arange(B), LENGTHS - 1], atol=1e-6)


def test_the_step_classifier_gives_valid_steps_the_same_logits_for_any_lengths() -> None:
    head = StepClassifier(K, hidden_features=3)
    variables = head.init(jax.random.key(0), INPUTS, train=False)
    logits = head.apply(variables, INPUTS, train=False)
    assert logits.shape == (B, T, K)
    valid = np.arange(T) < LENGTHS[:, None]
    masked = head.apply(variables, INPUTS, LENGTHS, train=False)
    np.testing.assert_array_equal(masked[valid], logits[valid])


@pytest.mark.parametrize(
    "head", [StepClassifier(K, dropout_rate=0.5), ClipClassifier(K, pool_max, dropout_rate=0.5)]
)
def test_dropout_differs_by_key_and_rests_in_evaluation(head: Any) -> None:
    variables = head.init(jax.random.key(0), INPUTS, LENGTHS, train=False)

    def run(seed: int, train: bool) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(head.apply(variables, INPUTS, LENGTHS, train=train, rngs=rngs))

    assert not np.array_equal(run(1, True), run(2, True))
    assert np.array_equal(run(1, False), run(2, False))


@pytest.mark.parametrize("head", [StepClassifier(K), ClipClassifier(K, pool_max)])
def test_feature_maps_are_refused(head: Any) -> None:
    with pytest.raises(ValueError, match=r"inputs: expected \(B,T,F\), received shape"):
        head.init(jax.random.key(0), np.zeros((B, T, 2, 2, F), np.float32), LENGTHS, train=False)
