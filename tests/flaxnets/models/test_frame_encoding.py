"""Frames through an encoder: in chunks, fine-tuned, with batch statistics."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from tests.flaxnets.models.networks import every_parameter_trains, random_variables

B, T, S = 3, 4, 8
LENGTHS = np.array([4, 2, 1], np.int32)


def make(**options: Any) -> CRNN:
    parts: dict[str, Any] = {
        "encoder": SmallCNN((4, 6), (2, 2)),
        "recurrent": Recurrent(partial(LSTMCell, 5)),
        "classifier": StepClassifier(3),
    }
    return CRNN(**(parts | options))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (B, T, S, S, 3)).astype(np.uint8)


@partial(jax.jit, static_argnums=0)
def evaluate(model: CRNN, variables: Any, frames: Any, lengths: Any) -> Any:
    return model.apply(variables, frames, lengths, train=False)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunks_of_frames_give_the_same_logits(video: np.ndarray, chunk: int) -> None:
    model = make()
    variables = random_variables(model, video, LENGTHS)
    expected = evaluate(model, variables, video, LENGTHS)
    for options in ({}, {"freeze_encoder": True}):
        chunked = make(chunk_frames=chunk, **options)
        actual = evaluate(chunked, variables, video, LENGTHS)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    own = random_variables(make(chunk_frames=chunk), video, LENGTHS)
    assert jax.tree.structure(own) == jax.tree.structure(variables)


def fine_tune(model: CRNN, variables: Any, video: Any, lengths: Any) -> Any:
    """Returns gradients, logits and statistics of one training step."""

    def loss(params: Any) -> Any:
        logits, stats = model.apply(
            {**variables, "params": params}, video, lengths, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(logits[:, :2])), (logits, stats)

    gradients, (logits, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return gradients, logits, stats


@pytest.mark.parametrize("chunk", [4, 5])
def test_fine_tuning_in_chunks_equals_fine_tuning_at_once(video: np.ndarray, chunk: int) -> None:
    whole = make(freeze_statistics=True)
    variables = random_variables(whole, video, LENGTHS)
    step = jax.jit(fine_tune, static_argnums=0)
    gradients, logits, stats = step(whole, variables, video, LENGTHS)
    every_parameter_trains(gradients)
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(logits, evaluate(whole, variables, video, LENGTHS), atol=1e-5)
    chunked = step(make(freeze_statistics=True, chunk_frames=chunk), variables, video, LENGTHS)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        chunked,
        (gradients, logits, stats),
    )


def test_fine_tuning_in_chunks_needs_the_memory_of_one_chunk() -> None:
    frames = jax.ShapeDtypeStruct((2, 32, 32, 32, 3), jnp.uint8)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)

    def temporary(**options: Any) -> int:
        model = make(encoder=SmallCNN((8, 8, 8), (1, 1, 4)), freeze_statistics=True, **options)
        variables = jax.eval_shape(
            partial(model.init, train=False), jax.random.key(0), frames, lengths
        )
        compiled = jax.jit(fine_tune, static_argnums=0).lower(model, variables, frames, lengths)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    whole, chunked = temporary(), temporary(chunk_frames=8)
    assert chunked < 0.4 * whole, (chunked, whole)


def test_batch_statistics_do_not_depend_on_chunks(video: np.ndarray) -> None:
    variables = random_variables(make(), video, LENGTHS)
    results = [
        make(chunk_frames=chunk).apply(
            variables, video, LENGTHS, train=True, mutable=["batch_stats"]
        )
        for chunk in (0, 5)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": LENGTHS + 1}, r"lengths: expected values in \[0, 4\], received \[5, 3, 2\]"),
        ({"lengths": LENGTHS - 2}, r"lengths: expected values in \[0, 4\], received \[2, 0, -1\]"),
        ({"lengths": LENGTHS / 1}, "lengths: expected an integer dtype, received float64"),
        ({"mask": LENGTHS}, r"mask: expected \(3,\) bool, received \(3,\) int32"),
        ({"mask": np.ones(2, bool)}, r"mask: expected \(3,\) bool, received \(2,\) bool"),
        (
            {"frames": np.zeros((B, T, S, S, 3), np.int32)},
            "frames: expected uint8 or a float dtype, received int32",
        ),
    ],
)
def test_impossible_clips_are_refused(
    video: np.ndarray, arguments: dict[str, Any], message: str
) -> None:
    call = {"frames": video, "lengths": LENGTHS} | arguments
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), **call, train=False)


@pytest.mark.parametrize(("frames", "chunk", "encoded"), [(17, 16, 18), (13, 5, 15), (12, 5, 12)])
def test_chunks_of_any_number_of_frames_hold_little_padding(
    frames: int, chunk: int, encoded: int
) -> None:
    shapes = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, images: Any, mask: Any = None, *, train: bool) -> Any:
            shapes.append(images.shape[0])
            return images.astype(jnp.float32).mean((1, 2))

    model = make(encoder=Spy(), chunk_frames=chunk)
    video = np.random.default_rng(0).integers(0, 256, (1, frames, S, S, 3)).astype(np.uint8)
    lengths = np.array([frames], np.int32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), video, lengths, train=False))
    shapes.clear()
    jax.eval_shape(lambda v: model.apply(v, video, lengths, train=False), variables)
    (size,) = set(shapes)
    assert size <= chunk
    assert -(-frames // size) * size == encoded
