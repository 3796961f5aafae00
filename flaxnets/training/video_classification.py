"""The task of naming the action in a clip."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.losses import cross_entropies, cross_entropy
from flaxnets.metrics import top_k_accuracy
from flaxnets.typing import Array, Batch, PRNGKey, PyTree, Sums


@dataclasses.dataclass(frozen=True)
class VideoClassification:
    """One label for each clip, as in ``data/batches.py``'s ``VideoBatch``.

    The model is called with frames and lengths and gives scores of each step, (B,T,K), or
    (B,T,M,K) of M networks side by side. Each network is trained on its own loss. At test the
    probabilities are averaged over the valid steps (LRCN, arXiv:1411.4389, section 4), then over
    the networks and the views of a video.

    Attributes:
      loss_kind: ``per_step`` asks every valid step for the label (LRCN); ``clip`` asks the scores
        averaged over the valid steps, of which the probabilities are then taken at test, too.
      label_smoothing: share of the target spread over all classes.
      mixup: α of mixup (Zhang et al., arXiv:1710.09412) over clips of features; 0: none.
    """

    loss_kind: str = "per_step"
    label_smoothing: float = 0.0
    mixup: float = 0.0

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
        mask = batch["mask"] & (batch["label"] >= 0)
        dropout_key, mixup_key = jax.random.split(key)
        targets = [(batch["label"], jnp.ones(len(mask)))]
        if self.mixup:
            if frames.dtype == jnp.uint8:
                raise ValueError("mixup: expected features, received video of uint8 pixels")
            pairs, share = _draw_mixup(mixup_key, self.mixup, len(mask))
            weight = share.reshape(-1, *[1] * (frames.ndim - 1)).astype(frames.dtype)
            frames = weight * frames + (1 - weight) * frames[pairs]
            lengths = jnp.minimum(lengths, lengths[pairs])
            mask = mask & mask[pairs]
            targets = [(batch["label"], share), (batch["label"][pairs], 1 - share)]
        mutable = [name for name in variables if name != "params"]
        logits, collections = model.apply(
            variables,
            frames,
            lengths,
            mask=mask,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=mutable,
        )
        logits = _with_networks(logits)  # (B,T,M,K)
        steps = valid_steps(lengths, logits.shape[1])
        clip_logits = average_steps(logits, steps)  # (B,M,K)
        per_clip = sum(share * self._clip_loss(logits, label, steps) for label, share in targets)
        count = jnp.sum(mask, dtype=jnp.float32)
        loss = (jnp.sum(jnp.where(mask, per_clip, 0.0)), count)
        accuracy = top_k_accuracy(clip_logits.mean(axis=1), batch["label"], mask)
        return {"loss": loss, "accuracy": accuracy}, dict(collections)

    def _clip_loss(self, logits: Array, label: Array, steps: Array) -> Array:
        """(B,) losses in nats, a mean over networks and, if each is asked, over valid steps."""
        if self.loss_kind == "clip":
            logits, steps = average_steps(logits, steps)[:, None], steps[:, :1]
        label = jnp.maximum(label, 0)[:, None, None]  # Whatever stands in rows that count nowhere.
        label = jnp.broadcast_to(label, logits.shape[:-1])
        losses = cross_entropies(logits, label, label_smoothing=self.label_smoothing)  # (B,T,M)
        return average_steps(losses, steps).mean(axis=-1)

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
        logits: Any = model.apply(variables, frames, lengths, train=False)
        logits = _with_networks(logits)  # (B·V,T,M,K)
        steps = valid_steps(lengths, logits.shape[1])
        if self.loss_kind == "clip":
            probabilities = jax.nn.softmax(average_steps(logits, steps))
        else:
            probabilities = average_steps(jax.nn.softmax(logits.astype(jnp.float32)), steps)
        # (B·V,M,K)
        return probabilities.reshape(-1, views * logits.shape[2], logits.shape[3]).mean(axis=1)

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
    """The mean over the valid steps: (B,T,...) and (B,T) bool to (B,...) float32."""
    valid = steps.reshape(*steps.shape, *[1] * (values.ndim - 2))
    total = jnp.sum(jnp.where(valid, values.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(valid, axis=1), 1)


def _with_networks(logits: Array) -> Array:
    return logits if logits.ndim == 4 else logits[:, :, None]


def _draw_mixup(key: PRNGKey, alpha: float, size: int) -> tuple[Array, Array]:
    """Partners (size,) int32 and shares (size,) float32 in [0,1] ~ Beta(α, α)."""
    partner_key, share_key = jax.random.split(key)
    return (
        jax.random.permutation(partner_key, size),
        jax.random.beta(share_key, alpha, alpha, (size,)),
    )


def _frames(batch: Batch) -> Array:
    return batch["video"] if "video" in batch else batch["features"]


def _first_views(batch: Batch) -> tuple[Array, Array]:
    frames, lengths = _frames(batch), batch["lengths"]
    return (frames[:, 0], lengths[:, 0]) if lengths.ndim == 2 else (frames, lengths)
