"""GRU-RCN: recurrent layers on several endpoints, independent or stacked."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import pool_last
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.models.networks import (
    RunningSum,
    ThreeLevels,
    every_parameter_trains,
    random_variables,
)

B, T, S, K = 3, 4, 8, 5
LENGTHS = np.array([4, 2, 1], np.int32)
VALID = np.arange(T) < LENGTHS[:, None]
WIDTHS = {"low": 6, "high": 7, "top": 8}


def make(**options: Any) -> MultiLevelCRNN:
    parts: dict[str, Any] = {
        "recurrent": {level: RunningSum(width) for level, width in WIDTHS.items()},
        "make_classifier": partial(StepClassifier, K),
        "encoder": ThreeLevels(),
    }
    return MultiLevelCRNN(**(parts | options))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (B, T, S, S, 3)).astype(np.uint8)


def initialize(model: MultiLevelCRNN, frames: Any) -> Any:
    return random_variables(model, frames, LENGTHS)


def apply(model: MultiLevelCRNN, variables: Any, frames: Any) -> np.ndarray:
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, frames, LENGTHS))


@pytest.mark.parametrize("stacked", [False, True])
def test_equals_numpy_endpoint_by_endpoint(video: np.ndarray, stacked: bool) -> None:
    model = make(stacked=stacked)
    variables = initialize(model, video)
    logits = apply(model, variables, video)
    assert logits.shape == (B, T, 3, K)
    encoder = {name: tree["encoder"] for name, tree in variables.items()}
    encode = jax.jit(partial(ThreeLevels().apply, train=False))
    levels = encode(encoder, video.reshape(-1, S, S, 3))
    below = None
    for place, (level, width) in enumerate(WIDTHS.items()):
        x = np.asarray(levels[level]).reshape(B, T, *levels[level].shape[1:])
        if stacked and level == "high":
            assert below is not None
            windows = below.reshape(B, T, 2, 2, 2, 2, WIDTHS["low"])
            x = np.concatenate([x, windows.max((3, 5))], -1)
        elif stacked and level == "top":
            assert below is not None
            x = np.concatenate([x, below.max((2, 3))], -1)
        layer = variables["params"][f"recurrent_{level}"]["dense"]
        valid = VALID.reshape(B, T, *[1] * (x.ndim - 2))
        below = valid * np.cumsum(valid * (x @ layer["kernel"] + layer["bias"]), 1)
        assert below.shape[-1] == width
        mean = below.mean((2, 3)) if below.ndim == 5 else below
        head = variables["params"][f"classifier_{level}"]["scores"]
        expected = mean @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[:, :, place], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_padding_changes_nothing_and_every_parameter_trains(
    video: np.ndarray, stacked: bool
) -> None:
    model = make(stacked=stacked, make_classifier=partial(ClipClassifier, K, pool_last))
    variables = initialize(model, video)
    other = np.where(VALID[..., None, None, None], video, np.uint8(200))
    np.testing.assert_allclose(
        apply(model, variables, video), apply(model, variables, other), atol=1e-5
    )
    task = VideoClassification()

    @jax.jit
    def train(params: Any, frames: Any) -> Any:
        def loss(params: Any) -> Any:
            batch = {
                "video": frames,
                "lengths": LENGTHS,
                "label": jnp.arange(B),
                "mask": jnp.ones(B, bool),
            }
            sums, statistics = task.loss(
                model, {**variables, "params": params}, batch, jax.random.key(0)
            )
            return sums["loss"][0], statistics

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = train(variables["params"], video)
    others, other_statistics = train(variables["params"], other)
    every_parameter_trains(gradients)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, others, gradients)
    jax.tree.map(close, other_statistics, statistics)


def test_an_endpoint_reads_those_below_it_only_if_stacked(video: np.ndarray) -> None:
    levels = {
        "low": np.ones((B, T, 4, 4, 3), np.float32),
        "high": np.ones((B, T, 2, 2, 5), np.float32),
        "top": np.ones((B, T, 4), np.float32),
    }
    for stacked in (False, True):
        model = make(encoder=None, stacked=stacked)
        variables = initialize(model, levels)
        logits = apply(model, variables, levels)
        for place, level in enumerate(levels):
            other = {**levels, level: 2 * levels[level]}
            changed = np.abs(apply(model, variables, other) - logits).max((0, 1, 3)) > 1e-6
            expected = [p == place or (stacked and p > place) for p in range(3)]
            assert changed.tolist() == expected


def test_odd_sizes_are_stacked() -> None:
    rng = np.random.default_rng(0)
    levels = {
        "low": rng.normal(size=(B, T, 7, 5, 2)).astype(np.float32),
        "high": rng.normal(size=(B, T, 4, 3, 2)).astype(np.float32),
    }
    recurrent = {level: RunningSum(3) for level in levels}
    model = make(encoder=None, stacked=True, recurrent=recurrent)
    assert apply(model, initialize(model, levels), levels).shape == (B, T, 2, K)
    impossible = {**levels, "high": np.zeros((B, T, 5, 3, 2), np.float32)}  # 7 into 5.
    message = r"recurrent\['high'\]: expected a size that max .* \(7, 5\), can reach, received \(5"
    with pytest.raises(ValueError, match=message):
        initialize(model, impossible)
    with pytest.raises(ValueError, match="the endpoint below, vectors, can reach, received"):
        initialize(model, {**levels, "low": levels["low"].mean((2, 3))})


def test_fine_tuning_in_chunks_and_freezing(video: np.ndarray) -> None:
    variables = initialize(make(), video)

    @partial(jax.jit, static_argnames="options")
    def gradient(params: Any, options: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, statistics = make(**dict(options)).apply(
                {**variables, "params": params}, video, LENGTHS, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), statistics

        return jax.grad(loss, has_aux=True)(params)

    fixed = (("freeze_statistics", True),)
    whole, statistics = gradient(variables["params"], fixed)
    jax.tree.map(np.testing.assert_array_equal, statistics["batch_stats"], variables["batch_stats"])
    chunks, _ = gradient(variables["params"], (*fixed, ("chunk_frames", 5)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), chunks, whole)
    frozen, _ = gradient(variables["params"], (("freeze_encoder", True),))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen["encoder"]))
    assert np.any(whole["encoder"]["low"]["kernel"])


def test_wrong_arguments_are_refused(video: np.ndarray) -> None:
    message = "encoder: expected low, high, top, received high, low"
    with pytest.raises(ValueError, match=message):
        initialize(make(encoder=ThreeLevels(("low", "high"))), video)
    with pytest.raises(ValueError, match="frames: expected low, high, top, received low"):
        initialize(make(encoder=None), {"low": np.zeros((B, T, 2, 2, 3), np.float32)})
    with pytest.raises(
        ValueError, match="frames: expected feature maps by endpoint, received shape"
    ):
        initialize(make(encoder=None), video)
    with pytest.raises(ValueError, match="frames: expected one array, received low"):
        initialize(make(), {"low": video})
    with pytest.raises(ValueError, match="frames: expected rank 5, received shape"):
        initialize(make(), video[..., 0])
    with pytest.raises(ValueError, match=r"lengths: expected values in \[0, 4\]"):
        make().init(jax.random.key(0), video, LENGTHS + 1, train=False)
