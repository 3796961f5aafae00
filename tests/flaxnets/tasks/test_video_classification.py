"""Losses of video classification against NumPy, and the inputs of the model."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.training.echo import (
    KEY,
    KINDS,
    LABELS,
    LENGTHS,
    B,
    Echo,
    K,
    M,
    T,
    batch_of,
    clip_loss,
    gains,
    loss_of,
    predict,
    scores,
    softmax,
    variables_of,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_valid_steps(kind: str, smoothing: float) -> None:
    features = scores(B, T, K)
    sums = loss_of(VideoClassification(kind, smoothing), batch_of(features))
    losses = [
        clip_loss(kind, features[b], LABELS[b], LENGTHS[b], smoothing=smoothing) for b in range(B)
    ]
    assert sums["loss"][0] == pytest.approx(sum(losses), rel=1e-5)
    assert sums["loss"][1] == B
    named = [
        np.average(features[b, :length], 0, gains(kind, length)).argmax()
        for b, length in enumerate(LENGTHS)
    ]
    assert sums["accuracy"] == (np.sum(named == LABELS), B)


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_has_its_own_loss(kind: str) -> None:
    features = scores(B, T, M, K)
    sums = loss_of(VideoClassification(kind, 0.1), batch_of(features))
    alone = [
        loss_of(VideoClassification(kind, 0.1), batch_of(features[:, :, m]))["loss"][0]
        for m in range(M)
    ]
    assert sums["loss"][0] == pytest.approx(np.mean(alone), rel=1e-5)
    assert sums["loss"][1] == B


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_masked_rows_change_neither_loss_nor_gradient(kind: str) -> None:
    features, mask = scores(B, T, K), np.array([True, False, True, True])
    counts = (np.arange(T) < LENGTHS[:, None]) & mask[:, None]
    other = np.where(counts[..., None], features, np.float32(60))
    other_labels = np.where(mask, LABELS, -1)
    task = VideoClassification(kind, 0.1)

    def run(features: np.ndarray, labels: np.ndarray) -> Any:
        batch = batch_of(features, label=labels, mask=mask)

        def total(variables: Any) -> Any:
            sums, _ = task.loss(Echo(), variables, batch, KEY)
            return sums["loss"][0], sums

        return jax.jit(jax.grad(total, has_aux=True))(variables_of(features))

    (gradient, sums), (other_gradient, other_sums) = (
        run(features, LABELS),
        run(other, other_labels),
    )
    assert sums["loss"][1] == 3
    np.testing.assert_allclose(sums["loss"], other_sums["loss"], rtol=1e-6)
    np.testing.assert_array_equal(sums["accuracy"], other_sums["accuracy"])
    shift, other_shift = gradient["params"]["shift"], other_gradient["params"]["shift"]
    assert np.abs(shift).min() > 0
    np.testing.assert_allclose(shift, other_shift, atol=1e-6)


class LastOnly(Echo):
    """Logits of the last ``steps`` steps; a head for whole clips gives one."""

    steps: int = 1

    @nn.compact
    def __call__(
        self, frames: jax.Array, lengths: jax.Array, mask: Any = None, *, train: bool
    ) -> Any:
        shift = self.param("shift", nn.initializers.zeros, (frames.shape[-1],))
        return frames[:, -self.steps :] + shift


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_scores_stands_for_the_clip_whatever_its_length(kind: str) -> None:
    features, lengths = scores(B, T, K), np.array([3, 1, 2, 0], np.int32)
    batch, task = batch_of(features, lengths=lengths), VideoClassification(kind)
    sums, _ = jax.jit(partial(task.loss, LastOnly()))(variables_of(features), batch, KEY)
    expected = sum(clip_loss("per_step", features[b, -1:], LABELS[b], 1) for b in range(B))
    assert float(sums["loss"][0]) == pytest.approx(expected, rel=1e-5)
    predicted = task.predict(LastOnly(), variables_of(features), batch)
    np.testing.assert_allclose(predicted, softmax(features[:, -1]), atol=1e-6)


def test_scores_of_other_steps_than_the_frames_are_refused() -> None:
    features = scores(B, T, K)
    with pytest.raises(ValueError, match="logits: expected 1 or 3 steps, received 2"):
        VideoClassification().predict(LastOnly(2), variables_of(features), batch_of(features))


class Sum(nn.Module):
    """Logits that are the sum of the streams, which must have the given names."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, frames: Any, lengths: Any, mask: Any = None, *, train: bool) -> Any:
        assert set(frames) == set(self.names)
        assert all(len(stream) == len(lengths) for stream in frames.values())
        total = sum(frames.values())
        return total + self.param("shift", nn.initializers.zeros, (total.shape[-1],))


