"""Video classification: one label for each clip."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.layers.padding import zero_where_masked
from flaxnets.metrics import (
    cross_entropies,
    cross_entropy,
    mutable_collections,
    split_reports,
    top_k_accuracy,
)
from flaxnets.typing import (
    Array,
    Batch,
    Carry,
    PRNGKey,
    PyTree,
    Sums,
)

LOSS_KINDS = ("per_step", "clip", "linear_gain")
Frames = Array | Mapping[str, Array]
"""Array (B,T,...), or a dict of such arrays, one for each stream."""


@dataclasses.dataclass(frozen=True)
class VideoClassification:
    """Classification of clips, batches as ``VideoBatch`` in ``data/batches.py``.

    The model is called with frames and lengths (B,) and returns logits of each step, (B,T,K), of
    the whole clip, (B,1,K), or of M parallel networks, (B,T,M,K), each of which is trained on its
    own loss. At test the probabilities are averaged over the valid steps (LRCN, Donahue et al.,
    arXiv:1411.4389, section 4), then over the networks and the views of a video.

    With ``linear_gain`` later steps weigh more, both in the loss and in the probabilities, since
    the hidden state has seen more frames (Ng et al., arXiv:1503.08909, sections 3.2 and 4). Step
    t = 0, 1, … of L valid ones has

        g_t = (t + 1) / L,    loss = Σ_t g_t · loss_t / Σ_t g_t,    p = Σ_t g_t · p_t / Σ_t g_t

    Deviations: the paper's gain runs from 0 to 1, both included, which would give a clip of one
    step no gain; and it does not divide by Σ g, which makes clips of all lengths weigh the same.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> class Logits(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, frames, lengths, mask=None, *, train):
      ...         return nn.Dense(3)(frames)
      >>> batch = {
      ...     "features": jnp.ones((2, 4, 5)),  # (B,T,C)
      ...     "lengths": jnp.array([4, 2]),
      ...     "label": jnp.array([0, 2]),
      ...     "mask": jnp.array([True, True]),
      ... }
      >>> task, key = VideoClassification(loss_kind="clip"), jax.random.key(0)
      >>> variables = task.initialize(Logits(), key, batch)
      >>> sums, _ = task.loss(Logits(), variables, batch, key)
      >>> sorted(sums), float(sums["loss"][1])
      (['accuracy', 'loss'], 2.0)
      >>> task.predict(Logits(), variables, batch).shape
      (2, 3)

    Attributes:
      loss_kind: ``per_step``: mean of the losses of the valid steps (LRCN); ``linear_gain``:
        weighted by g_t; ``clip``: loss, and probabilities, of the logits averaged over the valid
        steps.
      label_smoothing: share of the target's probability spread over all classes, in [0,1).
      mixup: α of mixup (Zhang et al., arXiv:1710.09412) of clips of features; 0: none.
      inputs: keys of the batch that the model is given: one as an array, several as a dict by name,
        as ``("video", "audio")``; empty: ``video``, or ``features`` if there is no video.
      network_weights: weights of M parallel networks in predictions, in their order, as ⅓ and ⅔ of
        RGB and flow; each network is trained on its own loss all the same. Empty: equal ones.
    """

    loss_kind: str = "per_step"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    inputs: tuple[str, ...] = ()
    network_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.loss_kind not in LOSS_KINDS:
            raise ValueError(
                f"loss_kind: expected 'per_step', 'clip' or 'linear_gain', "
                f"received {self.loss_kind!r}"
            )
        if self.network_weights and not (
            min(self.network_weights) >= 0 and sum(self.network_weights) > 0
        ):
            raise ValueError(
                "network_weights: expected weights of at least 0 with a positive sum, received "
                f"{self.network_weights}"
            )

    def initialize(self, model: nn.Module, key: PRNGKey, batch: Batch) -> PyTree:
        """Returns random variables, from the shapes of one example."""
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
        """Returns sums of ``loss`` (nats) and ``accuracy``, and the updated statistics."""
        frames, lengths = self._frames(batch), batch["lengths"]
        mask = batch["mask"] & (batch["label"] >= 0)
        dropout_key, mixup_key = jax.random.split(key)
        targets = [(batch["label"], jnp.ones(len(mask)))]
        if self.mixup:
            pairs, share = _draw_mixup(mixup_key, self.mixup, len(mask))
            frames = jax.tree.map(lambda x: _mix(x, pairs, share), frames)
            lengths = jnp.minimum(lengths, lengths[pairs])  # Frames that both clips have.
            mask = mask & mask[pairs]
            targets = [(batch["label"], share), (batch["label"][pairs], 1 - share)]
        # Clips that do not count are read as zeros: NaN in one would make the gradient NaN.
        frames = jax.tree.map(lambda x: zero_where_masked(x, mask), frames)
        logits, collections = model.apply(
            variables,
            frames,
            lengths,
            mask=mask,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=mutable_collections(variables),
        )
        logits = _with_networks(logits)  # (B,T,M,K)
        gains = self._gains(jax.tree.leaves(frames)[0].shape[1], lengths, logits)
        clip_logits = average_steps(logits, gains)  # (B,M,K)
        per_clip = sum(
            share * self._clip_loss(logits, label, gains, mask) for label, share in targets
        )
        count = jnp.sum(mask, dtype=jnp.float32)
        loss = (jnp.sum(jnp.where(mask, per_clip, 0.0)), count)
        accuracy = top_k_accuracy(clip_logits.mean(axis=1), batch["label"], mask)
        others, reports = split_reports(collections)
        return {"loss": loss, "accuracy": accuracy, **reports}, others

    def _frames(self, batch: Batch) -> Frames:
        """Returns the model's inputs in a batch."""
        names = self.inputs or ("video" if "video" in batch else "features",)
        for name in names:
            if name not in batch:
                raise ValueError(
                    f"inputs: expected {name!r}, received a batch of {', '.join(batch)}"
                )
        return batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}

    def _gains(self, expected: int, lengths: Array, logits: Array) -> Array:
        """Returns (B,T) float32 weights of the steps of (B,T,M,K) logits, zero in the padding.

        ``expected`` is the clips' T; logits of one step alone are the clip's.
        """
        num_steps = logits.shape[1]
        if num_steps not in (1, expected):
            raise ValueError(f"logits: expected 1 or {expected} steps, received {num_steps}")
        if num_steps == 1:  # The clip's only one, whatever its length.
            return jnp.ones((logits.shape[0], 1), jnp.float32)
        steps = valid_steps(lengths, num_steps)
        if self.loss_kind != "linear_gain":
            return steps.astype(jnp.float32)
        gains = jnp.arange(1, num_steps + 1) / jnp.maximum(lengths, 1)[:, None]
        return jnp.where(steps, gains, 0.0)

    def _clip_loss(self, logits: Array, label: Array, gains: Array, mask: Array) -> Array:
        """Returns (B,) losses in nats, averaged over networks and, unless ``clip``, over steps.

        They are zero where ``mask`` (B,) is False.
        """
        if self.loss_kind == "clip":
            logits, gains = average_steps(logits, gains)[:, None], gains[:, :1]
        read = (gains > 0) & mask[:, None]  # (B,T)
        label, read = (
            jnp.broadcast_to(x, logits.shape[:-1]) for x in (label[:, None, None], read[..., None])
        )
        losses = cross_entropies(logits, label, read, label_smoothing=self.label_smoothing)
        return average_steps(losses, gains).mean(axis=-1)

    def evaluate(
        self, model: nn.Module, variables: PyTree, batch: Batch
    ) -> tuple[Sums, dict[str, Array]]:
        """Returns sums of ``loss``, ``accuracy``, ``top5_accuracy``; (B,K) ``probabilities``."""
        probabilities = self.predict(model, variables, batch)
        # The softmax of log p is p, so these are logits of the averaged probabilities.
        logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
        # A video without a label has a prediction and does not count in the metrics.
        mask = batch["mask"] & (batch["label"] >= 0)
        labels = batch["label"]
        sums = {
            "loss": cross_entropy(logits, labels, mask),
            "accuracy": top_k_accuracy(logits, labels, mask),
            "top5_accuracy": top_k_accuracy(logits, labels, mask, k=5),
        }
        return sums, {"probabilities": probabilities}

    def predict(self, model: nn.Module, variables: PyTree, batch: Batch) -> Array:
        """Returns (B,K) float32 probabilities, averaged over steps, networks and views."""
        frames, lengths = self._frames(batch), batch["lengths"]
        views = lengths.shape[1] if lengths.ndim == 2 else 1
        if lengths.ndim == 2:
            frames = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), frames)
            lengths = lengths.reshape(-1)
        logits: Any = model.apply(variables, frames, lengths, train=False)
        num_steps = jax.tree.leaves(frames)[0].shape[1]
        probabilities = self.clip_probabilities(logits, lengths, num_steps)  # (B·V,K)
        return probabilities.reshape(-1, views, probabilities.shape[-1]).mean(axis=1)

    def clip_probabilities(self, logits: Array, lengths: Array, num_steps: int) -> Array:
        """Returns (B,K) float32 probabilities of clips, averaged over steps and networks.

        Args:
          logits: (B,T,K), (B,1,K) or (B,T,M,K), as the model returned them.
          lengths: (B,) integers in [0,T].
          num_steps: T, steps of the clips.
        """
        logits = _with_networks(logits)  # (B,T,M,K)
        gains = self._gains(num_steps, lengths, logits)
        if self.loss_kind == "clip":
            return self._average_networks(jax.nn.softmax(average_steps(logits, gains)))
        return self._average_networks(average_steps(_softmax(logits), gains))

    def _average_networks(self, probabilities: Array) -> Array:
        """Returns the mean (B,K) of (B,M,K), by ``network_weights`` if there are."""
        if not self.network_weights:
            return probabilities.mean(axis=1)
        if len(self.network_weights) != probabilities.shape[1]:
            raise ValueError(
                f"network_weights: expected one for each of {probabilities.shape[1]} networks, "
                f"received {self.network_weights}"
            )
        weights = jnp.asarray(self.network_weights) / sum(self.network_weights)
        return jnp.einsum("m,bmk->bk", weights, probabilities)

    def start_stream(self, model: nn.Module, variables: PyTree, frames: Array) -> Carry:
        """Returns the carry of ``predict_step`` before the first frame.

        Args:
          model: with ``stream``, as ``CRNN``.
          variables: of the model.
          frames: (B,...) frames or features of which only the shape and dtype are used.

        Raises:
          ValueError: a model that needs the whole clip.
        """
        nothing = frames[:, None][:, :0]  # (B,0,...)
        streamed: Any = model.apply(variables, None, nothing, method="stream")
        inner, logits = streamed
        b, _, k = logits.steps.shape
        return inner, (jnp.zeros((b, k)), jnp.zeros((b,), jnp.int32))

    def predict_step(
        self, model: nn.Module, variables: PyTree, carry: Carry, frames: Array
    ) -> tuple[Carry, Array, Array]:
        """Reads the next frame of clips with a causal model.

        The probabilities of the clip of all frames so far are those of ``predict``. (Gains of
        ``linear_gain`` are divided by their sum, so that they need not know the clip's length.)

        Args:
          model: with ``stream``, as ``CRNN``.
          variables: of the model.
          carry: of the frame before, or of ``start_stream``.
          frames: (B,...), the next frame or features of each clip.

        Returns:
          The new carry; (B,K) float32 probabilities of this step alone; (B,K) float32 those of the
          clip so far.

        Raises:
          ValueError: a model that needs the whole clip.
        """
        inner, running = carry
        streamed: Any = model.apply(variables, inner, frames[:, None], method="stream")
        inner, logits = streamed
        steps = logits.steps[:, 0].astype(jnp.promote_types(logits.steps.dtype, jnp.float32))
        probabilities = jax.nn.softmax(steps)
        if logits.clips is not None:
            return (inner, running), probabilities, jax.nn.softmax(logits.clips[:, 0])
        mean, count = running
        count = count + 1
        # Of gains 1, 2, …, n the last one is 2 / (n + 1) of their sum.
        share = 2 / (count + 1) if self.loss_kind == "linear_gain" else 1 / count
        values = steps if self.loss_kind == "clip" else probabilities
        mean = mean + (values - mean) * share[:, None]
        clips = jax.nn.softmax(mean) if self.loss_kind == "clip" else mean
        return (inner, (mean, count)), probabilities, clips

    def describe_outputs(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        """Returns ``{"prediction": class, "probabilities": [K floats]}`` of one video."""
        probabilities = np.asarray(outputs["probabilities"][row], np.float64)
        return {
            "prediction": int(probabilities.argmax()),
            "probabilities": [round(float(value), 6) for value in probabilities],
        }


def valid_steps(lengths: Array, num_steps: int) -> Array:
    """Returns (B,T) bool, True at steps before ``lengths`` (B,), an array or a list."""
    return jnp.arange(num_steps) < jnp.asarray(lengths)[:, None]


def average_steps(values: Array, gains: Array) -> Array:
    """Returns the mean over steps, weighted by gains.

    Args:
      values: (B,T,...) float; those at steps of gain 0 are not read and may be NaN.
      gains: (B,T) float32, at least 0.

    Returns:
      (B,...) float32 at least; zero if all gains are.
    """
    gains = gains.reshape(*gains.shape, *[1] * (values.ndim - 2))
    # The gains are float32, so that values in bfloat16 are summed in float32.
    total = jnp.sum(gains * jnp.where(gains > 0, values, 0), axis=1)
    weight = jnp.sum(gains, axis=1)
    return total / jnp.where(weight > 0, weight, 1.0)


def step_probabilities(logits: Array) -> Array:
    """Returns (B,T,K) float32 probabilities of each step alone, averaged over networks.

    Args:
      logits: (B,T,K) or (B,T,M,K).
    """
    return _softmax(_with_networks(logits)).mean(axis=2)


def _softmax(logits: Array) -> Array:
    return jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def _with_networks(logits: Array) -> Array:
    return logits if logits.ndim == 4 else logits[:, :, None]


def _mix(frames: Array, pairs: Array, share: Array) -> Array:
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"mixup: expected features, received video of {frames.dtype} pixels")
    weight = share.reshape(-1, *[1] * (frames.ndim - 1)).astype(frames.dtype)
    return weight * frames + (1 - weight) * frames[pairs]


def _draw_mixup(key: PRNGKey, alpha: float, size: int) -> tuple[Array, Array]:
    """Returns partners (size,) int32 and shares (size,) float32 in [0,1] ~ Beta(α, α)."""
    partner_key, share_key = jax.random.split(key)
    return (
        jax.random.permutation(partner_key, size),
        jax.random.beta(share_key, alpha, alpha, (size,)),
    )
