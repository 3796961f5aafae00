"""Forecasts of sequence models relative to the last step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import pool_mean
from flaxnets.models.sequence_model import SequenceModel

MODEL = SequenceModel(
    ClipClassifier(4, pool_mean),
    autoregressive_steps=2,
    autoregressive_channels=(0, 2),
    relative=True,
)


def test_relative_forecasts_move_with_the_level_of_their_channel() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    lengths = jnp.array([5, 3])
    init = jax.jit(partial(MODEL.init_with_output, train=False))
    outputs, variables = init(jax.random.key(0), x, lengths)
    apply = jax.jit(partial(MODEL.apply, train=False))
    moved = apply(variables, x + jnp.array([10.0, 0, -3.0]), lengths)
    # Two horizons of two channels each.
    np.testing.assert_allclose(moved - outputs, [[[10, -3, 10, -3]]] * 2, rtol=1e-4, atol=1e-4)
    other = apply(variables, x.at[1, 3:].set(7), lengths)
    np.testing.assert_array_equal(other, outputs)
    zeros = jax.tree.map(jnp.zeros_like, variables)
    last = jnp.stack([x[0, 4], x[1, 2]])[:, None, jnp.array([0, 2, 0, 2])]
    np.testing.assert_allclose(apply(zeros, x, lengths), last)


def test_relative_outputs_that_are_no_forecasts_are_refused() -> None:
    assert "relative to the last step" in SequenceModel(StepClassifier(2), relative=True).obstacle
    model = SequenceModel(StepClassifier(3), relative=True)
    with pytest.raises(ValueError, match="relative: expected a head that pools, with a multiple "):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 4, 3)))
