"""Model that returns its frames as logits, clips for it, and losses of clips in NumPy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.tasks.video_classification import VideoClassification

B, T, M, K = 4, 3, 2, 6
KINDS = ["per_step", "clip", "linear_gain"]
LENGTHS = np.array([3, 1, 2, 3], np.int32)
LABELS = np.array([2, 0, 5, 1], np.int32)
KEY = jax.random.key(0)


class Echo(nn.Module):
    """Logits that are the frames plus a parameter, which starts at zero."""

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
    # A new function each time, as tests replace the random draw.
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
    """Returns the loss of one clip from (T,K) logits of one network."""
    rows = rows[:length].astype(np.float64)
    rows = rows.mean(0, keepdims=True) if kind == "clip" else rows
    target = np.full(K, smoothing / K)
    target[label] += 1 - smoothing
    losses = [-(target * np.log(softmax(row))).sum() for row in rows]
    return float(np.average(losses, weights=gains(kind, len(losses))))


def gains(kind: str, length: int) -> np.ndarray:
    """Returns the weights of the steps of one clip."""
    if kind == "linear_gain":
        return np.array([(t + 1) / length for t in range(length)])
    return np.ones(length)
