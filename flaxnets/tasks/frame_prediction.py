"""Prediction of the frames that follow given ones, of videos and of fields."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.configuration import nearest
from flaxnets.layers.padding import zero_where_masked
from flaxnets.tasks.frame_metrics import (
    SSIM_WINDOW,
    absolute_errors,
    count_events,
    critical_success_index,
    heidke_skill_score,
    psnr,
    squared_errors,
    ssim,
)
from flaxnets.tasks.step_prediction import bernoulli_losses
from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums

LOSSES = ("mse", "l1", "mse_l1", "cross_entropy")


class Sampling(Protocol):
    """Schedule of the frames that a training step reads: true ones or predictions; hashable."""

    def __call__(
        self, step: Array | int, key: PRNGKey, batch_size: int, num_inputs: int, num_frames: int
    ) -> Array:
        """Returns ``use_truth`` (B,T-1) bool, see ``NextFrameForecaster``.

        Args:
          step: () int32, finished training steps.
          key: random key of this step.
          batch_size: B.
          num_inputs: frames that are given.
          num_frames: T.
        """


@dataclasses.dataclass(frozen=True)
class FramePrediction:
    """Prediction of frames num_inputs to T - 1, of batches ``frames`` (B,T,H,W,C) and ``mask``.

    Frames are uint8 in [0,255], which the network reads as [0,1], or float32 fields. The model
    returns predictions of the last N frames, N from T - num_inputs to T - 1, and auxiliary losses
    (``flaxnets/models/forecaster.py``). With ``cross_entropy`` the predictions are logits.

    The loss of a sequence is the mean over the values of all predicted frames of the squared
    (``mse``) or absolute (``l1``) error, the sum of both, or, as Shi et al. (1506.04214, section
    4.1), the cross-entropy summed over frames and pixels, in nats.

    Metrics of an evaluation, of the frames from num_inputs on:

    ================= =============================================================================
    ``mse_frame``     squared error summed over a frame's pixels, mean over frames: the papers' MSE
    ``mae_frame``     absolute error, as ``mse_frame``
    ``mse_pixel``     squared error, mean over pixels
    ``mae_pixel``     absolute error, mean over pixels
    ``psnr``          of uint8 frames, mean over frames, with predictions clipped to [0,1]
    ``ssim``          as ``psnr``
    ``nll_sequence``  of ``cross_entropy``: nats a sequence, the papers' cross-entropy
    ``copy_…``        ``mse_frame``, ``mae_frame`` and ``ssim`` of the last input repeated
    ================= =============================================================================

    MSE and MAE are of unclipped predictions, as in OpenSTL.

    Attributes:
      num_inputs: frames that are given.
      loss_kind: a name in ``LOSSES``.
      all_frames: the loss counts every predicted frame, also those before num_inputs; False: the
        frames from num_inputs on.
      auxiliary_weights: (name, weight) of the model's auxiliary losses; others are left out.
      sampling: of training; None: true frames up to num_inputs, then predictions.
      thresholds: of events, in the units that the network reads; see ``score_frames``.
      ssim_range: see ``ssim``.

    Raises:
      ValueError: an unknown loss.
    """

    num_inputs: int
    loss_kind: str = "mse"
    all_frames: bool = True
    auxiliary_weights: tuple[tuple[str, float], ...] = ()
    sampling: Sampling | None = None
    thresholds: tuple[float, ...] = ()
    ssim_range: float = 1.0

    def __post_init__(self) -> None:
        if self.loss_kind not in LOSSES:
            near = nearest(self.loss_kind, LOSSES)
            raise ValueError(f"loss_kind: unknown {self.loss_kind!r}{near}")

    @property
    def logits(self) -> bool:
        """True if the predictions are logits."""
        return self.loss_kind == "cross_entropy"

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables, from two frames of one example."""
        frames = _as_float(batch["frames"][:1, :2])
        return model.init(key, frames, num_inputs=1, train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Returns sums of ``loss``, ``mse_frame`` and the auxiliary losses, and no collections."""
        frames, mask = self._frames(batch), batch["mask"]
        use_truth = None
        dropout_key, sampling_key = jax.random.split(key)
        if self.sampling is not None:
            use_truth = self.sampling(
                step, sampling_key, len(frames), self.num_inputs, frames.shape[1]
            )
        mutable = [name for name in variables if name != "params"]
        outputs: Any = model.apply(
            variables,
            frames,
            num_inputs=self.num_inputs,
            use_truth=use_truth,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=mutable,
        )
        predictions: Array
        auxiliary: dict[str, Array]
        (predictions, auxiliary), collections = outputs
        sums = self._losses(predictions, frames, auxiliary, mask)
        values, targets = self._outputs(predictions, frames)
        squared = zero_where_masked(squared_errors(values, targets), mask)
        sums["mse_frame"] = jnp.sum(squared), _count(mask, squared)
        return sums, dict(collections)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns the sums of all metrics, and the errors of each frame, (B,N)."""
        frames, mask = self._frames(batch), batch["mask"]
        predictions, auxiliary = self._apply(model, variables, frames)
        sums = self._losses(predictions, frames, auxiliary, mask)
        values, targets = self._outputs(predictions, frames)
        last = jnp.broadcast_to(frames[:, self.num_inputs - 1, None], targets.shape)
        outputs = {
            "mse_frame": squared_errors(values, targets),
            "mae_frame": absolute_errors(values, targets),
            "copy_mse_frame": squared_errors(last, targets),
            "copy_mae_frame": absolute_errors(last, targets),
        }
        if batch["frames"].dtype == jnp.uint8:
            clipped = jnp.clip(values, 0, 1)
            outputs["psnr"] = psnr(clipped, targets)
            if min(frames.shape[2:4]) >= SSIM_WINDOW:
                outputs["ssim"] = ssim(clipped, targets, self.ssim_range)
                outputs["copy_ssim"] = ssim(last, targets, self.ssim_range)
        outputs = {name: zero_where_masked(x, mask) for name, x in outputs.items()}
        for name, values_of_frames in outputs.items():
            sums[name] = jnp.sum(values_of_frames), _count(mask, values_of_frames)
        pixels = frames[0, 0].size
        for name in ("mse", "mae"):
            total, count = sums[f"{name}_frame"]
            sums[f"{name}_pixel"] = total, count * pixels
        if self.logits:
            nats = bernoulli_losses(predictions[:, -targets.shape[1] :], targets)
            nats = zero_where_masked(jnp.sum(nats, axis=(1, 2, 3, 4)), mask)
            sums["nll_sequence"] = jnp.sum(nats), jnp.sum(mask, dtype=jnp.float32)
        if self.thresholds:
            tables = [count_events(values, targets, each).sum(axis=1) for each in self.thresholds]
            outputs["events"] = jnp.stack(tables, axis=1)  # (B,K,4)
        return sums, outputs

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns a row's errors of each frame, lists by name, and its ``events`` (K,4)."""
        return {name: np.asarray(x[row]).tolist() for name, x in outputs.items()}

    def predict(
        self, model: nn.Module, variables: PyTree, frames: Array, num_outputs: int
    ) -> Array:
        """Returns the frames that follow given ones.

        Args:
          model: the network.
          variables: its variables.
          frames: (B,num_inputs,H,W,C) uint8 in [0,255], or float32 fields.
          num_outputs: N, also more than in training.

        Returns:
          (B,N,H,W,C) float32: in [0,1] of uint8 frames, else in the units of the fields.

        Raises:
          ValueError: another number of frames, or none to predict.
        """
        if frames.ndim != 5 or frames.shape[1] != self.num_inputs:
            raise ValueError(
                f"frames: expected (B,{self.num_inputs},H,W,C), received shape {frames.shape}"
            )
        if num_outputs < 1:
            raise ValueError(f"num_outputs: expected at least 1, received {num_outputs}")
        padded = jnp.pad(_as_float(frames), ((0, 0), (0, num_outputs), (0, 0), (0, 0), (0, 0)))
        predictions, _ = self._apply(model, variables, padded)
        values, _ = self._outputs(predictions, padded)
        return jnp.clip(values, 0, 1) if frames.dtype == jnp.uint8 else values

    def _apply(
        self, model: nn.Module, variables: PyTree, frames: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Returns predictions and auxiliary losses, from predictions once the inputs end."""
        outputs: Any = model.apply(variables, frames, num_inputs=self.num_inputs, train=False)
        predictions, auxiliary = outputs
        return predictions, auxiliary

    def _frames(self, batch: Batch) -> Array:
        """Returns the frames as the network reads them, zeros in rows that do not count."""
        return zero_where_masked(_as_float(batch["frames"]), batch["mask"])

    def _outputs(self, predictions: Array, frames: Array) -> tuple[Array, Array]:
        """Returns values and targets (B,T-num_inputs,H,W,C) of the frames after the inputs."""
        targets = frames[:, self.num_inputs :]
        values = predictions[:, -targets.shape[1] :]
        return (nn.sigmoid(values) if self.logits else values), targets

    def _losses(
        self, predictions: Array, frames: Array, auxiliary: Mapping[str, Array], mask: Array
    ) -> Sums:
        """Returns the sums of the loss and of the auxiliary losses over rows."""
        num_frames = predictions.shape[1] if self.all_frames else frames.shape[1] - self.num_inputs
        predictions, targets = predictions[:, -num_frames:], frames[:, -num_frames:]
        axes = (1, 2, 3, 4)
        if self.logits:
            losses = jnp.sum(bernoulli_losses(predictions, targets), axis=axes)
        else:
            difference = predictions - targets
            losses = jnp.zeros(len(frames), jnp.float32)
            if "mse" in self.loss_kind:
                losses += jnp.mean(jnp.square(difference), axis=axes)
            if "l1" in self.loss_kind:
                losses += jnp.mean(jnp.abs(difference), axis=axes)
        rows = jnp.sum(mask, dtype=jnp.float32)
        sums = {}
        for name, weight in self.auxiliary_weights:
            if name not in auxiliary:
                raise ValueError(
                    f"auxiliary_weights: expected names of the model's losses, "
                    f"{sorted(auxiliary) or 'none'}, received {name!r}"
                )
            losses += weight * auxiliary[name]
            sums[name] = jnp.sum(zero_where_masked(auxiliary[name], mask)), rows
        sums["loss"] = jnp.sum(zero_where_masked(losses, mask)), rows
        return sums


def score_frames(
    records: Iterable[Mapping[str, Any]],
    thresholds: tuple[float, ...] = (),
    *,
    horizon: bool = False,
) -> dict[str, float]:
    """Returns metrics of a whole split that are no means of its batches.

    Args:
      records: of all sequences, as ``FramePrediction.describe_outputs`` returns them.
      thresholds: of the task; the split has a CSI and an HSS at each, from the counts of all
        values: ``csi_0.5``, ``hss_0.5``.
      horizon: adds the ``mse_frame`` of each step ahead: ``mse_frame_1`` to ``mse_frame_N``.

    >>> record = {"mse_frame": [1.0, 3.0], "events": [[5, 0, 0, 5]]}
    >>> score_frames([record], (0.5,), horizon=True)
    {'csi_0.5': 1.0, 'hss_0.5': 1.0, 'mse_frame_1': 1.0, 'mse_frame_2': 3.0}
    """
    records = list(records)
    scores: dict[str, float] = {}
    if not records:
        return scores
    if thresholds:
        tables = np.sum([np.asarray(each["events"], np.int64) for each in records], axis=0)
        for threshold, table in zip(thresholds, tables, strict=True):
            scores[f"csi_{threshold:g}"] = critical_success_index(table)
            scores[f"hss_{threshold:g}"] = heidke_skill_score(table)
    if horizon:
        errors = np.mean([np.asarray(each["mse_frame"], np.float64) for each in records], axis=0)
        scores |= {f"mse_frame_{i + 1}": float(x) for i, x in enumerate(errors)}
    return scores


def _as_float(frames: Array) -> Array:
    """Returns uint8 frames in [0,1], others as they are, float32."""
    scale = 255 if frames.dtype == jnp.uint8 else 1
    return jnp.asarray(frames, jnp.float32) / scale


def _count(mask: Array, values_of_frames: Array) -> Array:
    """Returns the number of frames of the rows that count, for values (B,N)."""
    return jnp.sum(mask, dtype=jnp.float32) * values_of_frames.shape[1]
