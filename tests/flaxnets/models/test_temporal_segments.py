"""TS-LSTM: segments against loops, padding, and streams that do not fit."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import ClipClassifier
from flaxnets.heads.pooling import pool_last
from flaxnets.models.temporal_segments import TemporalSegments, pool_segments
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent


def segments_of(steps: np.ndarray, num_segments: int) -> list[np.ndarray]:
    """Returns the steps (L,D) of each segment, by the formula of the docstring."""
    count = min(num_segments, len(steps))
    edges = [n * len(steps) // count for n in range(count + 1)] if count else [0]
    return [steps[a:b] for a, b in itertools.pairwise(edges)]


def test_segments_equal_a_loop() -> None:
    x = np.random.default_rng(0).normal(size=(8, 7, 2)).astype(np.float32)
    lengths = np.arange(8)
    pooled, counts = pool_segments(jnp.asarray(x), jnp.asarray(lengths), 3)
    for clip, length in enumerate(lengths):
        expected = [part.max(0) for part in segments_of(x[clip, :length], 3)]
        assert counts[clip] == len(expected)
        np.testing.assert_array_equal(pooled[clip, : len(expected)], np.reshape(expected, (-1, 2)))
        assert not np.any(pooled[clip, len(expected) :])


@pytest.fixture(scope="module")
def apply() -> Any:
    model = TemporalSegments(
        Recurrent(functools.partial(LSTMCell, 4)), ClipClassifier(3, pool_last), 3
    )
    frames = {"rgb": jnp.zeros((2, 6, 2)), "flow": jnp.zeros((2, 6, 3))}
    variables = model.init(jax.random.key(0), frames, jnp.array([6, 6]), train=False)
    return jax.jit(functools.partial(model.apply, variables, train=False))


def test_padding_and_the_order_of_names_change_nothing_but_the_clips_order_does(apply: Any) -> None:
    rng = np.random.default_rng(1)
    frames = {"rgb": rng.normal(size=(2, 6, 2)), "flow": rng.normal(size=(2, 6, 3))}
    frames = {name: x.astype(np.float32) for name, x in frames.items()}
    lengths = jnp.array([6, 4])
    logits = apply(frames, lengths)
    assert logits.shape == (2, 1, 3)
    padded = {name: x.copy() for name, x in frames.items()}
    for x in padded.values():
        x[1, 4:] = np.nan
    np.testing.assert_array_equal(apply(dict(reversed(padded.items())), lengths), logits)
    backwards = {name: x[:, ::-1] for name, x in frames.items()}
    whole = jnp.array([6, 6])
    assert np.abs(apply(backwards, whole) - apply(frames, whole)).max() > 0.01


def test_streams_that_do_not_fit_are_named(apply: Any) -> None:
    with pytest.raises(ValueError, match=r"frames\['rgb'\]: expected \(B,T,D\) with"):
        apply({"flow": jnp.zeros((2, 6, 3)), "rgb": jnp.zeros((2, 5, 2))}, jnp.array([5, 5]))
    with pytest.raises(ValueError, match="num_segments: expected at least 1, received 0"):
        pool_segments(jnp.zeros((1, 2, 3)), jnp.array([2]), 0)
