"""Frame prediction: metrics against NumPy, rows that do not count, devices, roll-out."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxnets.models.forecaster import NextFrameForecaster, StackedCells
from flaxnets.recurrent import ConvLSTMCell
from flaxnets.tasks.frame_metrics import (
    count_events,
    critical_success_index,
    heidke_skill_score,
    ssim,
)
from flaxnets.tasks.frame_prediction import FramePrediction, score_frames
from flaxnets.training.parallel import DataParallel, Pmap
from flaxnets.training.state import TrainState, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step

B, T, SIZE, INPUTS = 4, 5, 9, 3
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (B, T, SIZE, SIZE, 1), np.uint8)
MASK = np.array([True, True, True, False])
BATCH = {"frames": jnp.asarray(FRAMES), "mask": jnp.asarray(MASK)}

BATCH_OF_EIGHT = {
    "frames": RNG.integers(0, 256, (8, T, 8, 8, 1), np.uint8),
    "mask": np.arange(8) < 7,
}


class Dimmed(nn.Module):
    """Predicts the frame before, times a parameter; its auxiliary loss is each row's mean."""

    @nn.compact
    def __call__(
        self, frames: Any, *, num_inputs: int, use_truth: Any = None, train: bool
    ) -> tuple[Any, dict[str, Any]]:
        scale = self.param("scale", nn.initializers.constant(0.5), ())
        last = jnp.broadcast_to(frames[:, num_inputs - 1, None], frames[:, 1:].shape)
        inputs = jnp.where(
            jnp.arange(frames.shape[1] - 1)[:, None, None, None] < num_inputs, frames[:, :-1], last
        )
        if use_truth is not None:
            inputs = inputs * use_truth[:, :, None, None, None]
        return scale * inputs, {"brightness": frames.mean(axis=(1, 2, 3, 4))}


VARIABLES = {"params": {"scale": jnp.float32(0.5)}}


