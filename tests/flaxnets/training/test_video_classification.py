"""The task's losses and predictions, against NumPy, on a model that says what it is given."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.training import video_classification
from flaxnets.training.video_classification import VideoClassification

B, T, M, K = 4, 3, 2, 6
KINDS = ["per_step", "clip", "linear_gain"]
LENGTHS = np.array([3, 1, 2, 3], np.int32)
LABELS = np.array([2, 0, 5, 1], np.int32)
KEY = jax.random.key(0)


class Echo(nn.Module):
    """Its frames are its scores, moved by a parameter, which starts at zero."""

    @nn.compact
    def __call__(
        self, frames: jax.Array, lengths: jax.Array, mask: Any = None, *, train: bool
    ) -> Any:
        return frames + self.param("shift", nn.initializers.zeros, (frames.shape[-1],))


def batch_of(features: np.ndarray, **others: Any) -> dict[str, Any]:
    batch = {"features": features, "lengths": LENGTHS, "label": LABELS, "mask": np.ones(B, bool)}
    return {name: jnp.asarray(value) for name, value in (batch | others).items()}


def scores(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)


def variables_of(features: np.ndarray) -> Any:
    return {"params": {"shift": jnp.zeros(features.shape[-1])}}


def loss_of(task: VideoClassification, batch: dict[str, Any]) -> dict[str, tuple[float, float]]:
    # A function of its own each time, as tests put something else in place of the draw.
    sums, _ = jax.jit(partial(task.loss, Echo()))(variables_of(batch["features"]), batch, KEY)
    return {name: (float(total), float(count)) for name, (total, count) in sums.items()}


def evaluate(task: VideoClassification, batch: dict[str, Any]) -> Any:
    return jax.jit(partial(task.evaluate, Echo()))(variables_of(batch["features"]), batch)


def predict(task: VideoClassification, batch: dict[str, Any]) -> Any:
    return jax.jit(partial(task.predict, Echo()))(variables_of(batch["features"]), batch)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(np.asarray(x, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def clip_loss(
    kind: str, rows: np.ndarray, label: int, length: int, smoothing: float = 0.0
) -> float:
    """The loss of one clip from (T,K) scores of one network."""
    rows = rows[:length].astype(np.float64)
    rows = rows.mean(0, keepdims=True) if kind == "clip" else rows
    target = np.full(K, smoothing / K)
    target[label] += 1 - smoothing
    losses = [-(target * np.log(softmax(row))).sum() for row in rows]
    return float(np.average(losses, weights=gains(kind, len(losses))))


def gains(kind: str, length: int) -> np.ndarray:
    """The weights of the steps of one clip."""
    if kind == "linear_gain":
        return np.array([(t + 1) / length for t in range(length)])
    return np.ones(length)


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


class LastOnly(Echo):
    """Gives the scores of the last ``steps`` steps, as heads of whole clips give one."""

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
    with pytest.raises(ValueError, match="scores: expected 1 or 3 steps, received 2"):
        VideoClassification().predict(LastOnly(2), variables_of(features), batch_of(features))


class Sum(nn.Module):
    """Its streams, which must be named as is said, added up are its scores."""

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
    # A video without a label has a prediction all the same.
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, rtol=1e-5)


def test_evaluation_of_impossible_labels_is_finite() -> None:
    features = np.zeros((B, T, K), np.float32)
    features[..., 0] = 1e4
    sums, _ = evaluate(VideoClassification(), batch_of(features))
    assert np.isfinite(sums["loss"][0])
    assert sums["accuracy"][0] == 1


def fix_draw(monkeypatch: pytest.MonkeyPatch, pairs: Any, share: Any) -> None:
    drawn = jnp.asarray(pairs, jnp.int32), jnp.asarray(share, jnp.float32)
    monkeypatch.setattr(video_classification, "_draw_mixup", lambda key, alpha, size: drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_mixup_mixes_clips_and_targets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, share = [2, 1, 3, 0], [0.9, 0.3, 0.5, 0.75]
    fix_draw(monkeypatch, pairs, share)
    features, mask = scores(B, T, M, K), np.array([True, True, True, False])
    task = VideoClassification(kind, label_smoothing=0.1, mixup=0.4)
    sums = loss_of(task, batch_of(features, mask=mask))
    total = 0.0
    counted = 0
    for b in range(B):
        partner, weight = pairs[b], share[b]
        if not (mask[b] and mask[partner]):
            continue
        counted += 1
        mixed = weight * features[b] + (1 - weight) * features[partner]
        length = min(LENGTHS[b], LENGTHS[partner])
        for m in range(M):
            own, other = (
                clip_loss(kind, mixed[:, m], LABELS[clip], length, smoothing=0.1)
                for clip in (b, partner)
            )
            total += (weight * own + (1 - weight) * other) / M
    # The last row is masked, and the third has it as partner.
    assert counted == 2
    assert sums["loss"][0] == pytest.approx(total, rel=1e-5)
    assert sums["loss"][1] == counted
    assert sums["accuracy"][1] == counted


def test_mixup_with_the_whole_share_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.full(B, T, np.int32)
    batch = batch_of(scores(B, T, K), lengths=lengths)
    plain = loss_of(VideoClassification(), batch)
    fix_draw(monkeypatch, [3, 2, 1, 0], np.ones(B))
    mixed = loss_of(VideoClassification(mixup=0.4), batch)
    assert mixed["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert mixed["accuracy"] == plain["accuracy"]


def test_mixup_without_a_share_trains_on_the_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.full(B, T, np.int32)
    batch = batch_of(scores(B, T, K), lengths=lengths)
    fix_draw(monkeypatch, [3, 2, 1, 0], np.zeros(B))
    mixed = loss_of(VideoClassification(mixup=0.4), batch)
    assert mixed["loss"] == pytest.approx(loss_of(VideoClassification(), batch)["loss"], rel=1e-6)


def test_mixup_draws_a_permutation_and_shares_of_the_beta_distribution() -> None:
    draw = jax.jit(partial(video_classification._draw_mixup, alpha=0.4, size=4000))
    pairs, share = draw(KEY)
    assert sorted(pairs.tolist()) == list(range(4000))
    assert share.min() >= 0
    assert share.max() <= 1
    # Beta(α, α): mean 1/2, variance 1 / (4 (2 α + 1)).
    assert abs(float(share.mean()) - 0.5) < 0.03
    assert abs(float(share.var()) - 1 / (4 * 1.8)) < 0.01
    other, _ = draw(jax.random.key(1))
    assert (pairs != other).any()


def test_mixup_of_pixels_is_refused() -> None:
    batch = batch_of(scores(B, T, K))
    batch["video"] = jnp.zeros((B, T, 2, 2, 3), jnp.uint8)
    del batch["features"]
    with pytest.raises(ValueError, match="mixup: expected features, received video of uint8"):
        VideoClassification(mixup=0.4).loss(Echo(), {"params": {}}, batch, KEY)


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


def test_a_description_names_the_likeliest_class() -> None:
    outputs = {"probabilities": np.array([[0.5, 0.5, 0], [0.1, 0.2, 0.7]], np.float32)}
    description = VideoClassification().describe_outputs(outputs, 1)
    assert description == {"prediction": 2, "probabilities": [0.1, 0.2, 0.7]}