@pytest.mark.parametrize("views", [(), (2,)])
def test_several_inputs_reach_the_model_by_name(views: tuple[int, ...]) -> None:
    names = ("video", "audio")
    task = VideoClassification(inputs=names)
    video, audio = scores(2, B, *views, T, K)
    lengths = np.broadcast_to(LENGTHS[:, None], (B, *views)) if views else LENGTHS
    streams = {**batch_of(video, lengths=lengths), "video": video, "audio": audio}
    summed = batch_of(video + audio, lengths=lengths)
    variables = task.initialize(Sum(names), KEY, streams)
    assert variables["params"]["shift"].shape == (K,)
    np.testing.assert_allclose(
        jax.jit(partial(task.predict, Sum(names)))(variables, streams),
        predict(VideoClassification(), summed),
        atol=1e-6,
    )
    if not views:
        for mixup in (0.0, 0.4):  # All streams of a clip are mixed alike.
            loss = VideoClassification(inputs=names, mixup=mixup).loss
            actual, _ = jax.jit(partial(loss, Sum(names)))(variables, streams, KEY)
            expected = loss_of(VideoClassification(mixup=mixup), summed)
            assert float(actual["loss"][0]) == pytest.approx(expected["loss"][0], rel=1e-4)


def test_one_input_is_an_array_and_a_missing_one_is_named() -> None:
    features = scores(B, T, K)
    batch = {**batch_of(np.zeros_like(features)), "audio": jnp.asarray(features)}
    task = VideoClassification(inputs=("audio",))
    predicted = task.predict(Echo(), variables_of(features), batch)
    expected = predict(VideoClassification(), batch_of(features))
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    with pytest.raises(ValueError, match="inputs: expected 'flow', received a batch of features, "):
        VideoClassification(inputs=("audio", "flow")).initialize(Echo(), KEY, batch)


def test_an_unknown_kind_of_loss_is_refused() -> None:
    message = "loss_kind: expected 'per_step', 'clip' or 'linear_gain', received 'x'"
    with pytest.raises(ValueError, match=message):
        VideoClassification("x")


@pytest.mark.parametrize("views", [(), (2,)])
def test_variables_are_made_from_one_view_of_one_example(views: tuple[int, ...]) -> None:
    shapes = []

    class Spy(Echo):
        def __call__(self, frames: Any, lengths: Any, mask: Any = None, *, train: bool) -> Any:
            shapes.append((frames.shape, lengths.shape, train))
            return super().__call__(frames, lengths, mask, train=train)

    features = scores(B, *views, T, K)
    batch = batch_of(features, lengths=np.ones((B, *views), np.int32))
    variables = VideoClassification().initialize(Spy(), KEY, batch)
    assert variables["params"]["shift"].shape == (K,)
    assert set(shapes) == {((1, T, K), (1,), False)}


def test_networks_are_weighted_in_predictions() -> None:
    logits = jnp.log(jnp.array([[[[0.9, 0.1], [0.3, 0.7]]]]))  # (B,T,M,K)
    lengths = jnp.array([1])
    for weights, expected in (((), 0.6), ((1.0, 2.0), 0.5), ((0.0, 5.0), 0.3)):
        for kind in ("per_step", "clip"):
            task = VideoClassification(loss_kind=kind, network_weights=weights)
            found = task.clip_probabilities(logits, lengths, 1)
            np.testing.assert_allclose(found, [[expected, 1 - expected]], rtol=1e-5)
    with pytest.raises(ValueError, match="network_weights: expected one for each of 2 networks"):
        VideoClassification(network_weights=(1.0,)).clip_probabilities(logits, lengths, 1)
    with pytest.raises(ValueError, match="network_weights: expected weights of at least 0"):
        VideoClassification(network_weights=(0.0, 0.0))