def ssim_by_loops(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Returns the SSIM of scikit-image's defaults, window by window, in float64."""
    values = []
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    for c in range(x.shape[-1]):
        for i in range(x.shape[0] - 6):
            for j in range(x.shape[1] - 6):
                a, b = (z[i : i + 7, j : j + 7, c].astype(np.float64).ravel() for z in (x, y))
                (var_a, both), (_, var_b) = np.cov(a, b)
                top = (2 * a.mean() * b.mean() + c1) * (2 * both + c2)
                values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_equals_its_definition(data_range: float) -> None:
    x = RNG.uniform(size=(2, 9, 8, 2)).astype(np.float32)
    y = np.clip(x + 0.2 * RNG.normal(size=x.shape), 0, 1).astype(np.float32)
    expected = [ssim_by_loops(a, b, data_range) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(x, y, data_range), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="at least 7×7 pixels"):
        ssim(x[:, :6], y[:, :6])


def evaluate(task: FramePrediction, batch: Any = BATCH) -> tuple[dict[str, float], Any]:
    sums, outputs = jax.jit(partial(task.evaluate, Dimmed()))(VARIABLES, batch)
    return {name: float(total / count) for name, (total, count) in sums.items()}, outputs


def test_metrics_are_those_of_the_papers() -> None:
    task = FramePrediction(INPUTS, thresholds=(0.3,))
    means, outputs = evaluate(task)
    frames = FRAMES[MASK].astype(np.float64) / 255
    targets, last = frames[:, INPUTS:], frames[:, INPUTS - 1, None]
    values = 0.5 * np.broadcast_to(last, targets.shape)
    squared = (values - targets) ** 2
    # OpenSTL: the mean over batch and time, then the sum over the pixels.
    assert means["mse_frame"] == pytest.approx(squared.mean(axis=(0, 1)).sum(), rel=1e-5)
    assert means["mse_pixel"] == pytest.approx(squared.mean(), rel=1e-5)
    absolute = np.abs(values - targets)
    assert means["mae_frame"] == pytest.approx(absolute.mean(axis=(0, 1)).sum(), rel=1e-5)
    assert means["mae_pixel"] == pytest.approx(absolute.mean(), rel=1e-5)
    decibels = -10 * np.log10(squared.mean(axis=(2, 3, 4)))
    assert means["psnr"] == pytest.approx(decibels.mean(), rel=1e-5)
    similar = [ssim_by_loops(values[b, t], targets[b, t], 1.0) for b in range(3) for t in range(2)]
    assert means["ssim"] == pytest.approx(np.mean(similar), rel=1e-4)
    copied = ((last - targets) ** 2).mean(axis=(0, 1)).sum()
    assert means["copy_mse_frame"] == pytest.approx(copied, rel=1e-5)
    # The loss is of all predicted frames, those of the inputs included.
    given = (0.5 * frames[:, : INPUTS - 1] - frames[:, 1:INPUTS]) ** 2
    both = np.concatenate([given, squared], axis=1)
    assert means["loss"] == pytest.approx(both.mean(), rel=1e-5)
    late, _ = evaluate(dataclasses.replace(task, all_frames=False))
    assert late["loss"] == pytest.approx(squared.mean(), rel=1e-5)
    # Scores of the whole split, from counts.
    records = [task.describe_outputs(jax.device_get(outputs), row) for row in range(3)]
    scores = score_frames(records, (0.3,), horizon=True)
    steps = [scores["mse_frame_1"], scores["mse_frame_2"]]
    np.testing.assert_allclose(steps, squared.mean(axis=0).sum(axis=(1, 2, 3)), rtol=1e-5)
    predicted, happened = values >= 0.3, targets >= 0.3
    hits, either = (predicted & happened).sum(), (predicted | happened).sum()
    assert scores["csi_0.3"] == pytest.approx(hits / either)
    right = (predicted == happened).mean()
    chance = predicted.mean() * happened.mean() + (1 - predicted.mean()) * (1 - happened.mean())
    assert scores["hss_0.3"] == pytest.approx((right - chance) / (1 - chance))


def test_scores_of_splits_without_events_are_nan() -> None:
    table = np.array(count_events(jnp.zeros((2, 2, 1)), jnp.zeros((2, 2, 1)), 0.5))
    assert table.tolist() == [0, 0, 0, 4]
    assert np.isnan([critical_success_index(table), heidke_skill_score(table)]).all()
    assert score_frames([]) == {}


def test_cross_entropy_is_summed_over_frames_and_pixels() -> None:
    means, _ = evaluate(FramePrediction(INPUTS, "cross_entropy"))
    frames = FRAMES[MASK].astype(np.float64) / 255
    targets = frames[:, INPUTS:]
    p = 1 / (1 + np.exp(-0.5 * np.broadcast_to(frames[:, INPUTS - 1, None], targets.shape)))
    nats = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    assert means["nll_sequence"] == pytest.approx(nats.sum(axis=(1, 2, 3, 4)).mean(), rel=1e-5)
    # The metrics are of probabilities.
    expected = ((p - targets) ** 2).mean(axis=(0, 1)).sum()
    assert means["mse_frame"] == pytest.approx(expected, rel=1e-5)


def test_rows_that_do_not_count_have_no_effect() -> None:
    task = FramePrediction(INPUTS, auxiliary_weights=(("brightness", 2.0),))
    fields = FRAMES.astype(np.float32) / 255

    def loss(variables: Any, frames: Any) -> Any:
        batch = {"frames": frames, "mask": BATCH["mask"]}
        sums, _ = task.loss(Dimmed(), variables, batch, jax.random.key(0))
        return sums["loss"][0], sums

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, sums), gradient = run(VARIABLES, jnp.asarray(fields))
    assert float(sums["loss"][1]) == 3
    assert abs(float(gradient["params"]["scale"])) > 0
    spoilt = fields.copy()
    spoilt[3] = np.nan
    (other, _), other_gradient = run(VARIABLES, jnp.asarray(spoilt))
    assert other == value
    assert other_gradient == gradient
    means, _ = evaluate(task, {"frames": jnp.asarray(spoilt), "mask": BATCH["mask"]})
    assert np.isfinite(list(means.values())).all()
    # Fields have errors, but no PSNR and SSIM, which are of images.
    assert "mse_frame" in means
    assert not {"psnr", "ssim"} & means.keys()
    brightness = fields[:3].mean()
    assert float(sums["brightness"][0] / 3) == pytest.approx(brightness, rel=1e-5)
    plain, _ = FramePrediction(INPUTS).loss(
        Dimmed(), VARIABLES, {**BATCH, "frames": jnp.asarray(fields)}, jax.random.key(0)
    )
    assert float(value - plain["loss"][0]) / 3 == pytest.approx(2 * brightness, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class FromStep:
    """Schedule that reads true frames from a step of the training on."""

    first: int

    def __call__(
        self, step: Any, key: Any, batch_size: int, num_inputs: int, num_frames: int
    ) -> Any:
        return jnp.broadcast_to(step >= self.first, (batch_size, num_frames - 1))


def test_the_schedule_is_told_the_training_step() -> None:
    task = FramePrediction(INPUTS, sampling=FromStep(5))
    losses = [
        float(task.loss(Dimmed(), VARIABLES, BATCH, jax.random.key(0), step)[0]["loss"][0])
        for step in (4, 5)
    ]
    frames = FRAMES[:3].astype(np.float64) / 255
    blank = (frames[:, 1:] ** 2).mean(axis=(1, 2, 3, 4)).sum()
    assert losses[0] == pytest.approx(blank, rel=1e-5)
    assert losses[1] < losses[0]


def test_a_longer_horizon_rolls_on() -> None:
    model = forecaster()
    task = FramePrediction(INPUTS)
    shapes = jax.eval_shape(partial(task.initialize, model), jax.random.key(0), BATCH_OF_EIGHT)
    variables = jax.tree.map(lambda x: (0.2 * RNG.normal(size=x.shape)).astype(x.dtype), shapes)
    frames = jnp.asarray(FRAMES[:2, :INPUTS, :8, :8])
    predict = jax.jit(partial(task.predict, model), static_argnums=2)
    short, long = predict(variables, frames, 2), predict(variables, frames, 6)
    assert long.shape == (2, 6, 8, 8, 1)
    np.testing.assert_allclose(long[:, :2], short, atol=1e-6)
    assert long.min() >= 0
    assert long.max() <= 1
    with pytest.raises(ValueError, match=r"frames: expected \(B,3,H,W,C\)"):
        task.predict(model, variables, frames[:, 1:], 2)
    with pytest.raises(ValueError, match="num_outputs: expected at least 1"):
        task.predict(model, variables, frames, 0)


def forecaster() -> NextFrameForecaster:
    return NextFrameForecaster(StackedCells(ConvLSTMCell, (3,)), patch_size=4, channels=1)


@pytest.fixture(scope="module")
def of_one() -> tuple[TrainState, Any]:
    """Returns the state and the losses of two steps on one device, and an evaluation."""
    return trained(DataParallel(jax.devices()[:1]))


def trained(strategy: Any) -> tuple[TrainState, Any]:
    model, task, optimizer = forecaster(), FramePrediction(INPUTS), optax.sgd(5.0)
    batch = BATCH_OF_EIGHT
    variables = jax.device_get(task.initialize(model, jax.random.key(0), batch))
    state = strategy.place(make_state(variables, optimizer, 0))
    step = strategy.compile_train(make_train_step(model, task, optimizer, strategy=strategy), state)
    losses = []
    for _ in range(2):
        state, sums = step(state, strategy.shard(batch))
        losses.append(jax.device_get(sums["loss"]))
    variables = strategy.place_variables(jax.device_get(state.variables))
    evaluation = strategy.compile_evaluation(make_evaluation_step(model, task))
    sums, _ = evaluation(variables, strategy.shard(batch))
    return jax.device_get(state), (losses, jax.device_get(sums))


@pytest.mark.parametrize("strategy", [DataParallel, pytest.param(Pmap, marks=pytest.mark.stress)])
def test_eight_devices_equal_one(strategy: Any, of_one: tuple[TrainState, Any]) -> None:
    state, figures = trained(strategy())
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, figures, of_one[1])
    jax.tree.map(close, jax.device_get(state.params), of_one[0].params)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_kind: unknown 'mes'.*mse"):
        FramePrediction(INPUTS, "mes")
    task = FramePrediction(INPUTS, auxiliary_weights=(("decoupling", 1.0),))
    with pytest.raises(ValueError, match=r"auxiliary_weights: .*\['brightness'\].*'decoupling'"):
        task.loss(Dimmed(), VARIABLES, BATCH, jax.random.key(0))
