"""A CRNN in NNX: the bridge's wrapper has Linen's outputs, gradients and variables."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from tests.flaxnets.models.networks import every_parameter_trains

B, T, S, CLASSES = 2, 3, 8, 4
LENGTHS = np.array([3, 2], np.int32)
COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
"""Linen's collections and NNX's types of variables."""


@pytest.fixture(scope="module")
def linen() -> CRNN:
    return CRNN(
        encoder=SmallCNN((4, 6), (2, 2)),
        recurrent=Recurrent(partial(LSTMCell, 5)),
        classifier=StepClassifier(CLASSES),
    )


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (B, T, S, S, 3)).astype(np.uint8)


@pytest.fixture
def wrapped(linen: CRNN, video: np.ndarray) -> bridge.ToNNX:
    model = bridge.ToNNX(linen, rngs=nnx.Rngs(0))
    model.lazy_init(video, LENGTHS, train=False)
    return model


def linen_variables(model: bridge.ToNNX) -> dict[str, Any]:
    """The variables of the wrapped module, in Linen's collections."""
    return {
        collection: nnx.to_pure_dict(nnx.state(model, of_type))
        for collection, of_type in COLLECTIONS.items()
    }


def test_variables_and_outputs_are_those_of_linen(
    linen: CRNN, video: np.ndarray, wrapped: bridge.ToNNX
) -> None:
    shapes = jax.eval_shape(partial(linen.init, train=False), jax.random.key(0), video, LENGTHS)
    variables = linen_variables(wrapped)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, dict(shapes))
    logits = wrapped(video, LENGTHS, train=False)
    assert logits.shape == (B, T, CLASSES)
    np.testing.assert_array_equal(logits, linen.apply(variables, video, LENGTHS, train=False))


def test_variables_of_linen_go_in(linen: CRNN, video: np.ndarray, wrapped: bridge.ToNNX) -> None:
    variables = linen.init(jax.random.key(1), video, LENGTHS, train=False)
    expected = linen.apply(variables, video, LENGTHS, train=False)
    assert np.any(wrapped(video, LENGTHS, train=False) != expected)
    for collection, of_type in COLLECTIONS.items():
        state = nnx.state(wrapped, of_type)
        nnx.replace_by_pure_dict(state, variables[collection])
        nnx.update(wrapped, state)
    np.testing.assert_array_equal(wrapped(video, LENGTHS, train=False), expected)
    jax.tree.map(np.testing.assert_array_equal, linen_variables(wrapped), dict(variables))


@pytest.mark.slow
def test_gradients_are_those_of_linen(
    linen: CRNN, video: np.ndarray, wrapped: bridge.ToNNX
) -> None:
    weights = np.random.default_rng(1).normal(size=(B, T, CLASSES))
    variables = linen_variables(wrapped)

    def of_nnx(model: bridge.ToNNX) -> jax.Array:
        return (weights * model(video, LENGTHS, train=False)).sum()

    def of_linen(params: Any) -> jax.Array:
        logits = linen.apply({**variables, "params": params}, video, LENGTHS, train=False)
        return (weights * logits).sum()

    gradients = nnx.to_pure_dict(nnx.grad(of_nnx)(wrapped))
    every_parameter_trains(gradients)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6),
        gradients,
        jax.grad(of_linen)(variables["params"]),
    )


def test_a_step_in_training_moves_the_statistics_of_both(
    linen: CRNN, video: np.ndarray, wrapped: bridge.ToNNX
) -> None:
    variables = linen_variables(wrapped)
    logits, moved = linen.apply(variables, video, LENGTHS, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(
        wrapped(video, LENGTHS, train=True, mutable=["batch_stats"]), logits
    )
    statistics = linen_variables(wrapped)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, statistics, dict(moved["batch_stats"]))
    before = jax.tree.leaves(variables["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(before, jax.tree.leaves(statistics), strict=True))


class Backbone(nnx.Module):
    """An NNX model of somebody else's around the CRNN."""

    def __init__(self, crnn: CRNN, rngs: nnx.Rngs) -> None:
        self.crnn = bridge.ToNNX(crnn, rngs=rngs)
        self.dense = nnx.Linear(CLASSES, 2, rngs=rngs)

    def __call__(self, video: Any, lengths: Any) -> Any:
        return self.dense(self.crnn(video, lengths, train=False))


def test_a_part_of_an_nnx_model(linen: CRNN, video: np.ndarray) -> None:
    model = Backbone(linen, nnx.Rngs(0))
    bridge.lazy_init(model, video, LENGTHS)
    compiled = nnx.jit(lambda model: model(video, LENGTHS))(model)
    assert compiled.shape == (B, T, 2)
    np.testing.assert_allclose(compiled, model(video, LENGTHS), atol=1e-6)
