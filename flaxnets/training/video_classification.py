"""The task of naming the action in a clip."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.losses import cross_entropy
from flaxnets.metrics import top_k_accuracy
from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums


@dataclasses.dataclass(frozen=True)
class VideoClassification:
    """One label for each clip, as in ``data/batches.py``'s ``VideoBatch``.

    The model is called with frames and lengths and gives scores of each step (B,T,K). At test the
    probabilities are averaged over the valid steps, then over the views of a video (LRCN,
    arXiv:1411.4389, section 4).

    Attributes:
      loss: ``per_step`` asks every valid step for the label (LRCN); ``clip`` asks the scores
        averaged over the valid steps.
      label_smoothing: share of the target spread over all classes.
    """

    loss_kind: str = "per_step"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_kind not in ("per_step", "clip"):
            raise ValueError(
                f"loss_kind: expected 'per_step' or 'clip', received {self.loss_kind!r}"
            )

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Random variables, from one example's shapes."""
        frames, lengths = _first_views(batch)
        return model.init(key, frames[:1], lengths[:1], train=False)

    def loss(
        self, model: nn.Module, variables: PyTree, batch: Batch, key: PRNGKey
    ) -> tuple[Sums, PyTree]:
        """Sums of ``loss`` (nats) and ``accuracy``, and the updated statistics."""
        frames, lengths = _frames(batch), batch["lengths"]
        mutable = [name for name in variables if name != "params"]
        logits, collections = model.apply(
            variables,
            frames,
            lengths,
            mask=batch["mask"],
            train=True,
            rngs={"dropout": key},
            mutable=mutable,
        )
        steps = valid_steps(lengths, logits.shape[1])  # (B,T)
        clip_logits = average_steps(logits, steps)
        if self.loss_kind == "per_step":
            # Each clip weighs the same, however long it is.
            weights = batch["mask"][:, None] & steps
            labels = jnp.broadcast_to(batch["label"][:, None], steps.shape)
            per_clip = jax.vmap(
                lambda *row: cross_entropy(*row, label_smoothing=self.label_smoothing)
            )(logits, labels, weights)
            total = jnp.sum(per_clip[0] / jnp.maximum(per_clip[1], 1.0))
            loss = (total, jnp.sum(batch["mask"], dtype=jnp.float32))
        else:
            loss = cross_entropy(
                clip_logits, batch["label"], batch["mask"], label_smoothing=self.label_smoothing
            )
        accuracy = top_k_accuracy(clip_logits, batch["label"], batch["mask"])
        return {"loss": loss, "accuracy": accuracy}, dict(collections)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Sums of ``loss``, ``accuracy`` and ``top5_accuracy``, and (B,K) ``probabilities``."""
        probabilities = self.predict(model, variables, batch)
        scores = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
        # A video without a label has a prediction, and no part in the metrics.
        mask = batch["mask"] & (batch["label"] >= 0)
        labels = batch["label"]
        sums = {
            "loss": cross_entropy(scores, labels, mask),
            "accuracy": top_k_accuracy(scores, labels, mask),
            "top5_accuracy": top_k_accuracy(scores, labels, mask, k=5),
        }
        return sums, {"probabilities": probabilities}

    def predict(self, model: nn.Module, variables: PyTree, batch: Batch) -> Array:
        """(B,K) float32 probabilities of each video, averaged over its steps and views."""
        frames, lengths = _frames(batch), batch["lengths"]
        views = lengths.shape[1] if lengths.ndim == 2 else 1
        if lengths.ndim == 2:
            frames = frames.reshape(-1, *frames.shape[2:])
            lengths = lengths.reshape(-1)
        logits = model.apply(variables, frames, lengths, train=False)  # (B·V,T,K)
        steps = valid_steps(lengths, logits.shape[1])
        probabilities = average_steps(jax.nn.softmax(logits.astype(jnp.float32)), steps)
        return probabilities.reshape(-1, views, probabilities.shape[-1]).mean(axis=1)

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """``{"prediction": class, "probabilities": [K floats]}`` of one video."""
        probabilities = np.asarray(outputs["probabilities"][row], np.float64)
        return {
            "prediction": int(probabilities.argmax()),
            "probabilities": [round(float(value), 6) for value in probabilities],
        }


def valid_steps(lengths: Array, num_steps: int) -> Array:
    """(B,T) bool, True at steps before ``lengths`` (B,)."""
    return jnp.arange(num_steps) < lengths[:, None]


def average_steps(values: Array, steps: Array) -> Array:
    """The mean over the valid steps: (B,T,K) and (B,T) bool to (B,K) float32."""
    weights = steps[..., None].astype(jnp.float32)
    total = jnp.sum(jnp.where(steps[..., None], values.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


def _frames(batch: Batch) -> Array:
    return batch["video"] if "video" in batch else batch["features"]


def _first_views(batch: Batch) -> tuple[Array, Array]:
    frames, lengths = _frames(batch), batch["lengths"]
    return (frames[:, 0], lengths[:, 0]) if lengths.ndim == 2 else (frames, lengths)
