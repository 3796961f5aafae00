"""CRNN: padding, batch statistics, freezing, ablations, precision."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.pixels import DownsampledFrames, normalize_pixels
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import AttentionPooling, pool_max
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from tests.flaxnets.models.networks import RunningSum, ThreeLevels, random_variables

B, T, S = 3, 4, 8
LENGTHS = np.array([4, 2, 1], np.int32)


def make(dtype: Any = jnp.float32, **options: Any) -> CRNN:
    parts: dict[str, Any] = {
        "encoder": SmallCNN((4, 6), (2, 2), dtype=dtype),
        "recurrent": Recurrent(partial(LSTMCell, 5, dtype=dtype)),
        "classifier": StepClassifier(3),
    }
    return CRNN(**(parts | options))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    frames = np.random.default_rng(0).integers(0, 256, (B, T, S, S, 3)).astype(np.uint8)
    return frames * (np.arange(T) < LENGTHS[:, None])[..., None, None, None].astype(np.uint8)


def initialize(model: CRNN, video: np.ndarray) -> Any:
    return model.init(jax.random.key(0), video, LENGTHS, train=False)


def test_padded_frames_change_neither_logits_nor_statistics(
    video: np.ndarray,
) -> None:
    model = make()
    variables = initialize(model, video)
    padding = np.arange(T) >= LENGTHS[:, None]
    other = np.where(padding[..., None, None, None], np.uint8(200), video)

    def run(x: np.ndarray) -> Any:
        return model.apply(variables, x, LENGTHS, train=True, mutable=["batch_stats"])

    (logits, stats), (other_logits, other_stats) = run(video), run(other)
    valid = ~padding
    np.testing.assert_allclose(logits[valid], other_logits[valid], atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), stats, other_stats)


def test_statistics_are_those_of_the_valid_frames(video: np.ndarray) -> None:
    encoder = SmallCNN((4,), (2,))
    variables = encoder.init(jax.random.key(0), video[0], train=False)
    valid = np.arange(T) < LENGTHS[:, None]
    frames = video.reshape(-1, S, S, 3)
    _, masked = encoder.apply(
        variables, frames, valid.reshape(-1), train=True, mutable=["batch_stats"]
    )
    _, alone = encoder.apply(
        variables, frames[valid.reshape(-1)], train=True, mutable=["batch_stats"]
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), masked, alone)
    # The update by hand: 0.9 · 0 + 0.1 · the mean of the batch.
    conv = nn.Conv(4, (3, 3), strides=2, use_bias=False)
    maps = conv.apply(
        {"params": variables["params"]["conv_0"]}, normalize_pixels(frames[valid.reshape(-1)])
    )
    np.testing.assert_allclose(
        masked["batch_stats"]["norm_0"]["mean"], 0.1 * maps.mean(axis=(0, 1, 2)), atol=1e-6
    )


def test_masked_clips_change_no_statistics(video: np.ndarray) -> None:
    model = make()
    variables = initialize(model, video)
    black = video.copy()
    black[2] = 0
    mask = np.array([True, True, False])
    results = [
        model.apply(variables, x, LENGTHS, mask, train=True, mutable=["batch_stats"])[1]
        for x in (video, black)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_frozen_encoder_keeps_statistics_and_gets_no_gradient(video: np.ndarray) -> None:
    model = make(freeze_encoder=True)
    variables = initialize(model, video)

    def loss(params: Any) -> Any:
        logits, stats = model.apply(
            {**variables, "params": params}, video, LENGTHS, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2), stats

    gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["recurrent"]))
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])


def test_every_parameter_has_a_gradient(video: np.ndarray) -> None:
    model = make(classifier=StepClassifier(3, hidden_features=7))
    variables = initialize(model, video)

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply(
            {**variables, "params": params}, video, LENGTHS, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits[:, 0] ** 2 + logits[:, 1] ** 2)

    for gradient in jax.tree.leaves(jax.grad(loss)(variables["params"])):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


def test_cached_features_give_the_logits_of_the_encoder(video: np.ndarray) -> None:
    model = make()
    variables = initialize(model, video)
    encoder_variables = {name: tree["encoder"] for name, tree in variables.items()}
    maps = make().encoder.apply(encoder_variables, video.reshape(-1, S, S, 3), train=False)
    maps = maps.reshape(B, T, *maps.shape[1:])
    params = {name: p for name, p in variables["params"].items() if name != "encoder"}
    cached = make(encoder=None)
    expected = model.apply(variables, video, LENGTHS, train=False)
    for features in (maps, maps.mean((2, 3))):
        actual = cached.apply({"params": params}, features, LENGTHS, train=False)
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_only_a_recurrent_layer_sees_the_order_of_frames(video: np.ndarray) -> None:
    full = np.full(B, T, np.int32)
    for recurrent, blind in ((None, True), (make().recurrent, False)):
        model = make(recurrent=recurrent)
        variables = initialize(model, video)
        forward, backward = (
            model.apply(variables, x, full, train=False).mean(1) for x in (video, video[:, ::-1])
        )
        assert np.allclose(forward, backward, atol=1e-5) == blind


def test_rnn_only_sees_block_averages(video: np.ndarray) -> None:
    maps = DownsampledFrames(2).apply({}, video[0], train=False)
    expected = (video[0, 1, :4, 4:].astype(np.float64).mean((0, 1)) - 127.5) / 127.5
    np.testing.assert_allclose(maps[1, 0, 1], expected, atol=1e-6)
    model = make(encoder=DownsampledFrames(2), pool="flatten")
    variables = initialize(model, video)
    assert "encoder" not in variables["params"]
    assert model.apply(variables, video, LENGTHS, train=False).shape == (B, T, 3)


def test_bfloat16_keeps_float32_parameters_statistics_and_logits(video: np.ndarray) -> None:
    model = make(dtype=jnp.bfloat16)
    variables = initialize(model, video)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, stats = model.apply(variables, video, LENGTHS, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    exact = make().apply(variables, video, LENGTHS, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(logits[:, 0], exact[:, 0], atol=0.05)


def test_dropout_differs_by_key_and_rests_in_evaluation(video: np.ndarray) -> None:
    model = make(dropout_rate=0.5)
    variables = initialize(model, video)

    def run(seed: int, train: bool) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        out = model.apply(variables, video, LENGTHS, train=train, rngs=rngs, mutable=True)
        return np.asarray(out[0])

    assert np.array_equal(run(1, True), run(1, True))
    assert not np.array_equal(run(1, True), run(2, True))
    assert np.array_equal(run(1, False), run(2, False))


def test_wrong_arguments_are_refused(video: np.ndarray) -> None:
    model = make()
    variables = initialize(model, video)
    with pytest.raises(ValueError, match=r"frames: expected rank 5, received shape \(4, 8, 8, 3\)"):
        model.apply(variables, video[0], LENGTHS, train=False)
    with pytest.raises(ValueError, match=r"lengths: expected shape \(3,\)"):
        model.apply(variables, video, LENGTHS[:1], train=False)
    with pytest.raises(
        ValueError, match="pool: expected 'mean', 'flatten' or 'none', received 'max'"
    ):
        make(pool="max").apply(variables, video, LENGTHS, train=False)
    with pytest.raises(ValueError, match="images: expected sides that are multiples of 3"):
        DownsampledFrames(3).apply({}, video[0], train=False)


def test_a_frame_average_ignores_order_and_padding(video: np.ndarray) -> None:
    model = make(recurrent=FrameAverage(5, normalize_inputs=True))
    variables = initialize(model, video)
    logits = model.apply(variables, video, LENGTHS, train=False)
    swapped = video.copy()
    swapped[1, :2] = video[1, 1::-1]
    swapped[1, 2:] = 99
    other = model.apply(variables, swapped, LENGTHS, train=False)
    np.testing.assert_allclose(other[1, :2], logits[1, :2], atol=1e-5)
    layer = FrameAverage(5)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    parameters = layer.init(jax.random.key(0), x, train=False)
    hidden = nn.relu(x @ parameters["params"]["hidden"]["kernel"])
    expected = np.zeros((2, 3, 5), np.float32)
    expected[0, :2], expected[1] = hidden[0, :2].mean(0), hidden[1].mean(0)
    lengths = np.array([2, 3], np.int32)
    np.testing.assert_allclose(
        layer.apply(parameters, x, lengths, train=False), expected, atol=1e-6
    )


@partial(jax.jit, static_argnums=0)
def evaluate(model: CRNN, variables: Any, frames: Any, lengths: Any) -> Any:
    return model.apply(variables, frames, lengths, train=False)


def test_padded_frames_change_no_logits_of_clips(video: np.ndarray) -> None:
    padding = (np.arange(T) >= LENGTHS[:, None])[..., None, None, None]
    other = np.where(padding, np.uint8(200), video)
    for pool in (pool_max, AttentionPooling(3)):
        model = make(recurrent=None, classifier=ClipClassifier(3, pool), pool="flatten")
        variables = random_variables(model, video, LENGTHS)
        logits, others = (evaluate(model, variables, x, LENGTHS) for x in (video, other))
        assert logits.shape == (B, 1, 3)
        np.testing.assert_allclose(others, logits, atol=1e-6)


def test_conv_pooling_of_beyond_short_snippets(video: np.ndarray) -> None:
    head = ClipClassifier(3, pool_max, hidden_features=(9, 8))
    model = make(recurrent=None, classifier=head, pool="flatten")
    variables = random_variables(model, video, LENGTHS)
    logits = evaluate(model, variables, video, LENGTHS)
    encoder_variables = {name: tree["encoder"] for name, tree in variables.items()}
    encode = jax.jit(partial(make().encoder.apply, train=False))
    maps = encode(encoder_variables, video.reshape(-1, S, S, 3))
    maps = np.asarray(maps, np.float64).reshape(B, T, -1)  # Every position is kept.
    assert maps.shape[2] == 2 * 2 * 6
    layers = variables["params"]["classifier"]
    for b, length in enumerate(LENGTHS):
        x = maps[b, :length].max(0)
        for name in ("hidden_0", "hidden_1", "scores"):
            x = x @ np.asarray(layers[name]["kernel"], np.float64) + layers[name]["bias"]
            x = np.maximum(x, 0) if name != "scores" else x
        np.testing.assert_allclose(logits[b, 0], x, rtol=1e-5, atol=1e-5)


def test_pool_none_averages_behind_the_recurrent_layer(video: np.ndarray) -> None:
    maps = np.random.default_rng(1).normal(size=(B, T, 2, 3, 6)).astype(np.float32)
    model = make(encoder=None, recurrent=RunningSum(5), pool="none")
    variables = random_variables(model, maps, LENGTHS)
    logits = model.apply(variables, maps, LENGTHS, train=False)
    params = variables["params"]
    layer, head = params["recurrent"]["dense"], params["classifier"]["scores"]
    hidden = np.cumsum(maps @ layer["kernel"] + layer["bias"], 1).mean((2, 3))
    expected = hidden @ head["kernel"] + head["bias"]
    valid = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_allclose(logits[valid], expected[valid], atol=1e-5)
    stream = make(encoder=None, recurrent=RunningSum(5), pool="none", classifier=None)
    features = stream.apply(variables, maps, LENGTHS, train=False)
    assert features.shape == (B, T, 2, 3, 5)


def test_one_endpoint_is_read_and_several_are_refused(video: np.ndarray) -> None:
    for level, width in (("top", 4), ("high", 5)):
        model = make(encoder=ThreeLevels((level,)))
        variables = random_variables(model, video, LENGTHS)
        kernel = variables["params"]["recurrent"]["forward_0"]
        assert width in {leaf.shape[0] for leaf in jax.tree.leaves(kernel)}
    with pytest.raises(ValueError, match="encoder: expected one endpoint, received high, low"):
        random_variables(make(encoder=ThreeLevels(("high", "low"))), video, LENGTHS)
