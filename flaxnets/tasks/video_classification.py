"""The task of naming the action in a clip."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.losses import cross_entropies, cross_entropy
from flaxnets.metrics import top_k_accuracy
from flaxnets.typing import (
    Array,
    Batch,
    PRNGKey,
    PyTree,
    Sums,
)

LOSS_KINDS = ("per_step", "clip", "linear_gain")
Frames = Array | Mapping[str, Array]
"""(B,T,...), or such arrays by the names of several streams."""


@dataclasses.dataclass(frozen=True)
class VideoClassification:
    """One label for each clip, as in ``data/batches.py``'s ``VideoBatch``.

    The model is called with frames and lengths and gives scores of each step, (B,T,K), or
    (B,T,M,K) of M networks side by side; one step, (B,1,K), stands for the whole clip. Each network
    is trained on its own loss. At test the probabilities are averaged over the valid steps (LRCN,
    arXiv:1411.4389, section 4), then over the networks and the views of a video.

    With ``linear_gain`` the average, of the steps' losses in training and of their probabilities at
    test, is weighted by a gain that grows with time, since a recurrent layer knows more the more it
    has seen (Ng et al., arXiv:1503.08909, sections 3.2 and 4): step t = 0, 1 … of L valid ones has

        g_t = (t + 1) / L,    loss = Σ_t g_t · loss_t / Σ_t g_t,    p = Σ_t g_t · p_t / Σ_t g_t

    Deviations: the paper lets g run from 0 to 1, both included, which would leave a clip of one
    step without a gain, and does not divide by Σ g, by which losses of clips of every length count
    alike.

    Attributes:
      loss_kind: ``per_step`` asks every valid step for the label (LRCN); ``linear_gain`` the later
        ones more; ``clip`` asks the scores averaged over the valid steps, of which the
        probabilities are then taken at test, too.
      label_smoothing: share of the target spread over all classes.
      mixup: α of mixup (Zhang et al., arXiv:1710.09412) over clips of features; 0: none.
      inputs: keys of the batch that the model sees: one as an array, several as a dict by name, as
        ``("video", "audio")``; none: ``video``, or ``features`` where there is no video.
    """

    loss_kind: str = "per_step"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loss_kind not in LOSS_KINDS:
            raise ValueError(
                f"loss_kind: expected 'per_step', 'clip' or 'linear_gain', "
                f"received {self.loss_kind!r}"
            )

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Random variables, from one example's shapes."""
        frames, lengths = self._frames(batch), batch["lengths"]
        if lengths.ndim == 2:
            frames, lengths = jax.tree.map(lambda x: x[:, 0], (frames, lengths))
        frames, lengths = jax.tree.map(lambda x: x[:1], (frames, lengths))
        return model.init(key, frames, lengths, train=False)

    def loss(
        self,
        model: nn.Module,
        variables: PyTree,
        batch: Batch,
        key: PRNGKey,
        step: Array | int = 0,
    ) -> tuple[Sums, PyTree]:
        """Sums of ``loss`` (nats) and ``accuracy``, and the updated statistics."""
        frames, lengths = self._frames(batch), batch["lengths"]
        mask = batch["mask"] & (batch["label"] >= 0)
        dropout_key, mixup_key = jax.random.split(key)
        targets = [(batch["label"], jnp.ones(len(mask)))]
        if self.mixup:
            pairs, share = _draw_mixup(mixup_key, self.mixup, len(mask))
            frames = jax.tree.map(lambda x: _mix(x, pairs, share), frames)
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
        gains = self._gains(frames, lengths, logits)
        clip_logits = average_steps(logits, gains)  # (B,M,K)
        per_clip = sum(share * self._clip_loss(logits, label, gains) for label, share in targets)
        count = jnp.sum(mask, dtype=jnp.float32)
        loss = (jnp.sum(jnp.where(mask, per_clip, 0.0)), count)
        accuracy = top_k_accuracy(clip_logits.mean(axis=1), batch["label"], mask)
        return {"loss": loss, "accuracy": accuracy}, dict(collections)

    def _frames(self, batch: Batch) -> Frames:
        """What the model sees of a batch."""
        names = self.inputs or ("video" if "video" in batch else "features",)
        for name in names:
            if name not in batch:
                raise ValueError(
                    f"inputs: expected {name!r}, received a batch of {', '.join(batch)}"
                )
        return batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}

    def _gains(self, frames: Frames, lengths: Array, logits: Array) -> Array:
        """(B,T) float32 weights of the steps that (B,T,M,K) scores are of, zero at padding."""
        num_steps, expected = logits.shape[1], jax.tree.leaves(frames)[0].shape[1]
        if num_steps not in (1, expected):
            raise ValueError(f"scores: expected 1 or {expected} steps, received {num_steps}")
        if num_steps == 1:  # The clip's only one, whatever its length.
            return jnp.ones((len(logits), 1), jnp.float32)
        steps = valid_steps(lengths, num_steps)
        if self.loss_kind != "linear_gain":
            return steps.astype(jnp.float32)
        gains = jnp.arange(1, num_steps + 1) / jnp.maximum(lengths, 1)[:, None]
        return jnp.where(steps, gains, 0.0)

    def _clip_loss(self, logits: Array, label: Array, gains: Array) -> Array:
        """(B,) losses in nats, a mean over networks and, if each is asked, over valid steps."""
        if self.loss_kind == "clip":
            logits, gains = average_steps(logits, gains)[:, None], gains[:, :1]
        label = jnp.maximum(label, 0)[:, None, None]  # Whatever stands in rows that count nowhere.
        label = jnp.broadcast_to(label, logits.shape[:-1])
        losses = cross_entropies(logits, label, label_smoothing=self.label_smoothing)  # (B,T,M)
        return average_steps(losses, gains).mean(axis=-1)

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
        frames, lengths = self._frames(batch), batch["lengths"]
        views = lengths.shape[1] if lengths.ndim == 2 else 1
        if lengths.ndim == 2:
            frames = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), frames)
            lengths = lengths.reshape(-1)
        logits: Any = model.apply(variables, frames, lengths, train=False)
        logits = _with_networks(logits)  # (B·V,T,M,K)
        gains = self._gains(frames, lengths, logits)
        if self.loss_kind == "clip":
            probabilities = jax.nn.softmax(average_steps(logits, gains))
        else:
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            probabilities = average_steps(jax.nn.softmax(logits), gains)
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


