"""Fusion at each step: against the parts one by one, and on a task that needs both streams."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.audio.log_mel import log_mel, log_mel_patches
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import pool_last
from flaxnets.models.crnn import CRNN
from flaxnets.models.stream_fusion import StreamFusion
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.models.networks import RunningSum, every_parameter_trains, random_variables

B, T, S, K = 3, 4, 8, 5
LENGTHS = np.array([4, 2, 1], np.int32)
VALID = np.arange(T) < LENGTHS[:, None]


def make(**options: Any) -> StreamFusion:
    parts: dict[str, Any] = {
        # Not in alphabetical order, into which JAX sorts the keys of dictionaries.
        "streams": {
            "video": CRNN(None, encoder=SmallCNN((4, 6), (2, 2))),
            "audio": CRNN(None, encoder=SmallCNN((3,), (2,)), recurrent=RunningSum(4)),
        },
        "classifier": StepClassifier(K),
        "recurrent": RunningSum(7),
    }
    return StreamFusion(**(parts | options))


@pytest.fixture(scope="module")
def streams() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.normal(size=(B, T, 12, 6, 1)).astype(np.float32),
        "video": rng.integers(0, 256, (B, T, S, S, 3)).astype(np.uint8),
    }


def initialize(model: nn.Module, frames: Any) -> Any:
    return random_variables(model, frames, LENGTHS)


def apply(model: nn.Module, variables: Any, frames: Any) -> np.ndarray:
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, frames, LENGTHS))


def dense(parameters: Any, x: np.ndarray) -> np.ndarray:
    return x @ parameters["kernel"] + parameters["bias"]


def test_equals_the_streams_one_by_one(streams: dict[str, np.ndarray]) -> None:
    model = make()
    variables = initialize(model, streams)
    features = []
    for name in ("video", "audio"):
        own = {kind: tree[f"streams_{name}"] for kind, tree in variables.items()}
        features.append(apply(make().streams[name], own, streams[name]))
    assert [x.shape for x in features] == [(B, T, 6), (B, T, 4)]
    params = variables["params"]
    x = np.concatenate(features, -1)
    x = dense(params["recurrent"]["dense"], x)
    x = VALID[..., None] * np.cumsum(VALID[..., None] * x, 1)
    expected = dense(params["classifier"]["scores"], x)
    np.testing.assert_allclose(apply(model, variables, streams), expected, rtol=1e-4, atol=1e-5)


def test_padding_of_either_stream_changes_nothing_and_every_parameter_trains(
    streams: dict[str, np.ndarray],
) -> None:
    model = make(classifier=ClipClassifier(K, pool_last))
    variables = initialize(model, streams)

    @jax.jit
    def train(frames: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, statistics = model.apply(
                {**variables, "params": params},
                frames,
                LENGTHS,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.sin(logits)), (logits, statistics)

        return jax.grad(loss, has_aux=True)(variables["params"])

    expected = train(streams)
    every_parameter_trains(expected[0])
    for name, stream in streams.items():
        other = np.where(VALID[..., None, None, None], stream, np.array(99, stream.dtype))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
            train({**streams, name: other}),
            expected,
        )


def test_feature_maps_of_one_size_are_concatenated() -> None:
    rng = np.random.default_rng(0)
    maps = {
        "video": rng.normal(size=(B, T, 2, 3, 4)).astype(np.float32),
        "audio": rng.normal(size=(B, T, 2, 3, 5)).astype(np.float32),
    }
    model = make(streams={name: CRNN(None, pool="none") for name in maps})
    logits = apply(model, initialize(model, maps), maps)
    assert logits.shape == (B, T, K)
    with pytest.raises(ValueError, match=r"streams\['audio'\]: expected features \(3, 4, 2, 3, 'F"):
        initialize(model, {**maps, "audio": maps["audio"][:, :, :1]})


def test_whole_streams_of_a_clip_are_dropped() -> None:
    frames = {name: np.ones((64, T, 2), np.float32) for name in ("video", "audio")}

    class Look(nn.Module):
        def __call__(self, inputs: Any, lengths: Any = None, *, train: bool) -> Any:
            return inputs

    model = StreamFusion({name: CRNN(None) for name in frames}, Look(), stream_dropout=0.25)
    lengths = np.full(64, T, np.int32)
    seen = np.asarray(
        model.apply({}, frames, lengths, train=True, rngs={"dropout": jax.random.key(0)})
    ).reshape(64, T, 2, 2)
    # One draw for each clip and stream; what remains is scaled up.
    assert (seen == seen[:, :1, :, :1]).all()
    drawn = seen[:, 0, :, 0]
    np.testing.assert_allclose(np.unique(drawn), [0, 4 / 3], rtol=1e-6)
    assert abs((drawn == 0).mean() - 0.25) < 0.1
    assert (drawn[:, 0] != drawn[:, 1]).any()
    assert (np.asarray(model.apply({}, frames, lengths, train=False)) == 1).all()


def test_wrong_arguments_are_refused(streams: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="frames: expected video, audio, received audio"):
        initialize(make(), {"audio": streams["audio"]})
    with pytest.raises(ValueError, match="frames: expected streams by name, received shape"):
        initialize(make(), streams["video"])
    with pytest.raises(ValueError, match=r"frames\['audio'\]: expected \(B,T\) = \(3, 4\) as"):
        initialize(make(), {"video": streams["video"], "audio": streams["audio"][:, :3]})
    with pytest.raises(ValueError, match=r"frames\['audio'\]: expected uint8 or a float dtype"):
        initialize(make(), {**streams, "audio": streams["audio"].astype(np.int16)})
    with pytest.raises(ValueError, match=r"lengths: expected values in \[0, 4\], received"):
        make().init(jax.random.key(0), streams, LENGTHS + 1, train=False)


RATE, FRAME_RATE = 16_000, 10


def make_clips(number: int, seed: int) -> dict[str, np.ndarray]:
    """Returns clips whose label is the exclusive or of a bright flash and a high tone.

    Flash and tone occur at independent steps, so that no single step gives the label.
    """
    rng = np.random.default_rng(seed)
    bright, high = rng.integers(0, 2, (2, number))
    times = np.arange(T) / FRAME_RATE + 0.05
    seconds = np.arange(int(RATE * T / FRAME_RATE)) / RATE
    patches = {}
    for pitch in (0, 1):
        for step in range(T):
            tone = 0.3 * np.sin(2 * np.pi * (400, 2500)[pitch] * seconds)
            tone *= np.abs(seconds - times[step]) < 0.05
            bands = log_mel(tone.astype(np.float32), RATE, num_mels=16)
            patches[pitch, step] = log_mel_patches(bands, times, 4)
    video = rng.integers(100, 140, (number, T, S, S, 3)).astype(np.uint8)
    flashes, tones = rng.integers(0, T, (2, number))
    video[np.arange(number), flashes] = (20 + 200 * bright)[:, None, None, None]
    return {
        "video": video,
        "audio": np.stack([patches[key] for key in zip(high, tones, strict=True)]),
        "lengths": np.full(number, T, np.int32),
        "label": (bright ^ high).astype(np.int32),
        "mask": np.ones(number, bool),
    }


def train_on(inputs: tuple[str, ...]) -> float:
    """Returns the test accuracy of a network that is given ``inputs`` only."""
    encoders = {
        "video": CRNN(None, encoder=SmallCNN((8,), (4,))),
        "audio": CRNN(None, encoder=SmallCNN((8,), (2,)), pool="flatten"),
    }
    model = StreamFusion(
        streams=encoders,
        recurrent=Recurrent(partial(LSTMCell, 24)),
        classifier=ClipClassifier(2, pool_last),
    )
    task = VideoClassification(inputs=("video", "audio"))
    data, test = make_clips(512, 0), make_clips(256, 1)
    for clips in (data, test):
        for name in set(encoders) - set(inputs):
            clips[name] = np.zeros_like(clips[name])
    key = jax.random.key(0)
    optimizer = optax.adam(1e-2)
    variables = jax.jit(partial(task.initialize, model))(key, data)
    state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables: Any, state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            sums, collections = task.loss(model, {**variables, "params": params}, batch, key)
            return sums["loss"][0] / sums["loss"][1], collections

        gradients, collections = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state)
        return {"params": optax.apply_updates(variables["params"], updates), **collections}, state

    rng = np.random.default_rng(2)
    for _ in range(100):
        rows = rng.integers(0, 512, 64)
        batch = {name: array[rows] for name, array in data.items()}
        variables, state = step(variables, state, batch)
    sums, _ = jax.jit(partial(task.evaluate, model))(variables, test)
    return float(sums["accuracy"][0] / sums["accuracy"][1])


@pytest.mark.stress
def test_both_streams_are_learnt_together_and_neither_suffices() -> None:
    assert train_on(("video", "audio")) > 0.95
    for alone in ("video", "audio"):
        assert train_on((alone,)) < 0.62, alone