def average_steps(values: Array, gains: Array) -> Array:
    """The mean weighted by gains: (B,T,...) and (B,T) float32 >= 0 to (B,...), float32 at least.

    What stands at steps without a gain is not read; without any gain the mean is zero.
    """
    gains = gains.reshape(*gains.shape, *[1] * (values.ndim - 2))
    total = jnp.sum(jnp.where(gains > 0, gains * values, 0.0), axis=1)  # gains are float32.
    weight = jnp.sum(gains, axis=1)
    return total / jnp.where(weight > 0, weight, 1.0)


def _with_networks(logits: Array) -> Array:
    return logits if logits.ndim == 4 else logits[:, :, None]


def _mix(frames: Array, pairs: Array, share: Array) -> Array:
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"mixup: expected features, received video of {frames.dtype} pixels")
    weight = share.reshape(-1, *[1] * (frames.ndim - 1)).astype(frames.dtype)
    return weight * frames + (1 - weight) * frames[pairs]


def _draw_mixup(key: PRNGKey, alpha: float, size: int) -> tuple[Array, Array]:
    """Partners (size,) int32 and shares (size,) float32 in [0,1] ~ Beta(α, α)."""
    partner_key, share_key = jax.random.split(key)
    return (
        jax.random.permutation(partner_key, size),
        jax.random.beta(share_key, alpha, alpha, (size,)),
    )
